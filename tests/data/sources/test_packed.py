"""Packed data sets: exact reads, and damage."""

import concurrent.futures
import json
import os
import pickle
import re
import shutil

import numpy as np
import pytest

from simmim_jax.cli.pack import main
from simmim_jax.data.codecs.base import BandArray, Decoding, Raster
from simmim_jax.data.codecs.registry import read
from simmim_jax.data.sources import packed
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError
from tests.batches import train_iterator
from tests.images import crops, write_photographs
from tests.packing import fails


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """Pack photographs into several shards."""
    root, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("jpegs")
    for name in ("china", "flower"):
        (root / name).mkdir()
        for i, image in enumerate(crops(name, 40)):
            image.save(root / name / f"{i:03}.jpg")
    main([str(root), str(out), "--short_side=96", "--shard_mb=0.05"])
    return out


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """Pack a bundled data set of arrays unchanged."""
    out = tmp_path_factory.mktemp("pixels")
    splits = "--splits=val=validation,unlabelled"
    main(["bundled:climate", str(out), splits, "--format=raw", "--workers=2"])
    return out


def test_arrays_are_packed_unchanged(pixels):
    for split in ("validation", "unlabelled"):  # The first one was packed as "val".
        expected, got = (
            open_source(name, split) for name in ("bundled:climate", str(pixels))
        )
        images = np.stack([got[i]["image"] for i in range(len(got))])
        np.testing.assert_array_equal(images, expected.images)
        assert got.class_names == expected.class_names
        assert "path" not in got[0]
    assert got.labels is None
    assert got[0]["label"] == -1
    labels = open_source(str(pixels), "validation").labels
    np.testing.assert_array_equal(
        labels, open_source("bundled:climate", "validation").labels
    )


@pytest.mark.parametrize(
    ("image", "path"),
    [
        (b"bytes of a file", "china/\udcff é.jpg"),
        (b"bytes of a file", ""),
        (np.arange(30, dtype=np.uint8).reshape(2, 3, 5), "a"),
    ],
)
def test_records_are_lossless(image, path):
    record = packed.to_record(image, -1, path)
    example = packed.from_record(record)
    np.testing.assert_array_equal(example["image"], image)
    assert example["label"] == -1
    assert example.get("path", "") == path
    for part in (record[:14], record[: -len(image)]):
        with pytest.raises(ValueError, match="record"):
            packed.from_record(part)


@pytest.mark.parametrize(
    ("bands", "nodata", "dtype"),
    [(("red", "é"), 0.0, "uint8"), ((), -32768.0, "int16"), (("a", "b"), None, "f4")],
)
def test_records_keep_names_and_nodata(bands, nodata, dtype):
    pixels = np.arange(12).reshape(2, 3, 2).astype(dtype)
    image = BandArray.of(Raster(pixels, bands, nodata))
    found = packed.from_record(packed.to_record(image, 4, "a/b"))
    assert (found["label"], found["path"]) == (4, "a/b")
    raster = read(found["image"], Decoding())
    np.testing.assert_array_equal(raster.pixels, pixels)
    assert raster.pixels.dtype == dtype
    assert (raster.bands, raster.nodata) == (bands, nodata)


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_damaged_descriptions_are_user_errors(cut):
    image = BandArray.of(Raster(np.zeros((2, 3, 1), np.int16), ("a",), -1.0))
    record = bytearray(packed.to_record(image, 0, ""))
    if cut < 0:
        del record[cut:]
    else:
        record[15 + cut] = ord("{")
    with pytest.raises(UserError, match="record"):
        packed.from_record(bytes(record))


# ---- Reading -------------------------------------------------------------------------


def test_shards_allow_random_access(jpegs):
    train = open_source(str(jpegs), "train")
    assert len(train.shards) > 3
    for shard in train.shards:
        options = packed.open_shard(str(jpegs / shard)).writer_options_string()
        assert "group_size:1," in options
        assert "uncompressed" in options


def test_threads_and_pickled_sources_read_the_same(jpegs):
    train = open_source(str(jpegs), "train")
    expected = [train[i]["image"] for i in range(len(train))]
    assert len(train.labels) == len(train)
    copy = pickle.loads(pickle.dumps(train))
    assert len(pickle.dumps(copy)) < 4000
    order = np.random.default_rng(0).integers(0, len(train), 4000)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda i: copy[i]["image"], order)
        assert list(found) == [expected[i] for i in order]
    for index in (-1, len(train)):
        with pytest.raises(IndexError):
            train[index]


def test_worker_processes_make_the_same_batches(jpegs):
    def batches(num_workers):
        iterator = train_iterator(
            open_source(str(jpegs), "train"),
            batch_size=32,
            image_size=(32, 32),
            channels=3,
            scale=(0.5, 1.0),
            ratio=(3 / 4, 4 / 3),
            interpolation="bicubic",
            fast_decode=True,
            seed=0,
            num_workers=num_workers,
        )
        taken = [next(iterator) for _ in range(4)]
        iterator.close()
        return taken

    for one, other in zip(batches(0), batches(2), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])
        assert one["image"].std() > 20


def test_unknown_splits_are_errors(pixels):
    for function in (check_source, open_source):
        with pytest.raises(ValueError, match=r"split='test'.*val, unlabelled"):
            function(str(pixels), "test")


def test_other_folders_with_a_dataset_json_are_folders_of_images(tmp_path):
    write_photographs(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "dataset.json").write_text('{"labels": [["a.jpg", 1]]}')
    assert len(open_source(str(tmp_path), "train")) == 2


def test_later_formats_are_refused(pixels, tmp_path):
    index = json.loads((pixels / "dataset.json").read_text())
    index["format_version"] += 1
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="newer simmim_jax"):
        open_source(str(tmp_path), "val")


# ---- Damage --------------------------------------------------------------------------


@pytest.fixture
def damaged(pixels, tmp_path):
    """Copy the data set; return the copy and two shards of the same size."""
    copy = tmp_path / "copy"
    shutil.copytree(pixels, copy)
    _, first, second, *_ = sorted(copy.glob("unlabelled*.array_record"))
    return copy, first, second


def test_a_flipped_bit_is_found_by_verification_and_by_reads(damaged):
    folder, shard, _ = damaged
    data = bytearray(shard.read_bytes())
    data[300_000] ^= 1
    shard.write_bytes(data)
    error = fails(folder)
    assert shard.name in error
    assert re.search("corrupt.*pack .* again", error)
    source = open_source(str(folder), "unlabelled")
    bad = []
    for i in range(len(source)):
        try:
            source[i]
        except OSError as error:
            bad.append(error.filename)
    assert bad == [str(shard)]


def test_swapped_shards_are_found(damaged):
    folder, first, second = damaged
    sizes = {path.stat().st_size for path in (first, second)}
    assert len(sizes) == 1
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    assert "checksum" in fails(folder)


def test_labels_that_differ_from_the_records_are_found(damaged):
    folder, *_ = damaged
    labels = np.load(folder / "val-labels.npy")
    labels[0] = (labels[0] + 1) % 6
    np.save(folder / "val-labels.npy", labels)
    assert "other labels" in fails(folder)


def test_an_incomplete_copy_is_an_error(damaged):
    folder, shard, second = damaged
    os.truncate(shard, 1000)
    for function in (open_source, check_source):
        with pytest.raises(FileNotFoundError, match=r"has 1,000 bytes.*Copy it again"):
            function(str(folder), "unlabelled")
    with pytest.raises(OSError, match="not a complete shard"):
        packed.open_shard(str(shard))
    second.unlink()
    assert "has 1,000 bytes: expected" in fails(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("format_version"),
        lambda index: index.pop("splits"),
        lambda index: index.update(format_version="1"),
        lambda index: index.update(splits=[]),
        lambda index: index["splits"]["train"].pop("labels"),
        lambda index: index["splits"]["train"].update(class_names=[1]),
        lambda index: index["splits"]["train"].update(shards={}),
        lambda index: index["splits"]["train"]["shards"][0].update(file="../x"),
        lambda index: index["splits"]["train"]["shards"][0].update(bytes=10**30),
        lambda index: index["splits"]["train"]["shards"][0].update(num_examples=-1),
        lambda index: index["splits"]["train"]["shards"][0].pop("blake2b"),
    ],
)
def test_a_damaged_index_is_refused(change, jpegs, tmp_path):
    index = json.loads((jpegs / packed.INDEX).read_text())
    change(index)
    (tmp_path / packed.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"{tmp_path}/dataset.json' is damaged .*Copy"):
        packed.read_index(str(tmp_path))


def test_an_index_that_is_no_json_is_refused(jpegs, tmp_path):
    text = (jpegs / packed.INDEX).read_text()
    for damaged in (text[:-2], text.replace(":", "", 2), text + "\0"):
        (tmp_path / packed.INDEX).write_text(damaged)
        with pytest.raises(UserError, match=r"dataset.json' is damaged \(JSONDecode"):
            open_source(str(tmp_path), "train")


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\1\0\4\0{({\n"])
def test_damaged_labels_are_refused(content, jpegs, tmp_path):
    shutil.copytree(jpegs, tmp_path / "copy")
    (tmp_path / "copy" / "train-labels.npy").write_bytes(content)
    source = open_source(str(tmp_path / "copy"), "train")
    with pytest.raises(UserError, match=r"train-labels.npy' cannot be read.*Copy it"):
        source.labels  # noqa: B018
    np.save(tmp_path / "copy" / "train-labels.npy", np.full(len(source), 2, np.int32))
    source = open_source(str(tmp_path / "copy"), "train")
    with pytest.raises(UserError, match=r"the label 2, but dataset.json has 2 classes"):
        source.labels  # noqa: B018
