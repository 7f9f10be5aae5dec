"""Zarr 2, Zarr 3 and OME-Zarr, written by zarr 3.1.6: axes, windows, labels, damage."""

import json
import multiprocessing
import pickle

import numpy as np
import pytest

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.registry import decode, read
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError

zarr = pytest.importorskip("zarr")
IMAGES = np.random.default_rng(0).integers(0, 4096, (40, 5, 6, 2), np.uint16)
# Every pixel of a plane tells where it is.
LARGE = (np.arange(1100)[:, None] * 7 + np.arange(1300) * 3).astype(np.uint16)


def write(path, array, version=3, **options):
    chunks = options.pop("chunks", array.shape)
    stored = zarr.create_array(
        str(path),
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        zarr_format=version,
        **options,
    )
    stored[...] = array
    return str(path)


def examples(place):
    """Return the examples of both splits by what their paths end with."""
    found = {}
    for split in ("train", "validation"):
        check_source(place, split)
        for example in open_source(place, split):
            found[example["path"].rpartition(":")[2]] = example
    return found


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", ">f4", "f8"])
def test_stacks_of_images(version, dtype, tmp_path):
    array = (IMAGES // 20).astype(dtype)
    place = write(tmp_path / "set.zarr", array, version, chunks=(7, 5, 6, 2))
    found = examples(place)
    assert sorted(map(int, found)) == list(range(40))
    for index, example in found.items():
        image = example["image"]
        np.testing.assert_array_equal(image, array[int(index)])
        assert image.dtype == np.dtype("f4" if dtype == "f8" else dtype).newbyteorder(
            "="
        )
        assert image.dtype.isnative
        assert example["label"] == -1


def test_groups_with_labels_and_splits(tmp_path):
    root = zarr.create_group(str(tmp_path / "set.zarr"))
    for split, part in (("train", IMAGES[:30]), ("validation", IMAGES[30:])):
        group = root.create_group(split)
        group.create_array("images", data=part)
        # The last class is not in the validation split.
        group.create_array("labels", data=np.arange(len(part)) % (len(part) // 10 + 1))
    place = str(tmp_path / "set.zarr")
    train = open_source(place, "train")
    assert len(train) == 30
    assert train.class_names == ("0", "1", "2", "3")
    assert open_source(place, "validation").class_names == train.class_names
    root["validation/labels"][0] = 4  # now one that training lacks
    lacking = open_source(place, "train")
    assert (lacking.labels, lacking.class_names) == (None, ())
    assert "has classes without images to train on: 4. Exp" in lacking.unlabelled
    assert train[29]["label"] == 1
    np.testing.assert_array_equal(train[29]["image"], IMAGES[29])
    validation = open_source(place, "validation")
    np.testing.assert_array_equal(validation[0]["image"], IMAGES[30])
    for function in (check_source, open_source):
        with pytest.raises(UserError, match=r"names 'image', but .*Did you mean"):
            function(f"{place}:image", "train")


def test_a_large_plane_is_read_in_windows(tmp_path):
    place = write(tmp_path / "slide.zarr", LARGE, chunks=(256, 256))
    found = examples(place)
    # 3 x 3 windows of 512; the last ones end with the plane.
    starts = {(r, c) for r in (0, 512, 588) for c in (0, 512, 788)}
    assert {tuple(map(int, k.split(",")))[1:] for k in found} == starts
    for name, example in found.items():
        _, top, left = map(int, name.split(","))
        expected = LARGE[top : top + 512, left : left + 512]
        np.testing.assert_array_equal(example["image"][:, :, 0], expected)


def test_the_side_of_windows_stands_behind_an_at(tmp_path):
    place = write(tmp_path / "slide.zarr", LARGE, chunks=(256, 256))
    source = open_source(f"{place}:@1200", "train")
    found = examples(f"{place}:@1200")
    assert sorted(found) == ["0,0,0", "0,0,100"]
    assert found["0,0,100"]["image"].shape == (1100, 1200, 1)
    assert len(source) == 1
    with pytest.raises(UserError, match=r"windows of 'x': expected .* such as @512"):
        open_source(f"{place}:@x", "train")


def test_a_window_reads_only_its_chunks(tmp_path):
    place = write(tmp_path / "slide.zarr", LARGE, chunks=(128, 128))
    for chunk in (tmp_path / "slide.zarr" / "c").glob("*/*"):
        row, column = int(chunk.parent.name), int(chunk.name)
        if row >= 4 or column >= 4:
            chunk.write_bytes(b"damaged")
    found = {}
    for split in ("train", "validation"):
        source = open_source(place, split)
        for i, index in enumerate(source.indices):
            found[int(index)] = source, i
    source, i = found[0]
    np.testing.assert_array_equal(source[i]["image"][:, :, 0], LARGE[:512, :512])
    source, i = found[8]
    with pytest.raises(OSError, match=r"slide\.zarr"):
        source[i]


@pytest.mark.parametrize("named", [True, False])
def test_channels_of_a_large_array_come_first(named, tmp_path):
    array = np.stack([LARGE, LARGE + 1, LARGE + 2])
    options = {"dimension_names": ("c", "y", "x")} if named else {}
    place = write(tmp_path / "bands.zarr", array, chunks=(1, 256, 256), **options)
    image = examples(place)["0,512,0"]["image"]
    assert image.shape == (512, 512, 3)
    np.testing.assert_array_equal(image, array[:, 512:1024, :512].transpose(1, 2, 0))


def test_axes_are_named_by_xarray(tmp_path):
    # As xarray writes Zarr 2; small planes stay whole.
    place = write(tmp_path / "set.zarr", IMAGES.transpose(0, 3, 1, 2), 2)
    zarr.open(place, mode="a").attrs["_ARRAY_DIMENSIONS"] = [
        "time",
        "band",
        "lat",
        "lon",
    ]
    np.testing.assert_array_equal(examples(place)["7"]["image"], IMAGES[7])


DIMS = ["time", "lat", "lon"]
VALUES = np.float32([[[270.5, 271], [np.nan, 280]], [[1, 2], [3, 4]]])
# What xarray 2026.9.0 writes of VALUES: stored numbers, fill value and attributes.
XARRAY = {
    "packed, version 2": (2, "<i2", -1, {"scale_factor": 0.5, "add_offset": 270.0}),
    "packed, version 3": (
        *(3, "<i2", 0),
        {"scale_factor": 0.5, "add_offset": 270.0, "_FillValue": -1},
    ),
    "floats, version 2": (2, "<f4", np.nan, {}),
    "floats, version 3": (3, "<f4", 0, {"_FillValue": "AAAAAAAA+H8="}),
}


@pytest.mark.parametrize("name", XARRAY)
def test_values_are_those_of_xarray(name, tmp_path):
    version, dtype, fill, attributes = XARRAY[name]
    stored = VALUES
    if "packed" in name:
        stored = np.where(np.isnan(VALUES), -1, (VALUES - 270) / 0.5)
    options = {"dimension_names": DIMS} if version == 3 else {}
    place = write(
        tmp_path / "set.zarr", stored.astype(dtype), version, fill_value=fill, **options
    )
    if version == 2:
        attributes = attributes | {"_ARRAY_DIMENSIONS": DIMS}
    zarr.open(place, mode="a").attrs.update(attributes)
    for index, example in examples(place).items():
        assert example["image"].dtype == np.float32
        np.testing.assert_array_equal(example["image"][..., 0], VALUES[int(index)])


@pytest.mark.parametrize("version", [2, 3])
def test_zeros_of_xarray_are_values_without_a_fill_value(version, tmp_path):
    options = {"dimension_names": DIMS} if version == 3 else {"fill_value": None}
    stored = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    place = write(tmp_path / "set.zarr", stored, version, **options)
    if version == 2:
        zarr.open(place, mode="a").attrs["_ARRAY_DIMENSIONS"] = DIMS
    image = examples(place)["0"]["image"]
    assert (image.dtype, image[0, 0, 0]) == (np.uint8, 0)


def ome(path, array, axes, version):
    """Write two levels of an image as OME-Zarr 0.4 (Zarr 2) or 0.5 (Zarr 3)."""
    root = zarr.create_group(str(path), zarr_format=2 if version == "0.4" else 3)
    for level, step in (("s0", 1), ("s1", 2)):
        root.create_array(level, data=array[..., ::step, ::step])
    multiscales = [
        {
            "version": version,
            "axes": [{"name": a, "type": "space"} for a in axes],
            "datasets": [{"path": "s0"}, {"path": "s1"}],
        }
    ]
    content = {"multiscales": multiscales}
    root.attrs.update(content if version == "0.4" else {"ome": content})
    return str(path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(version, tmp_path):
    array = np.random.default_rng(0).integers(0, 999, (3, 2, 4, 8, 10), np.uint16)
    place = ome(tmp_path / "cells.zarr", array, "tczyx", version)
    found = examples(place)
    assert len(found) == 3 * 4
    # z is counted through first: plane 6 is t 1, z 2.
    expected = array[1, :, 2].transpose(1, 2, 0)
    np.testing.assert_array_equal(found["6"]["image"], expected)
    root = zarr.open(place, mode="a")
    labels = {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
    if version == "0.4":
        root.attrs["omero"] = labels
    else:
        root.attrs["ome"] = {**root.attrs["ome"], "omero": labels}
    image = examples(place)["6"]["image"]
    assert read(image, Decoding(2)).bands == ("DAPI", "GFP")
    only = decode(image, Decoding(1, bands=("GFP",)))
    np.testing.assert_array_equal(only, expected[:, :, 1:])
    smaller = examples(f"{place}:s1")["6"]["image"]
    np.testing.assert_array_equal(smaller, expected[::2, ::2])


def test_unnamed_axes_of_other_numbers_are_refused(tmp_path):
    place = write(tmp_path / "set.zarr", np.zeros((2, 3, 4, 5, 6), np.uint8))
    with pytest.raises(UserError, match=r"\[2, 3, 4, 5, 6\] without names"):
        open_source(place, "train")


def test_workers_open_the_store_themselves(tmp_path):
    source = open_source(write(tmp_path / "set.zarr", IMAGES), "train")
    expected = source[2]["image"]
    assert len(pickle.dumps(source)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (example,) = pool.map(source.__getitem__, [2])
    np.testing.assert_array_equal(example["image"], expected)


def test_damaged_stores_are_refused(tmp_path):
    place = write(tmp_path / "set.zarr", IMAGES)
    metadata = json.loads((tmp_path / "set.zarr" / "zarr.json").read_text())
    metadata["data_type"] = "no_such_type"
    (tmp_path / "set.zarr" / "zarr.json").write_text(json.dumps(metadata))
    for function in (check_source, open_source):
        with pytest.raises(UserError, match="cannot be read by zarr"):
            function(place, "train")


def test_chunks_that_would_take_minutes_are_refused(tmp_path):
    """Such as of damaged metadata: zarr goes over all of them."""
    group = zarr.create_group(str(tmp_path / "set.zarr"))
    group.create_array("images", data=IMAGES, chunks=(1, 5, 6, 2))
    labels = group.create_array("labels", shape=40, dtype="i4", chunks=40)
    labels[:] = 0
    path = tmp_path / "set.zarr" / "images" / "zarr.json"
    text = path.read_text()
    changed = json.loads(text)
    changed["shape"] = [40, 500, 600, 2]
    changed["chunk_grid"]["configuration"]["chunk_shape"] = [1, 1, 1, 2]
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"300,000 chunks of \[1, 1, 1, 2\] .*larger"):
        open_source(str(tmp_path / "set.zarr"), "train")
    path.write_text(text)
    path = tmp_path / "set.zarr" / "labels" / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [10**9]}))
    with pytest.raises(UserError, match=r"shape \[1000000000\]: expected \[40\]"):
        open_source(str(tmp_path / "set.zarr"), "train")
