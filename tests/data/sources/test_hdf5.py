"""HDF5 files written by h5py 3.16.0 (HDF5 2.0): layouts, dtypes, labels, damage."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import NotFoundError, UserError

h5py = pytest.importorskip("h5py")
IMAGES = np.random.default_rng(0).normal(size=(40, 5, 6, 2)).astype(np.float32)


def write(path, **arrays):
    """Write data sets; "__" in a name is "/"."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array
    return str(path)


def both(place):
    """Return the examples of both splits by their index in the file."""
    found = {}
    for split in ("train", "validation"):
        check_source(place, split)
        for example in open_source(place, split):
            found[int(example["path"].rpartition(":")[2])] = example
    assert sorted(found) == list(range(len(found)))
    return [found[i] for i in range(len(found))]


def fails(place, split="train"):
    messages = set()
    for function in (check_source, open_source):
        with pytest.raises(UserError) as raised:
            function(place, split)
        messages.add(str(raised.value))
    (message,) = messages
    return message


@pytest.mark.parametrize(
    ("given", "taken"),
    [("u1", "u1"), (">u2", "u2"), (">i2", "i2"), ("<f8", "f4"), ("<f2", "f4")],
)
def test_values_survive(given, taken, tmp_path):
    array = (IMAGES * 20).astype(given) if given != "u1" else np.uint8(IMAGES * 9 + 99)
    place = write(tmp_path / "set.h5", images=array)
    for image, expected in zip(both(place), array, strict=True):
        np.testing.assert_array_equal(image["image"], expected.astype(taken))
        assert image["image"].dtype == np.dtype(taken)
        assert image["image"].dtype.isnative
        assert image["image"].flags.c_contiguous


def test_grey_images_have_one_channel(tmp_path):
    place = write(tmp_path / "set.hdf5", images=IMAGES[..., 0])
    np.testing.assert_array_equal(both(place)[7]["image"], IMAGES[7, :, :, :1])


def test_chunked_and_compressed_sets(tmp_path):
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file.create_dataset("x", data=IMAGES, chunks=(3, 5, 6, 2), compression="gzip")
    for image, expected in zip(both(str(tmp_path / "set.h5")), IMAGES, strict=True):
        np.testing.assert_array_equal(image["image"], expected)


def test_the_name_stands_behind_a_colon(tmp_path):
    file = write(tmp_path / "set.h5", a=IMAGES, b__c=IMAGES + 1, mean=np.zeros(3))
    message = fails(file)
    assert "has 2 arrays of images, [n, h, w] or [n, h, w, c]: expected one" in message
    assert "PATH:NAME; it has a [40, 5, 6, 2] float32, b/c" in message
    np.testing.assert_array_equal(both(f"{file}:b/c")[0]["image"], IMAGES[0] + 1)
    assert "has a [40, 5, 6, 2] float32" in fails(f"{file}:b/d")
    assert "Did you mean" in fails(f"{file}:b/d")
    assert "'mean' of" in fails(f"{file}:mean")
    assert "shape [3]: expected [n, h, w] or" in fails(f"{file}:mean")


@pytest.mark.parametrize("name", ["images_labels", "labels", "label"])
@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_labels_stand_beside_the_images(name, shape, tmp_path):
    labels = np.arange(40) % 3
    arrays = {"images": IMAGES, name: labels.reshape(shape)}
    place = write(tmp_path / "set.h5", **arrays)
    assert [example["label"] for example in both(place)] == labels.tolist()
    source = open_source(place, "train")
    assert source.class_names == ("0", "1", "2")
    assert source.labels.dtype == np.int32
    assert source.labels.tolist() == [example["label"] for example in source]


def test_groups_may_be_splits(tmp_path):
    place = write(
        tmp_path / "set.h5",
        **{"train__images": IMAGES[:30], "train__labels": np.arange(30)},
        **{"test__images": IMAGES[30:], "test__labels": np.arange(10)},
    )
    train = open_source(place, "train")
    assert len(train) == 30
    np.testing.assert_array_equal(train[29]["image"], IMAGES[29])
    test = open_source(place, "test")
    assert test[2]["label"] == 2
    assert test.class_names == train.class_names  # of which it lacks most
    assert "found train, test" in fails(place, "validation")


def test_a_class_without_images_to_train_on_is_refused_as_for_folders(tmp_path):
    labels = np.arange(40) % 3
    arrays = {"validation__images": IMAGES[30:], "validation__labels": labels[30:]}
    for known in (2, 3):
        arrays |= {"train__images": IMAGES[:30], "train__labels": labels[:30] % known}
        place = write(tmp_path / f"{known}.h5", **arrays)
        train = open_source(place, "train")
        said = f"{place!r} has classes without images to train on: 2. Expected images"
        assert train.unlabelled.startswith(said) == (known == 2)
        assert train.class_names == (() if known == 2 else ("0", "1", "2"))
        assert pickle.loads(pickle.dumps(train)).unlabelled == train.unlabelled
        assert len(open_source(place, "validation").class_names) == 3


def test_pickled_sources_open_the_file_themselves(tmp_path):
    source = open_source(write(tmp_path / "set.h5", images=IMAGES), "train")
    expected = source[2]["image"]
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled)[2]["image"], expected)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (example,) = pool.map(source.__getitem__, [2])
    np.testing.assert_array_equal(example["image"], expected)


def test_new_images_do_not_move_others_between_splits(tmp_path):
    place = write(tmp_path / "set.h5", images=IMAGES)
    before = set(open_source(place, "train").indices.tolist())
    write(tmp_path / "set.h5", images=np.concatenate([IMAGES, IMAGES]))
    assert before <= set(open_source(place, "train").indices.tolist())


def test_damaged_files_are_refused_and_damaged_chunks_are_bad_examples(tmp_path):
    place = str(tmp_path / "set.h5")
    with h5py.File(place, "w") as file:
        options = {"chunks": (1, 5, 6, 2), "compression": "gzip", "fletcher32": True}
        images = file.create_dataset("x", data=IMAGES, **options)
        chunk = images.id.get_chunk_info(3)
    with open(place, "r+b") as file:
        file.seek(chunk.byte_offset + 20)
        file.write(b"\xff" * 8)
    source = open_source(place, "train")
    bad = source.indices.tolist().index(3)
    with pytest.raises(OSError, match="filter"):
        source[bad]
    np.testing.assert_array_equal(source[bad + 1]["image"], IMAGES[4])
    # HDF5 goes on with a file that is open.
    other = write(tmp_path / "other.h5", images=IMAGES)
    os.truncate(other, 1000)
    assert "cannot be read by h5py" in fails(other)
    (tmp_path / "other.h5").write_bytes(b"not HDF5")
    assert "cannot be read by h5py" in fails(other)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IMAGES.astype(complex), "has 0 arrays of images"),
        (IMAGES[0, 0], "has 0 arrays of images"),
        (IMAGES[:1], "a single image"),
    ],
)
def test_other_arrays_are_refused(array, message, tmp_path):
    place = write(tmp_path / "set.h5", images=array)
    with pytest.raises((UserError, NotFoundError), match=message):
        open_source(place, "train")


# ---- A folder of files ---------------------------------------------------------------


def test_folders_of_files(tmp_path):
    root = tmp_path / "set"
    for folder in ("train/a", "train/b", "validation/a"):
        (root / folder).mkdir(parents=True)
    write(root / "train/a/1.h5", image=IMAGES[0])
    write(root / "train/b/2.hdf5", image=IMAGES[1:4])
    write(root / "validation/a/3.h5", image=IMAGES[4, :, :, 0])
    check_source(str(root), "train")
    source = open_source(str(root), "train")
    assert source.class_names == ("a", "b")
    assert source.labels.tolist() == [0, 1, 1, 1]
    for copy in (source, pickle.loads(pickle.dumps(source))):
        for i in range(4):
            np.testing.assert_array_equal(copy[i]["image"], IMAGES[i])
    (held_out,) = open_source(str(root), "validation")
    np.testing.assert_array_equal(held_out["image"], IMAGES[4, :, :, :1])


def test_folders_of_files_with_several_sets_and_damage(tmp_path):
    (tmp_path / "set/train").mkdir(parents=True)
    for i in range(3):
        write(tmp_path / f"set/train/{i}.h5", image=IMAGES[i], mask=IMAGES[i] > 0)
    (tmp_path / "set/train/1.h5").write_bytes(b"damaged")
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / "set"), "train")
    message = str(error.value)
    assert "has 2 arrays of images, [h, w] or [h, w, c] or [n, h, w, c]" in message
    assert "PATH:NAME; it has image [5, 6, 2] float32, mask" in message
    source = open_source(f"{tmp_path}/set:image", "train")
    assert len(source) == 3
    np.testing.assert_array_equal(source[2]["image"], IMAGES[2])
    with pytest.raises(BadImage, match="cannot be read by h5py") as raised:
        source[1]
    assert raised.value.filename == str(tmp_path / "set/train/1.h5:0")
