"""What is said of files that are no images by their names, and how to read them."""

import re
import sys
import tarfile
import zipfile

import pytest
from images import write_image

from simmim_jax.data.sources.endings import (
    WAYS_IN,
    count_endings,
    ending_of,
    ways_in,
)
from simmim_jax.data.sources.paths import ARRAY_ENDINGS, IMAGE_ENDINGS
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import MissingPackageError, NotFoundError


def both(dataset) -> str:
    """Return the error of checking and of opening a data set, which is the same."""
    with pytest.raises(NotFoundError) as checked:
        check_source(str(dataset), "train")
    with pytest.raises(NotFoundError, match=re.escape(str(checked.value))):
        open_source(str(dataset), "train")
    return str(checked.value)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a/B.JPG", ".jpg"),
        (b"brain.nii.gz", ".nii.gz"),
        ("x.tar.GZ", ".tar.gz"),
        ("a.b/README", "files without an ending"),
        (b"\xff.tif", ".tif"),
    ],
)
def test_ending_of_a_name(name, ending):
    assert ending_of(name) == ending


def test_no_way_in_is_named_for_what_is_read_already():
    assert not {*IMAGE_ENDINGS, *ARRAY_ENDINGS} & set(WAYS_IN)


def test_folder_says_what_it_has_and_the_way_in(tmp_path):
    for name in ("1.HEIC", "2.heic", "3.heic", "a.svs", "notes.txt", "b.jp2"):
        (tmp_path / name).touch()
    said = both(tmp_path)
    assert "It has 3 .heic, " in said
    assert (
        " 3 .heic (HEIC photographs): convert them to .jpg, such as with heif-convert."
        in said
    )
    assert (
        " 1 .svs (microscopy slides): export regions of them as .tif or .npy." in said
    )
    assert "`find . -name '*.jp2' > images.txt`" in said


def test_ways_in_are_few():
    counts = count_endings([f"a{ending}" for ending in WAYS_IN])
    assert ways_in(counts).count(": ") == 3


def test_archive_says_what_it_has(tmp_path):
    video = tmp_path / "clip.mp4"
    video.touch()
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(video, "clips/clip.mp4")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(video, "clips/clip.mp4")
    assert "It has 1 .mp4. 1 .mp4 (videos): extract" in both(tmp_path / "data.tar")
    with pytest.raises(NotFoundError, match=r"It has 1 \.mp4\. 1 \.mp4 \(videos\)"):
        open_source(str(tmp_path / "data.zip"), "train")


def test_list_at_a_url_says_what_it_has():
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe_file("/heic-only/a.heic", b"x")
    with pytest.raises(NotFoundError, match=r"1 \.heic \(HEIC photographs\)"):
        open_source("memory://heic-only", "train")


def test_missing_package_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)  # as if it were not installed
    scan = tmp_path / "scans" / "1.DCM"
    scan.parent.mkdir()
    scan.touch()
    with tarfile.open(tmp_path / "scans.tar", "w") as tar:
        tar.add(scan, "1.dcm")
    for place in ("scans", "scans.tar"):
        says = (
            f"^'{tmp_path / place}/?' has .dcm files \\(DICOM\\), which need the "
            r"package pydicom: pip install 'simmim_jax\[medical\]'\.$"
        )
        with pytest.raises(MissingPackageError, match=says):
            check_source(str(tmp_path / place), "train")
    write_image(tmp_path / "photos" / "1.png")
    check_source(str(tmp_path / "photos"), "train")
