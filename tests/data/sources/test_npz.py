"""Files of np.savez and np.savez_compressed (NumPy 2.4): names, layouts, damage."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError

IMAGES = np.random.default_rng(0).normal(size=(40, 5, 6, 2)).astype(np.float32)
SAVE = {False: np.savez, True: np.savez_compressed}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def both(place):
    """Return the examples of both splits by their index in the file."""
    found = {}
    for split in ("train", "validation"):
        check_source(place, split)
        for example in open_source(place, split):
            found[int(example["path"].rpartition(":")[2])] = example
    return [found[i] for i in range(len(found))]


def fails(place, split="train"):
    messages = set()
    for function in (check_source, open_source):
        with pytest.raises(UserError) as raised:
            function(str(place), split)
        messages.add(str(raised.value))
    (message,) = messages
    return message


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("given", "taken"),
    [("u1", "uint8"), (">u2", "uint16"), ("<i2", "int16"), (">f8", "float32")],
)
def test_values_of_a_stack_survive(given, taken, order, compressed, tmp_path):
    array = (IMAGES * 20 + 99).astype(given)
    place = str(tmp_path / "set.npz")
    SAVE[compressed](place, x=np.array(array, order=order))
    found = both(place)
    assert len(found) == 40
    for example, expected in zip(found, array.astype(taken), strict=True):
        np.testing.assert_array_equal(example["image"], expected)
        assert example["image"].dtype == taken
        assert example["image"].flags.c_contiguous
    source = open_source(place, "train")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])


def test_compressed_stacks_are_unpacked_once(tmp_path, monkeypatch):
    place = str(tmp_path / "set.npz")
    np.savez_compressed(place, IMAGES)
    both(place)
    (unpacked,) = (tmp_path / "cache" / "simmim_jax" / "arrays").iterdir()
    monkeypatch.setattr(np.lib.format, "read_array", None)
    np.testing.assert_array_equal(both(place)[7]["image"], IMAGES[7])
    monkeypatch.undo()
    np.savez_compressed(place, IMAGES + 1)
    os.utime(place, (1, 1))
    np.testing.assert_array_equal(open_source(place, "train")[0]["image"].dtype, "f4")
    assert unpacked.exists()


@pytest.mark.parametrize("images", ["image", "images", "x", "anything"])
def test_images_and_labels_by_name(images, tmp_path):
    place = str(tmp_path / "set.npz")
    labels = np.arange(40) % 3
    np.savez(place, **{images: IMAGES[..., 0], "y": labels[:, None], "mean": 3.0})
    found = both(place)
    assert [example["label"] for example in found] == labels.tolist()
    np.testing.assert_array_equal(found[4]["image"], IMAGES[4, :, :, :1])
    assert open_source(place, "train").class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    "names", ["{split}_images {split}_labels", "x_{split} y_{split}"]
)
def test_names_of_splits(names, tmp_path):
    """As MedMNIST and Keras name them."""
    place = str(tmp_path / "set.npz")
    arrays = {}
    for split, part in (("train", slice(0, 30)), ("test", slice(30, 40))):
        x, y = names.format(split=split).split()
        arrays |= {x: IMAGES[part], y: np.arange(40)[part] - part.start}
    np.savez(place, **arrays)
    train, test = (open_source(place, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (30, 10)
    assert test[2]["label"] == 2
    assert train.class_names == test.class_names  # the test set lacks most of them
    np.testing.assert_array_equal(test[2]["image"], IMAGES[32])
    assert "found train, test" in fails(place, "validation")


def test_a_class_without_images_to_train_on_is_refused_as_for_folders(tmp_path):
    place = str(tmp_path / "set.npz")
    arrays = {"x_train": IMAGES[:30], "y_train": np.arange(30) % 2}
    np.savez(place, x_test=IMAGES[30:], y_test=np.arange(10) % 3, **arrays)
    train = open_source(place, "train")
    assert (train.labels, train.class_names) == (None, ())
    assert "has classes without images to train on: 2. Expected" in train.unlabelled
    assert open_source(place, "test").class_names == ("0", "1", "2")


def test_the_name_stands_behind_a_colon(tmp_path):
    place = str(tmp_path / "set.npz")
    np.savez(place, scans=IMAGES, masks=IMAGES + 1)
    assert "has 2 arrays of images" in fails(place)
    np.testing.assert_array_equal(both(f"{place}:masks")[0]["image"], IMAGES[0] + 1)
    assert 'Did you mean "masks"' in fails(f"{place}:mask")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_folder_of_images_and_stacks(compressed, tmp_path):
    for name, count in (("a", 2), ("b", 3)):
        folder = tmp_path / "set" / "train" / name
        folder.mkdir(parents=True)
        for i in range(count):
            SAVE[compressed](folder / f"{i}.npz", image=IMAGES[i], other=np.arange(3))
    SAVE[compressed](folder / "stack.npz", x=np.asfortranarray(IMAGES[10:14]))
    source = open_source(str(tmp_path / "set"), "train")
    check_source(str(tmp_path / "set"), "train")
    assert source.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    expected = [*IMAGES[:2], *IMAGES[:3], *IMAGES[10:14]]
    for example, image in zip(source, expected, strict=True):
        np.testing.assert_array_equal(example["image"], image)


def test_damaged_files(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    for i in range(4):
        np.savez(folder / f"{i}.npz", IMAGES[i])
    os.truncate(folder / "1.npz", 200)
    data = bytearray((folder / "2.npz").read_bytes())
    data[300] ^= 255  # within the pixels: the checksum of the .zip is wrong
    (folder / "2.npz").write_bytes(data)
    source = open_source(str(tmp_path / "set"), "train")
    np.testing.assert_array_equal(source[3]["image"], IMAGES[3])
    for index in (1, 2):
        with pytest.raises(BadImage, match=r"CRC-32|not a zip file") as raised:
            source[index]
        assert raised.value.filename.endswith(f"{index}.npz:0")
    assert "not a zip file" in fails(folder / "1.npz")


class Bomb:
    """A class that no file may create."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def test_objects_are_never_unpickled(tmp_path):
    objects = np.empty((20, 2, 2, 1), object)
    objects[:] = Bomb()
    place = tmp_path / "set.npz"
    np.savez(place, x=objects)
    assert "dtype object" in fails(place)
    np.savez(place, x=IMAGES, y=objects)
    with pytest.raises(UserError):
        open_source(str(place), "train")


def test_a_header_of_a_huge_array_takes_no_memory(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99, 1000000, 99999)}"
    data = (
        b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n"
    )
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x.npy", data)
    assert "is cut off" in fails(tmp_path / "set.npz")
