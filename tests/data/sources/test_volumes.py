"""Slices of NIfTI volumes and frames of DICOM files.

NIfTI files are those that nibabel 5.4.2 comes with, and some that it writes; DICOM
files come with pydicom 3.0.2.
"""

import gzip
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.nifti import open_volume, slice_of
from simmim_jax.data.codecs.registry import decode, read
from simmim_jax.data.sources import volumes
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import NotFoundError, UserError

nibabel = pytest.importorskip("nibabel")
OWN = Path(nibabel.__file__).parent / "tests" / "data"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    volumes._volume.cache_clear()


def write(path, array, affine=None, dtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(array, affine, dtype=dtype), path)
    return str(path)


def whole(path, axis):
    """Return all slices of a file, by both splits of the source."""
    found = {}
    for split in ("train", "validation"):
        check_source(f"{path}:{axis}", split)
        for example in open_source(f"{path}:{axis}", split):
            found[int(example["path"].rpartition(":")[2])] = example["image"]
    assert sorted(found) == list(range(len(found)))
    return np.stack([found[i] for i in range(len(found))])


# ---- NIfTI ---------------------------------------------------------------------------


def test_slices_stand_upright():
    # Axes point left, anterior and superior: x is turned over.
    file = OWN / "anatomical.nii"
    stored = np.asarray(nibabel.load(file).dataobj)  # big-endian int16 [33, 41, 25]
    axial, coronal, sagittal = (whole(file, a) for a in ("axial", "coronal", "0"))
    assert (axial.shape, axial.dtype) == ((25, 41, 33, 1), np.int16)
    assert axial.dtype.isnative
    assert (axial.min(), axial.max()) == (-610, 30393)
    x, y, z = 5, 30, 20
    value = stored[32 - x, y, z]
    assert value == 8928
    assert axial[z, 40 - y, x, 0] == value
    assert coronal[y, 24 - z, x, 0] == value
    assert sagittal[x, 24 - z, y, 0] == value


def test_axial_is_the_default():
    file = str(OWN / "anatomical.nii")
    image = open_source(file, "train")[3]["image"]
    np.testing.assert_array_equal(
        image, open_source(f"{file}:axial", "train")[3]["image"]
    )


def test_slope_and_intercept_are_applied_and_a_fourth_axis_is_channels():
    # Stored int16, slope 0.0754, intercept 3100.76.
    file = OWN / "functional.nii"
    slices = whole(file, "sagittal")
    assert (slices.shape, slices.dtype) == ((17, 3, 21, 20), np.float32)
    values = nibabel.load(file).get_fdata()
    np.testing.assert_array_equal(slices[4, 2, 6], values[12, 6, 0].astype(np.float32))
    assert slices[4, 2, 6, 7] == np.float32(3711.7089782953262)


def test_missing_values_stay_nan():
    slices = whole(OWN / "resampled_anat_moved.nii", "coronal")  # big-endian float32
    assert slices.dtype == np.float32
    assert np.isnan(slices).sum() == 153
    assert np.nanmax(slices) == np.float32(13360.962)


@pytest.mark.parametrize("name", ["example4d.nii.gz", "example_nifti2.nii.gz"])
def test_compressed_volumes_equal_plain_ones(name, tmp_path):
    plain = tmp_path / name.removesuffix(".gz")
    plain.write_bytes(gzip.decompress((OWN / name).read_bytes()))
    for axis in volumes.AXES:
        volume, other = (
            np.stack([slice_of(v, i, "") for i in range(len(v.slices))])
            for v in (open_volume(str(p), axis) for p in (OWN / name, plain))
        )
        np.testing.assert_array_equal(volume, other)
        assert volume.dtype == np.int16


def test_a_compressed_volume_is_unpacked_once(tmp_path):
    file = write(
        tmp_path / "a.nii.gz", np.arange(4000, dtype=np.int16).reshape(20, 10, 20)
    )
    source = open_source(file, "train")
    first = source[2]["image"]
    (kept,) = (tmp_path / "cache" / "simmim_jax" / "arrays").iterdir()
    volumes._volume.cache_clear()
    before = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(source[2]["image"], first)
    assert kept.stat().st_mtime_ns == before
    # A file that was replaced is unpacked again.
    write(tmp_path / "a.nii.gz", np.zeros((20, 10, 20), np.int16))
    assert open_source(file, "train")[2]["image"].max() == 0


def test_without_a_cache_volumes_are_read_all_the_same(tmp_path, monkeypatch):
    file = write(
        tmp_path / "a.nii.gz", np.arange(4000, dtype=np.int16).reshape(20, 10, 20)
    )
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_source(file, "train")[0]["image"].shape == (10, 20, 1)


@pytest.mark.parametrize(
    ("given", "taken"), [("u1", "u1"), ("<u2", "u2"), (">i4", "i4"), ("<f8", "f4")]
)
def test_dtypes(given, taken, tmp_path):
    array = np.arange(9 * 5 * 17).reshape(9, 5, 17) % 200
    file = write(tmp_path / "a.nii", array.astype(given))
    slices = whole(file, "axial")
    assert slices.dtype == np.dtype(taken)
    np.testing.assert_array_equal(slices[:, ::-1, :, 0].transpose(2, 1, 0), array)


def test_colors_are_three_channels(tmp_path):
    colors = np.zeros((5, 6, 17), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colors["R"], colors["B"] = 255, 7
    slices = whole(write(tmp_path / "a.nii", colors), "axial")
    assert slices.shape == (17, 6, 5, 3)
    assert slices[3, 2, 1].tolist() == [255, 0, 7]


def test_folders_keep_the_slices_of_a_file_together(tmp_path):
    for i, name in enumerate(("train/b/1.nii", "train/a/2.nii.gz", "val/b/3.NII")):
        shape = (4, 5, 6 + i)
        write(tmp_path / "set" / name, np.full(shape, i, np.int16))
    check_source(str(tmp_path / "set"), "train")
    train = open_source(str(tmp_path / "set"), "train")
    assert train.class_names == ("a", "b")
    assert train.labels.tolist() == [0] * 7 + [1] * 6
    assert len(train) == 13
    for source in (train, pickle.loads(pickle.dumps(train))):
        assert [source[i]["label"] for i in (0, 6, 7, 12)] == [0, 0, 1, 1]
        assert source[6]["image"].tolist() == np.ones((5, 4, 1)).tolist()
        assert source[12]["path"] == str(tmp_path / "set/train/b/1.nii:5")
    assert len(open_source(f"{tmp_path}/set:sagittal", "validation")) == 4
    with pytest.raises(IndexError):
        train[13]


def test_folders_without_splits_are_divided_by_file(tmp_path):
    for i in range(30):
        write(tmp_path / "set" / f"{i}.nii", np.full((3, 3, 4), i, np.uint8))
    parts = [open_source(str(tmp_path / "set"), s) for s in ("train", "validation")]
    seen = [{int(example["image"].max()) for example in part} for part in parts]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(30))


def test_blocks_of_a_single_file_are_divided(tmp_path):
    file = write(tmp_path / "a.nii", np.zeros((3, 3, 100), np.uint8))
    parts = [open_source(file, split) for split in ("train", "validation")]
    held_out = sorted(int(e["path"].rpartition(":")[2]) // 8 for e in parts[1])
    trained = {int(e["path"].rpartition(":")[2]) // 8 for e in parts[0]}
    assert not set(held_out) & trained
    assert len(parts[0]) + len(parts[1]) == 100


def test_damaged_volumes_are_bad_examples(tmp_path):
    good = write(tmp_path / "set/train/1.nii", np.zeros((3, 3, 4), np.uint8))
    packed = write(
        tmp_path / "set/train/2.nii.gz",
        np.random.default_rng(0).integers(0, 99, (20, 20, 4), np.int16),
    )
    shutil.copy(good, tmp_path / "set/train/3.nii")
    (tmp_path / "set/train/4.nii").write_bytes(b"not a volume" * 100)
    shutil.copy(good, tmp_path / "set/train/5.nii")
    os.truncate(packed, 1000)
    os.truncate(tmp_path / "set/train/3.nii", 360)
    (tmp_path / "set/train/5.nii").chmod(0)
    source = open_source(str(tmp_path / "set"), "train")
    paths = [
        str(tmp_path / f"set/train/{name}") for name in ("2.nii.gz", "3.nii", "4.nii")
    ]
    reasons = {}
    for i in range(len(source) - 1):
        try:
            source[i]
        except BadImage as error:
            reasons.setdefault(error.filename.rpartition(":")[0], set()).add(
                error.reason
            )
    assert reasons == dict(
        zip(paths, ({"truncated"}, {"truncated"}, {"corrupt"}), strict=True)
    )
    if os.geteuid():
        with pytest.raises(PermissionError):
            source[len(source) - 1]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (":axal", r"names the axis 'axal': expected sagittal, coronal, axial, or 0, 1"),
        (":3", r"names the axis '3'"),
    ],
)
def test_unknown_axes_are_refused(selection, message):
    for function in (check_source, open_source):
        with pytest.raises(UserError, match=message):
            function(str(OWN / "anatomical.nii") + selection, "train")


def test_other_shapes_are_refused_with_the_way_in(tmp_path):
    five = write(tmp_path / "five.nii", np.zeros((3, 3, 3, 2, 2), np.uint8))
    for function in (check_source, open_source):
        with pytest.raises(UserError, match=r"\[3, 3, 3, 2, 2\]: expected a volume"):
            function(five, "train")
    with pytest.raises(NotFoundError, match="3 images: expected more than 8"):
        open_source(str(OWN / "functional.nii"), "train")
    data = (OWN / "anatomical.nii").read_bytes()
    with pytest.raises(UserError, match=r"a volume: expected one image.*PATH:AXIS"):
        decode(data, Decoding())


def test_images_win_over_volumes(tmp_path):
    write(tmp_path / "a" / "1.nii", np.zeros((3, 3, 3), np.uint8))
    assert volumes.is_volumes(str(tmp_path))
    (tmp_path / "a" / "1.png").touch()
    assert not volumes.is_volumes(str(tmp_path))


# ---- DICOM ---------------------------------------------------------------------------


def own_dicom(name):
    pytest.importorskip("pylibjpeg")
    return pytest.importorskip("pydicom.data").get_testdata_file(name)


def test_frames_of_one_file():
    file = own_dicom("rtdose.dcm")  # 15 frames, uint32, 1e-6 Gy
    parts = [open_source(file, split) for split in ("train", "validation")]
    assert sorted(map(len, parts)) == [7, 8]
    images = {e["path"].rpartition(":")[2]: e["image"] for p in parts for e in p}
    assert images["0"][0, 0, 0] == np.float32(1.249)
    assert images["14"].shape == (10, 10, 1)


@pytest.mark.filterwarnings("ignore")
def test_frames_of_a_folder(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    for name in ("examples_ybr_color.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_rle.dcm"):
        (tmp_path / "train").mkdir(exist_ok=True)
        shutil.copy(own_dicom(name), tmp_path / "train")
    place = f"{tmp_path}:frames"
    check_source(place, "train")
    source = open_source(place, "train")
    assert len(source) == 1 + 2 + 30
    frames = pydicom.dcmread(own_dicom("examples_ybr_color.dcm")).pixel_array
    np.testing.assert_array_equal(source[3 + 29]["image"], frames[29])
    plain = open_source(str(tmp_path), "train")  # one image a file
    assert len(plain) == 3
    with pytest.raises(UserError, match="has 2 frames"):
        decode(plain[1]["image"], Decoding(3))
    assert decode(plain[0]["image"], Decoding(3)).shape == (100, 100, 3)


def test_padding_of_frames_is_nodata(tmp_path):
    dataset = pytest.importorskip("pydicom").dcmread(own_dicom("CT_small.dcm"))
    dataset.NumberOfFrames = 20
    dataset.PixelData *= 20
    dataset.save_as(tmp_path / "cine.dcm")
    image = open_source(str(tmp_path / "cine.dcm"), "train")[3]["image"]
    assert read(image, Decoding(1)).nodata == -2000 - 1024
    assert image[0, 0, 0] == -849


def test_unknown_selections_of_dicom_are_refused():
    with pytest.raises(UserError, match="selects 'axial': expected 'frames'"):
        open_source(own_dicom("rtdose.dcm") + ":axial", "train")
