"""LMDB environments written by lmdb 3.0.0: layouts, labels, processes, damage."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError
from tests.images import encoded
from tests.stores import SIZE, contents, trains_and_packs

lmdb = pytest.importorskip("lmdb")
NUM_IMAGES = 30
# Of Caffe's Datum: channels 3, height 1, width 1, data b"abc", label 5.
DATUM = bytes.fromhex("080310011801220361626328 05".replace(" ", ""))


def png(value):
    return encoded(Image.fromarray(np.full(SIZE, value, np.uint8)))


def write(path, values, subdir=True):
    """Write {key: bytes} as a folder with data.mdb, or as one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), map_size=2**24, subdir=subdir) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)
    return str(path)


def numbered(values, label=lambda value: b"%d" % (value % 2)):
    """Return image-000000001, label-000000001 … and num-samples."""
    found = {b"num-samples": b"%d" % len(values)}
    for i, value in enumerate(values, start=1):
        found[b"image-%09d" % i] = png(value)
        found[b"label-%09d" % i] = label(value)
    return found


@pytest.mark.parametrize("subdir", [True, False])
def test_numbered_images_and_labels(subdir, tmp_path):
    path = write(tmp_path / "set.lmdb", numbered(range(NUM_IMAGES)), subdir)
    expected = {value: value % 2 for value in range(NUM_IMAGES)}
    trains_and_packs(path, tmp_path / "packed", expected)


def test_words_are_no_classes(tmp_path):
    path = write(tmp_path / "set", numbered(range(4), lambda value: b"word"))
    source = open_source(path, "train")
    assert (source.labels, source.class_names) == (None, ())
    assert "has labels that are text, not numbers of classes" in source.unlabelled


def test_keys_are_sorted_and_their_folders_are_classes(tmp_path):
    names = {b"%s/%d.png" % (b"ab"[i % 2 :][:1], i): png(i) for i in range(9)}
    path = write(tmp_path / "set", names | {b"__len__": b"9"})
    assert contents(path) == {value: value % 2 for value in range(9)}
    source = open_source(path, "train")
    assert [*source.keys] == sorted(source.keys)
    assert source.class_names == ("a", "b")
    assert len(pickle.dumps(source)) < 1000


def test_keys_of_any_bytes(tmp_path):
    keys = [value.to_bytes(4, "big") for value in (0, 1, 255, 2**31)]
    path = write(tmp_path / "set", {key: png(i) for i, key in enumerate(keys)})
    assert contents(path) == dict.fromkeys(range(4), -1)


@pytest.mark.parametrize("names", ["{}.lmdb", "{}", "bedroom_{}_lmdb"])
def test_environments_of_splits(names, tmp_path):
    write(tmp_path / names.format("train"), {b"%d" % i: png(i) for i in range(6)})
    write(tmp_path / names.format("val"), {b"%d" % i: png(i) for i in range(6, 8)})
    assert contents(str(tmp_path)) == dict.fromkeys(range(8), -1)
    assert len(open_source(str(tmp_path), "train")) == 6
    with pytest.raises(FileNotFoundError, match="split='test' of"):
        check_source(str(tmp_path), "test")


def read_all(source):
    return [source[i]["image"] for i in range(len(source))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_open_it_themselves(method, tmp_path):
    path = write(tmp_path / "set", {b"%d" % i: png(i) for i in range(9)})
    source = open_source(path, "train")
    expected = read_all(source)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_all, [source] * 2) == [expected] * 2
    assert read_all(source) == expected


def test_large_values_are_bad_images(tmp_path):
    path = write(tmp_path / "set", {b"a": bytes(1001), b"b": bytes(1001)})
    with pytest.raises(BadImage, match="has more than") as raised:
        open_source(path, "train", max_bytes=1000)[0]
    assert raised.value.reason == "too large"
    assert raised.value.filename.startswith(f"{path}/data.mdb:")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pickle.dumps([1]), "pickled Python objects, which are never unpickled"),
        (DATUM, "Datum messages of Caffe, which are not read"),
    ],
)
def test_other_values_are_refused(value, message, tmp_path):
    path = write(tmp_path / "set", {b"1": value, b"2": value})
    with pytest.raises(UserError, match=message):
        open_source(path, "train")


def test_damaged_files_are_refused(tmp_path):
    """lmdb 3.0.0 opens a truncated file; reading it ends the process with SIGBUS."""
    path = write(tmp_path / "set", {b"%d" % i: png(i) * 50 for i in range(9)})
    file = os.path.join(path, "data.mdb")
    os.truncate(file, 20_000)
    with pytest.raises(UserError, match="is truncated: it has 20,000 bytes, expected"):
        open_source(path, "train")
    with open(file, "wb") as opened:
        opened.write(b"x" * 20_000)
    with pytest.raises(UserError, match="cannot be opened by lmdb"):
        open_source(path, "train")
    os.truncate(file, 0)
    with pytest.raises(UserError, match=r"cannot be opened by lmdb|is truncated"):
        open_source(path, "train")
