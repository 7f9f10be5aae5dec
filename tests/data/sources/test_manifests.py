"""Manifests: formats, splits, labels, and errors."""

import pickle

import pyarrow as pa
import pyarrow.parquet
import pytest

from simmim_jax.data.sources.base import labelled, subset
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError
from tests.images import PHOTOS, write_photographs

NAMES = ("img/a.jpg", "img/b c.jpg", "img/ü.jpg", "img/d.jpg")


@pytest.fixture
def folder(tmp_path):
    write_photographs(tmp_path, NAMES)
    return tmp_path


def write(folder, name, text, encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return str(folder / name)


def whole(file):
    """Return {path: label} of a manifest without splits, and its class names."""
    check_source(file, "train")
    parts = [open_source(file, split) for split in ("train", "validation")]
    assert parts[0].class_names == parts[1].class_names
    examples = [part[i] for part in parts for i in range(len(part))]
    for part in parts:
        labels = None if part.labels is None else part.labels.tolist()
        assert labels in (None, [part[i]["label"] for i in range(len(part))])
    folder = file.rpartition("/")[0]
    found = {e["path"].removeprefix(folder + "/"): e["label"] for e in examples}
    assert len(found) == len(examples)
    return found, parts[0].class_names


def test_text_of_paths(folder):
    file = write(folder, "list.txt", "\n".join(NAMES) + "\n\n")
    assert whole(file) == (dict.fromkeys(NAMES, -1), ())


@pytest.mark.parametrize("separator", [" ", "\t", " \t "])
def test_text_of_paths_and_labels(separator, folder):
    lines = [
        f"{name}{separator}{label}" for name, label in zip(NAMES, "3103", strict=True)
    ]
    file = write(folder, "list.TXT", "\r\n".join(lines))
    expected = dict(zip(NAMES, (3, 1, 0, 3), strict=True))
    assert whole(file) == (expected, ("0", "1", "2", "3"))


def test_text_with_class_names(folder):
    labels = ("red panda", "cat", "cat", "dog")
    lines = [f"{name}\t{label}" for name, label in zip(NAMES, labels, strict=True)]
    file = write(folder, "list.txt", "\n".join(lines))
    expected = dict(zip(NAMES, (2, 0, 0, 1), strict=True))
    assert whole(file) == (expected, ("cat", "dog", "red panda"))


def test_names_that_are_not_utf8(folder):
    write_photographs(folder, [b"\xe9.jpg".decode("utf-8", "surrogateescape")])
    (folder / "list.txt").write_bytes(b"\xe9.jpg 1\nimg/a.jpg 0\n")
    found, _ = whole(str(folder / "list.txt"))
    assert sorted(found.values()) == [0, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", '\ufeffFilename,Id,CLASS\nimg/a.jpg,1,x\n"img/b c.jpg",2,y\n\n'),
        ("list.tsv", "class\tfile\ny\timg/b c.jpg\nx\timg/a.jpg\n"),
    ],
)
def test_tables_with_a_header(name, text, folder):
    file = write(folder, name, text)
    assert whole(file) == ({"img/a.jpg": 0, "img/b c.jpg": 1}, ("x", "y"))


def test_a_split_column_keeps_the_order_of_the_list(folder):
    rows = ["path,label,split"]
    rows += ["img/d.jpg,9,train", "img/a.jpg,9,val", "img/b c.jpg,10,train"]
    file = write(folder, "list.csv", "\n".join([*rows, "img/ü.jpg,,test"]))
    train = open_source(file, "train")
    assert [*train.paths] == ["img/d.jpg", "img/b c.jpg"]
    assert train.labels.tolist() == [9, 10]
    assert train[1]["image"] == PHOTOS[1].read_bytes()
    for split in ("val", "validation"):
        validation = open_source(file, split)
        assert validation.labels.tolist() == [9]
        assert validation.class_names == train.class_names
    test = open_source(file, "test")
    assert (test.labels, test.class_names) == (None, ())
    with pytest.raises(ValueError, match=r"split='extra'.*rows of that"):
        open_source(write(folder, "b.csv", "path\nimg/a.jpg"), "extra")
    with pytest.raises(FileNotFoundError, match=r"'extra'.*found test, train, val"):
        open_source(file, "extra")
    file = write(folder, "d.csv", "path,split\nimg/a.jpg,dev\nimg/d.jpg,train")
    with pytest.raises(FileNotFoundError, match=r"'validation'.*found dev, train"):
        open_source(file, "validation")
    file = write(folder, "c.csv", "path,split\nimg/a.jpg,b\nimg/d.jpg,a")
    with pytest.raises(FileNotFoundError, match=r"split='train'.*found a, b\."):
        open_source(file, "train")


def test_absolute_paths(folder, tmp_path_factory):
    lines = [f"{folder / name} {i}" for i, name in enumerate(NAMES)]
    file = write(tmp_path_factory.mktemp("other"), "list.txt", "\n".join(lines))
    found, _ = whole(file)
    assert found == {str(folder / name): i for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("labels", [[3, 0, 1, 3], ["d", "a", "b", "d"]])
def test_parquet(labels, folder):
    file = str(folder / "list.parquet")
    table = {"image": NAMES, "label": labels, "width": [1, 2, 3, 4]}
    pyarrow.parquet.write_table(pa.table(table), file)
    found, classes = whole(file)
    assert [classes[found[name]] for name in NAMES] == list(map(str, labels))
    table = {"path": NAMES, "split": ["test", "train", "train", "test"]}
    pyarrow.parquet.write_table(pa.table(table), file)
    train = open_source(file, "train")
    assert [*train.paths] == [*NAMES[1:3]]
    assert train.labels is None


@pytest.mark.parametrize("nested", [True, False])
def test_parquet_of_images_is_read(nested, folder):
    file = str(folder / "list.parquet")
    image = PHOTOS[0].read_bytes()
    images = [{"bytes": image, "path": "a.jpg"} if nested else image]
    pyarrow.parquet.write_table(pa.table({"image": images * 2}), file)
    assert open_source(file, "train")[0]["image"] == image
    listed = pa.table({"path": NAMES, "thumbnail": [image] * len(NAMES)})
    pyarrow.parquet.write_table(listed, file)
    assert open_source(file, "train")[0]["path"].endswith(".jpg")


def test_rows_without_a_path_are_named(folder):
    file = str(folder / "list.parquet")
    pyarrow.parquet.write_table(pa.table({"path": [NAMES[0], None]}), file)
    with pytest.raises(ValueError, match="line 2: '' is not the path of an image"):
        open_source(file, "train")
    # A crash of the system may leave zeros.
    file = write(folder, "list.txt", NAMES[0] + "\n" + "\0" * 99)
    with pytest.raises(
        ValueError, match=r"line 2: '\\x00.*is not the path of an image"
    ):
        open_source(file, "train")


def test_sources_can_be_pickled(folder):
    source = open_source(write(folder, "list.txt", "\n".join(NAMES)), "train")
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("a.txt", "\n\n", ValueError, "lists no images: expected a path in each row"),
        ("a.csv", "", ValueError, r"columns \(none\): expected one of path"),
        ("a.csv", "path,label\n", ValueError, "lists no images"),
        (
            "a.csv",
            "path\n\nx.jpg\n",
            FileNotFoundError,
            "line 3: .*/x.jpg' does not ex",
        ),
        ("a.txt", "\nx.jpg 1\n", FileNotFoundError, "line 2: .*/x.jpg' does not exist"),
        (
            "a.csv",
            "path,label\nimg/a.jpg\n",
            ValueError,
            "line 2: 1 fields, expected 2",
        ),
        ("a.csv", "path,label\n,1\n", ValueError, "line 2: no path, expected the path"),
        ("a.csv", 'path\n"img/a.jpg\n', ValueError, "line 2: unexpected end of data"),
    ],
)
def test_errors_name_the_line(name, text, error, message, folder):
    file = write(folder, name, text)
    for function in (check_source, open_source):
        with pytest.raises(error, match=message):
            function(file, "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("split\nimg/a.jpg,train\nimg/d.jpg,", "line 3: no split, but other rows"),
        (
            "label\nimg/a.jpg,1\nimg/d.jpg,20260101",
            "label 20260101: expected names, or num",
        ),
        ("label\nimg/a.jpg,1\nimg/d.jpg,1,2", "line 3: 3 fields, expected 2"),
    ],
)
def test_errors_of_later_lines(rows, message, folder):
    file = write(folder, "list.csv", f"path,{rows}")
    check_source(file, "train")
    with pytest.raises(ValueError, match=message):
        open_source(file, "train")


@pytest.mark.parametrize("kind", ["csv", "parquet", "pandas"])
def test_rows_without_a_label_stay(kind, folder):
    splits, labels = ["train", "train", "train", "val"], ["1", "", "0", "1"]
    if kind == "csv":
        rows = [("path", "label", "split"), *zip(NAMES, labels, splits, strict=True)]
        file = write(folder, "list.csv", "\n".join(map(",".join, rows)))
    else:
        # pandas makes floats of integers with gaps.
        read = float if kind == "pandas" else int
        numbers = [read(label) if label else None for label in labels]
        table = {"path": NAMES, "label": numbers, "split": splits}
        file = str(folder / "list.parquet")
        pyarrow.parquet.write_table(pyarrow.table(table), file)
    train = open_source(file, "train")
    assert train.labels.tolist() == [1, -1, 0]
    assert [train[i]["label"] for i in range(3)] == [1, -1, 0]
    assert train.class_names == ("0", "1")
    assert labelled(train).labels.tolist() == [1, 0]
    assert subset(train, 2, 0).labels.tolist() == [1, 0]
    with pytest.raises(UserError, match="num_labels=3 must be between 1 and 2, the n"):
        subset(train, 3, 0)
    validation = open_source(file, "validation")
    assert labelled(validation) is validation


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_class_without_rows_to_train_on_is_refused_as_for_folders(kind, folder):
    splits = ["train", "train", "validation", "validation"]
    labels = ["cat", "dog", "cat", "owl"]
    file = str(folder / f"list.{kind}")
    if kind == "parquet":
        table = {"path": NAMES, "label": labels, "split": splits}
        pyarrow.parquet.write_table(pa.table(table), file)
    else:
        rows = [("path", "label", "split"), *zip(NAMES, labels, splits, strict=True)]
        between = {"csv": ",", "tsv": "\t"}[kind]
        write(folder, f"list.{kind}", "\n".join(map(between.join, rows)))
    train = open_source(file, "train")
    assert (train.labels, train.class_names) == (None, ())
    assert f"{file!r} has classes without images to train on: owl." in train.unlabelled
    assert "Expected rows of each class in the training split" in train.unlabelled
    validation = open_source(file, "validation")
    assert validation.class_names == ("cat", "dog", "owl")
    assert validation.labels.tolist() == [0, 2]


def test_numbers_with_leading_zeros_are_the_same_classes(folder):
    splits, labels = ["train", "train", "val", "val"], ["0", "1", "00", "01"]
    rows = [("path", "label", "split"), *zip(NAMES, labels, splits, strict=True)]
    file = write(folder, "list.csv", "\n".join(map(",".join, rows)))
    for split in ("train", "validation"):
        source = open_source(file, split)
        assert source.class_names == ("0", "1")
        assert source.labels.tolist() == [0, 1]


@pytest.mark.parametrize("label", ["1000000", "9" * 30, "9" * 5000])
def test_huge_numbers_are_no_classes(label, folder):
    file = write(folder, "list.csv", f"path,label\n{NAMES[0]},{label}\n{NAMES[1]},0")
    with pytest.raises(UserError, match=r"list.csv' has the label \d+: expected names"):
        open_source(file, "train")


def test_every_damaged_parquet_file_is_refused_with_its_name(folder):
    file = folder / "list.parquet"
    table = {"path": NAMES, "label": ["a", "b", "a", "b"]}
    pyarrow.parquet.write_table(pa.table(table), file)
    whole_file = file.read_bytes()
    refused = 0
    for at in range(0, len(whole_file), 3):
        for damaged in (
            whole_file[:at],
            whole_file[:at] + b"\xff\xff" + whole_file[at + 2 :],
            whole_file[:at] + whole_file[at + 1 :],
        ):
            file.write_bytes(damaged)
            message = refusal(str(file))
            assert message is None or str(file) in message
            refused += message is not None
    assert refused > 500


def refusal(file):
    """Return the error that opens no list, if it is the user's."""
    try:
        check_source(file, "train")
        open_source(file, "train")
    except UserError as error:
        return str(error)
