"""Several classes or numbers of an image: lists, .npz files, arrays, and errors."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from simmim_jax.data.sources import targets
from simmim_jax.data.sources.base import SubsetSource, labelled, subset
from simmim_jax.data.sources.registry import open_source
from simmim_jax.data.sources.targets import Wanted, targets_of
from simmim_jax.errors import UserError
from tests.images import write_photographs

NAMES = ("img/a.jpg", "img/b.jpg", "img/c.jpg", "img/d.jpg")
SEVERAL, NUMBERS = Wanted("classes"), Wanted("values")


@pytest.fixture
def folder(tmp_path):
    write_photographs(tmp_path, NAMES)
    return tmp_path


def write(folder, name, columns):
    """A .csv, .tsv or .parquet list of the four images, all of one split."""
    columns = {"path": list(NAMES), **columns, "split": ["train"] * 4}
    file = folder / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pa.table(columns), file)
    else:
        sep = "\t" if name.endswith(".tsv") else ","
        rows = [columns, *zip(*columns.values(), strict=True)]
        file.write_text("".join(sep.join(map(str, row)) + "\n" for row in rows))
    return str(file)


def table(file, wanted):
    """Return the targets of the four images by their path, and their names."""
    source = open_source(file, "train", wanted=wanted)
    source = pickle.loads(pickle.dumps(source))
    found = {}
    for example, target in zip(source, source.targets, strict=True):
        np.testing.assert_array_equal(example["target"], target)
        assert example["image"][:2] == b"\xff\xd8"
        found[example["path"].removeprefix(str(file).rpartition("/")[0] + "/")] = target
    return np.array([found[name] for name in NAMES]), source.class_names


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.parquet"])
def test_several_classes_of_a_column(name, folder):
    file = write(folder, name, {"labels": ["dog; cat", "cat", "", "ox;dog;"]})
    found, names = table(file, SEVERAL)
    assert names == ("cat", "dog", "ox")
    assert found.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert found.dtype == np.float32


def test_lists_in_a_parquet_file(folder):
    file = write(folder, "x.parquet", {"labels": [[2, 10], [2], [], [10]]})
    found, names = table(file, SEVERAL)
    assert names == ("2", "10")
    assert found.tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]]


def test_classes_that_are_numbers_are_in_order(folder):
    large = "9" * 5000
    file = write(folder, "x.tsv", {"labels": [f"{large};10", "1;01", "2", "0"]})
    assert table(file, SEVERAL)[1] == ("0", "01", "1", "2", "10", large)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_columns_of_truths(name, folder):
    columns = {"Cat": ["1", "0", "", "True"], "dog": ["0", "1.0", "false", ""]}
    file = write(folder, name, columns)
    found, names = table(file, Wanted("classes", ("dog", "cat")))
    assert names == ("dog", "cat")
    nan = np.nan
    np.testing.assert_array_equal(found, [[0, 1], [1, 0], [0, nan], [nan, 1]])


def test_columns_of_numbers(folder):
    file = write(folder, "x.csv", {"age": [3, 4.5, "", -1e3], "kg": ["", 1, "nan", 2]})
    found, names = table(file, Wanted("values", ("kg", "age")))
    assert names == ("kg", "age")
    nan = np.nan
    np.testing.assert_array_equal(found, [[nan, 3], [1, 4.5], [nan, nan], [2, -1e3]])
    source = open_source(file, "train", wanted=Wanted("values", ("kg", "age")))
    assert source.labels.tolist() == [0, 0, -1, 0]
    known = labelled(source)
    np.testing.assert_array_equal(targets_of(known), found[[0, 1, 3]])
    chosen = subset(source, 2, seed=0)
    assert isinstance(chosen, SubsetSource)
    assert {example["path"] for example in chosen} < {e["path"] for e in known}


def test_the_number_of_a_text_list(folder):
    (folder / "x.txt").write_text(
        "".join(f"{n}\t{i / 2}\n" for i, n in enumerate(NAMES))
    )
    parts = [
        open_source(str(folder / "x.txt"), split, wanted=NUMBERS)
        for split in ("train", "validation")
    ]
    assert parts[0].class_names == parts[1].class_names == ("value",)
    assert sorted(np.concatenate([p.targets[:, 0] for p in parts])) == [0, 0.5, 1, 1.5]
    for part in parts:
        for example in part:
            number = NAMES.index("img/" + example["path"].rpartition("/")[2]) / 2
            assert example["target"].tolist() == [number]


@pytest.mark.parametrize(
    ("columns", "wanted", "says"),
    [
        ({"kg": ["1", "x", "2", "3"]}, Wanted("values", ("kg",)), "line 3: 'x' in a"),
        ({"kg": ["1", "inf", "2", "3"]}, Wanted("values", ("kg",)), "line 3: 'inf'"),
        ({"cat": [1, 0, 1, 2]}, Wanted("classes", ("cat",)), "Expected 1 or 0"),
        ({"cat": [1] * 4}, Wanted("classes", ("cot",)), 'Did you mean "cat"'),
        ({"cat": [1] * 4}, SEVERAL, "expected one of labels, classes, label, class"),
        ({"cat": [1] * 4}, NUMBERS, "expected one of value, target, label"),
    ],
)
def test_errors_of_lists(columns, wanted, says, folder):
    with pytest.raises(UserError) as raised:
        open_source(write(folder, "x.csv", columns), "train", wanted=wanted)
    assert says in str(raised.value)


def test_numbers_are_no_classes(folder):
    source = open_source(write(folder, "x.csv", {"label": [0.5, 1, 2, 3]}), "train")
    assert source.labels is None
    assert "has numbers such as 0.5 for labels" in source.unlabelled
    whole = open_source(write(folder, "y.csv", {"label": ["1.0", "2", 1, 3]}), "train")
    assert whole.class_names == ("1", "1.0", "2", "3")


@pytest.fixture
def stack(tmp_path):
    def save(**arrays):
        file = tmp_path / "x.npz"
        images = np.arange(40 * 12, dtype=np.uint8).reshape(40, 2, 2, 3)
        np.savez(file, images=images, **arrays)
        return str(file)

    return save


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.arange(40) % 7, ("0",)),
        (np.arange(40) / 3, ("0",)),
        (np.arange(120).reshape(40, 3) % 2, ("0", "1", "2")),
        (np.arange(80).reshape(40, 2) % 2 == 1, ("0", "1")),
    ],
)
def test_labels_of_an_npz_file(labels, names, stack):
    place = stack(labels=labels)
    seen = {}
    for split in ("train", "validation"):
        source = open_source(place, split, wanted=NUMBERS)
        assert source.class_names == names
        for example in source:
            seen[int(example["path"].rpartition(":")[2])] = example["target"]
    expected = labels.reshape(40, -1).astype(np.float32)
    np.testing.assert_array_equal([seen[i] for i in range(40)], expected)


def test_arrays_and_splits_of_an_npz_file(tmp_path):
    file = str(tmp_path / "x.npz")
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(
        file,
        train_images=images,
        test_images=images[:2],
        train_age=np.arange(3),
        test_age=np.arange(2) + 10,
    )
    for split, expected in (("train", [0, 1, 2]), ("test", [10, 11])):
        source = open_source(file, split, wanted=Wanted("values", ("age",)))
        assert source.class_names == ("age",)
        assert source.targets[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("arrays", "wanted", "says"),
    [
        ({}, SEVERAL, "has no labels: expected an array images_labels or labels"),
        ({"age": np.ones(40)}, Wanted("values", ("kg",)), "has no array 'kg', but"),
        ({"age": np.ones(39)}, Wanted("values", ("age",)), "shape [39]: expected [40]"),
        ({"labels": np.array(["a"] * 40)}, SEVERAL, "is <U1: expected numbers"),
        ({"labels": np.ones((40, 1, 1))}, SEVERAL, "expected [40] or [40, m]"),
    ],
)
def test_errors_of_npz_files(arrays, wanted, says, stack):
    with pytest.raises(UserError) as raised:
        open_source(stack(**arrays), "train", wanted=wanted)
    assert says in str(raised.value)


def test_arrays_from_python():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    for labels in ([0.0, 1, 2], np.eye(3), np.eye(3, dtype=int)):
        source = targets.as_source(images, labels)
        expected = np.asarray(labels, np.float32).reshape(3, -1)
        np.testing.assert_array_equal(targets_of(source), expected)
        assert source.class_names == tuple("012"[: expected.shape[1]])
    assert targets_of(targets.as_source(images, [0, 1, 2])) is None
    with pytest.raises(UserError, match="labels are of 2 images, data has 3"):
        targets.as_source(images, [0.5, 1])
    with pytest.raises(UserError, match="expected integers"):
        targets.as_source(images, ["a", "b", "c"])
