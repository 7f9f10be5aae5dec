"""Folders of DICOM files, with and without endings; files come with pydicom 3.0.2."""

import pickle
import shutil

import numpy as np
import pytest

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import NotFoundError

get_testdata_file = pytest.importorskip("pydicom.data").get_testdata_file
CT, MR = map(get_testdata_file, ("CT_small.dcm", "MR_small.dcm"))


def copy(file, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, path)


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619.57", "scan.dcm", "A.DCM"])
def test_files_are_images_whatever_they_are_called(name, tmp_path):
    copy(CT, tmp_path / "train" / "ct" / name)
    copy(MR, tmp_path / "train" / "mr" / name)
    copy(CT, tmp_path / "val" / "ct" / name)
    if not name.lower().endswith(".dcm"):
        copy(CT, tmp_path / "train" / "ct" / "DICOMDIR")
    check_source(str(tmp_path), "train")
    source = open_source(str(tmp_path), "train")
    assert source.class_names == ("ct", "mr")
    assert [*source.paths] == [f"ct/{name}", f"mr/{name}"]
    example = pickle.loads(pickle.dumps(source))[0]
    assert example["label"] == 0
    pixels = decode(example["image"], Decoding(1))
    assert (pixels.dtype, pixels[0, 0, 0]) == (np.int16, -849)


def test_other_files_without_endings_are_bad_examples(tmp_path):
    copy(CT, tmp_path / "train" / "1" / "1")
    (tmp_path / "train" / "1" / "notes").write_text("nothing")
    shutil.move(tmp_path / "train" / "1" / "notes", tmp_path / "train" / "2")
    source = open_source(str(tmp_path / "train" / ".."), "train")
    assert len(source) == 2
    with pytest.raises(BadImage, match="not an image"):
        decode(source[1]["image"], Decoding(1))


def test_other_folders_stay_without_images(tmp_path):
    (tmp_path / "README").write_text("nothing")
    with pytest.raises(NotFoundError, match="1 files without an ending"):
        open_source(str(tmp_path), "train")
