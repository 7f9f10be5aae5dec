"""Folders of .npy files, and single .npy files: layouts, dtypes, labels, and damage."""

import os
import pickle

import numpy as np
import pytest

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.sources import cache
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import NotFoundError, UserError
from tests.images import gradient, npy, write_image

IMAGES = np.random.default_rng(0).normal(size=(40, 5, 6, 2)).astype(np.float32)


def write(folder, name, array):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(npy(array))
    return str(path)


def fails(dataset, split="train"):
    """Return the one error of `check_source` and `open_source`."""
    messages = set()
    for function in (check_source, open_source):
        with pytest.raises(UserError) as raised:
            function(str(dataset), split)
        messages.add(str(raised.value))
    (message,) = messages
    return message


# ---- A folder of arrays --------------------------------------------------------------


def test_folders_follow_the_rules_of_images(tmp_path):
    for i, name in enumerate(("train/b/1.npy", "train/a/2.NPY", "val/b/3.npy")):
        write(tmp_path, name, IMAGES[i])
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an array")
    write(tmp_path, "train/.hidden/4.npy", IMAGES[4])
    check_source(str(tmp_path), "train")
    train = open_source(str(tmp_path), "train")
    assert train.class_names == ("a", "b")
    assert train.labels.tolist() == [0, 1]
    assert [*train.paths] == ["a/2.NPY", "b/1.npy"]
    example = train[0]
    np.testing.assert_array_equal(example["image"], IMAGES[1])
    assert example["label"] == 0
    assert example["path"] == str(tmp_path / "train" / "a" / "2.NPY")
    assert open_source(str(tmp_path), "validation").labels.tolist() == [1]
    assert "found train, val" in str(fails(tmp_path, "test"))


def test_folders_without_splits_are_divided_by_hash(tmp_path):
    for i in range(40):
        write(tmp_path, f"{i}.npy", IMAGES[i, :, :, 0])
    parts = [open_source(str(tmp_path), split) for split in ("train", "validation")]
    assert parts[0].labels is None
    found = {int(p[:-4]): part[i] for part in parts for i, p in enumerate(part.paths)}
    assert sorted(found) == list(range(40))
    for index, example in found.items():
        assert example["label"] == -1
        np.testing.assert_array_equal(example["image"], IMAGES[index, :, :, :1])
    copy = pickle.loads(pickle.dumps(parts[0]))
    np.testing.assert_array_equal(copy[3]["image"], parts[0][3]["image"])


@pytest.mark.parametrize("dtype", ["u1", ">f4", "<f8", ">f2"])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_folders_of_every_dtype_and_layout(dtype, layout, tmp_path):
    array = (gradient(5, 6, 2) if dtype == "u1" else IMAGES[0]).astype(dtype)
    write(tmp_path, "train/1.npy", np.array(array, order=layout))
    image = open_source(str(tmp_path), "train")[0]["image"]
    np.testing.assert_array_equal(image, array)
    assert image.dtype == (np.uint8 if dtype == "u1" else np.float32)
    assert image.dtype.isnative
    assert decode(image, Decoding(2)) is image


def test_images_win_over_arrays(tmp_path):
    write(tmp_path, "train/a/1.npy", IMAGES[0])
    write_image(tmp_path / "train" / "b" / "2.png")
    source = open_source(str(tmp_path), "train")
    assert [*source.paths] == ["b/2.png"]


def test_a_folder_without_images_says_what_it_has(tmp_path):
    write(tmp_path, "train/a/1.npy", IMAGES[0])
    write(tmp_path, "train/a/2.npy", IMAGES[0])
    (tmp_path / "train" / "a" / "3.EXR").touch()
    (tmp_path / "train" / "README").touch()
    write_image(tmp_path / "val" / "2.png")
    message = fails(tmp_path)
    assert "has no images: expected .jpg" in message
    assert "It has 2 .npy, " in message
    assert "1 .exr" in message
    assert "1 files without an ending" in message
    assert "For .npy arrays, name a local folder that has arrays and no images" in (
        message
    )


def test_a_split_without_arrays_says_what_it_has(tmp_path):
    write(tmp_path, "train/1.npy", IMAGES[0])
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "1.npz").touch()
    message = fails(tmp_path, "val")
    assert "val' has no arrays: expected .npy files" in message
    assert "It has 1 .npz." in message


def test_damaged_files_are_bad_examples_with_their_path(tmp_path):
    for name in ("1", "2", "3", "4"):
        write(tmp_path, f"train/{name}.npy", IMAGES[0])
    os.truncate(tmp_path / "train" / "2.npy", 200)
    (tmp_path / "train" / "3.npy").write_bytes(b"")
    (tmp_path / "train" / "4.npy").write_bytes(b"not an array")
    source = open_source(str(tmp_path), "train")
    assert source[0]["image"].shape == (5, 6, 2)
    for index, reason in ((1, "truncated"), (2, "truncated"), (3, "corrupt")):
        with pytest.raises(BadImage) as raised:
            source[index]
        assert raised.value.reason == reason
        assert raised.value.filename == str(tmp_path / "train" / f"{index + 1}.npy")


def test_other_dtypes_and_shapes_end_a_run(tmp_path):
    path = write(tmp_path, "train/1.npy", IMAGES[0].astype(complex))
    with pytest.raises(UserError, match=r"1.npy' has dtype complex128: expected"):
        check_source(str(tmp_path), "train")
    write(tmp_path, "train/1.npy", IMAGES)
    source = open_source(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"\[40, 5, 6, 2\]: expected one im") as raised:
        source[0]
    assert path in str(raised.value)
    assert not isinstance(raised.value, BadImage)


def test_the_index_of_arrays_is_not_that_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_MIN_IMAGES", 1)
    write(tmp_path, "set/train/1.npy", IMAGES[0])
    then = os.stat(tmp_path / "set" / "train").st_mtime_ns - 60 * 10**9
    for _ in range(2):
        os.utime(tmp_path / "set" / "train", ns=(then, then))
        assert len(open_source(str(tmp_path / "set"), "train")) == 1
    write_image(tmp_path / "set" / "train" / "2.png")
    os.utime(tmp_path / "set" / "train", ns=(then, then))
    assert [*open_source(str(tmp_path / "set"), "train").paths] == ["2.png"]


def test_manifests_list_arrays_too(tmp_path):
    for name in ("a b.npy", "c.npy"):
        write(tmp_path, name, IMAGES[0])
    (tmp_path / "list.txt").write_text("a b.npy\nc.npy\n")
    for split in ("train", "validation"):
        (example,) = open_source(str(tmp_path / "list.txt"), split)
        np.testing.assert_array_equal(decode(example["image"], Decoding(2)), IMAGES[0])


# ---- One file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "taken"),
    [
        *(("u1", "uint8"), ("<f4", "float32"), (">f4", "float32"), (">f8", "float32")),
        *((">u2", "uint16"), ("<i2", "int16"), (">i4", "int32"), (">i8", "int32")),
    ],
)
@pytest.mark.parametrize("layout", ["C", "F"])
def test_one_file_holds_all_images(dtype, taken, layout, tmp_path):
    array = (IMAGES * 50 + 100).astype(dtype)
    file = write(tmp_path, "set.npy", np.array(array, order=layout))
    parts = []
    for split in ("train", "validation"):
        check_source(file, split)
        parts.append(open_source(file, split))
    indices = np.concatenate([part.indices for part in parts])
    assert sorted(indices.tolist()) == list(range(40))
    assert 1 <= len(parts[1]) <= 8
    for part in parts:
        assert (part.labels, part.class_names) == (None, ())
        for i, index in enumerate(part.indices):
            image = part[i]["image"]
            np.testing.assert_array_equal(image, array[index].astype(image.dtype))
            assert image.dtype == taken
            assert image.dtype.isnative
            assert image.flags.c_contiguous
            assert part[i]["label"] == -1


def test_labels_come_from_a_neighbouring_file(tmp_path):
    file = write(tmp_path, "set.npy", IMAGES)
    labels = np.arange(40) % 3
    write(tmp_path, "set_labels.npy", labels)
    for split in ("train", "validation"):
        check_source(file, split)
        source = open_source(file, split)
        assert source.class_names == ("0", "1", "2")
        assert source.labels.tolist() == labels[source.indices].tolist()
        assert source.labels.dtype == np.int32
        assert source[0]["label"] == source.labels[0]


def test_new_images_do_not_move_others_between_splits(tmp_path):
    file = write(tmp_path, "set.npy", IMAGES)
    before = set(open_source(file, "train").indices.tolist())
    write(tmp_path, "set.npy", np.concatenate([IMAGES, IMAGES]))
    assert before <= set(open_source(file, "train").indices.tolist())


def test_pickled_sources_map_the_file_themselves(tmp_path):
    file = write(tmp_path, "set.npy", np.repeat(IMAGES, 20, axis=1))
    source = open_source(file, "train")
    expected = source[2]["image"]
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    np.testing.assert_array_equal(pickle.loads(pickled)[2]["image"], expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IMAGES[0], r"shape \[5, 6, 2\]: expected images \[n, h, w, c\]. Add the"),
        (IMAGES[:0], r"shape \[0, 5, 6, 2\]: expected images"),
        (IMAGES.astype(complex), r"dtype complex128: expected integers"),
    ],
)
def test_other_files_are_refused(array, message, tmp_path):
    file = write(tmp_path, "set.npy", array)
    for function in (check_source, open_source):
        with pytest.raises(UserError, match=message):
            function(file, "train")


def test_objects_are_never_unpickled(tmp_path):
    file = tmp_path / "set.npy"
    np.save(file, np.array([{}], object), allow_pickle=True)
    assert "dtype object" in fails(file)
    write(tmp_path, "set.npy", IMAGES)
    np.save(tmp_path / "set_labels.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"set_labels.npy' cannot be read \(Object arr"):
        open_source(str(file), "train")


def test_a_truncated_file_is_an_error_before_the_run(tmp_path):
    file = write(tmp_path, "set.npy", IMAGES)
    os.truncate(file, 5000)
    assert "set.npy' is truncated: it has 5,000 bytes, expected 9,728" in fails(file)
    os.truncate(file, 20)
    assert "set.npy': The header of a .npy file cannot be read" in fails(file)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(39), r"int64 \[39\]: expected integers \[40\], one for each image"),
        (np.zeros(40), r"float64 \[40\]: expected integers"),
        (np.arange(40) - 1, "from -1 to 38: expected classes, counted from 0"),
        (np.arange(40) * 10**6, "from 0 to 39000000: expected classes"),
    ],
)
def test_bad_labels_are_errors(labels, message, tmp_path):
    file = write(tmp_path, "set.npy", IMAGES)
    write(tmp_path, "set_labels.npy", labels)
    with pytest.raises(UserError, match=rf"set_labels.npy' is {message}"):
        open_source(file, "train")


def test_a_file_has_two_splits_and_is_local(tmp_path):
    file = write(tmp_path, "set.npy", IMAGES)
    assert "split='test'" in fails(file, "test")
    assert "array at a URL: expected a local file" in fails("gs://bucket/set.npy")
    with pytest.raises(NotFoundError, match="does not exist"):
        open_source(str(tmp_path / "none.npy"), "train")
