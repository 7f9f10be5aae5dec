"""Lines of text: files, tables and class folders, and what is none of them."""

import csv
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from simmim_jax.data.sources import text
from simmim_jax.data.sources.base import as_source
from simmim_jax.data.sources.registry import check_source, open_source

ROWS = [
    ("Guten Tag", "German", "train"),
    ("Wie geht es?", "German", "train"),
    ("Bonjour, monsieur", "French", "train"),
    ('Il dit "oui"', "French", "validation"),
    ("Bis bald", "German", "validation"),
]


def opened(path, split="train"):
    check_source(str(path), split, formats=text.FORMATS)
    return open_source(str(path), split, formats=text.FORMATS)


def lines(source):
    return [source[i]["image"] for i in range(len(source))]


def write_table(path, columns, rows):
    ending = path.suffix
    if ending in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            table = csv.writer(file, delimiter="\t" if ending == ".tsv" else ",")
            table.writerows([columns, *rows])
    elif ending == ".jsonl":
        dicts = [dict(zip(columns, row, strict=True)) for row in rows]
        path.write_text("".join(json.dumps(each) + "\n" for each in dicts))
    else:
        table = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    return path


@pytest.fixture(params=[".csv", ".tsv", ".jsonl", ".parquet"])
def ending(request):
    return request.param


def test_tables_have_text_labels_and_splits(tmp_path, ending):
    path = write_table(tmp_path / f"t{ending}", ("Text", "label", "split"), ROWS)
    train, held_out = opened(path), opened(path, "validation")
    assert lines(train) == ["Guten Tag", "Wie geht es?", "Bonjour, monsieur"]
    assert train.class_names == held_out.class_names == ("French", "German")
    assert train.labels.tolist() == [1, 1, 0]
    assert lines(held_out) == ['Il dit "oui"', "Bis bald"]
    assert held_out[0]["label"] == 0
    with pytest.raises(ValueError, match="split='test'"):
        opened(path, "test")


def test_labels_that_are_numbers_are_kept(tmp_path, ending):
    rows = [("a", 2), ("b", 0), ("c", 1)] * 20
    path = write_table(tmp_path / f"t{ending}", ("text", "class"), rows)
    train = opened(path)
    assert train.class_names == ("0", "1", "2")
    number = {"a": 2, "b": 0, "c": 1}
    assert train.labels.tolist() == [number[line] for line in lines(train)]


def test_a_table_without_labels(tmp_path, ending):
    rows = [(f"line {i}", i) for i in range(30)]
    path = write_table(tmp_path / f"t{ending}", ("text", "id"), rows)
    train = opened(path)
    assert train.labels is None
    assert train.class_names == ()
    assert train[0]["label"] == -1


def test_each_line_of_a_file_is_an_example(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\ufeffone\n\n  two\n" + "".join(f"{i}\n" for i in range(60)))
    train, held_out = opened(path), opened(path, "validation")
    assert lines(train)[0].strip() in ("one", "two")
    assert len(train) + len(held_out) == 62
    assert not set(lines(train)) & set(lines(held_out))


def test_equal_lines_are_in_one_split(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{i % 40}\n" for i in range(400)))
    train, held_out = (set(lines(opened(path, s))) for s in ("train", "validation"))
    assert train
    assert held_out
    assert not train & held_out


def test_folders_are_classes_and_have_splits(tmp_path):
    for split, folder, content in (
        ("train", "fr", "un\ndeux\n"),
        ("train", "de", "eins\n\nzwei\n"),
        ("validation", "fr", "trois\n"),
        ("validation", "de", "drei\n"),
    ):
        (tmp_path / split / folder).mkdir(parents=True)
        (tmp_path / split / folder / "a.txt").write_text(content)
    train, held_out = opened(tmp_path), opened(tmp_path, "validation")
    assert [line.strip() for line in lines(train)] == ["eins", "zwei", "un", "deux"]
    assert train.class_names == held_out.class_names == ("de", "fr")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert held_out.labels.tolist() == [0, 1]


def test_class_folders_without_splits_are_divided_line_by_line(tmp_path):
    for folder in ("de", "fr"):
        (tmp_path / folder).mkdir()
        words = "".join(f"{folder} {i}\n" for i in range(100))
        (tmp_path / folder / "all.txt").write_text(words)
    train, held_out = opened(tmp_path), opened(tmp_path, "validation")
    assert len(train) + len(held_out) == 200
    for source in (train, held_out):
        assert set(source.labels.tolist()) == {0, 1}
        names = [source.class_names[label] for label in source.labels]
        assert names == [line.split()[0] for line in lines(source)]


def test_lists_of_images_stay_lists_of_images(tmp_path):
    for name, content in (("a.txt", "x.png 0\ny.png 1\n"), ("a.csv", "path\nx.png\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match="Leave out the view"):
            opened(tmp_path / name)


@pytest.mark.parametrize("name", ["lines.txt", "lines.csv"])
def test_text_without_the_view_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_text("text\nAll human beings are born free\n")
    with pytest.raises(ValueError, match=r"config\.data\.view='text'"):
        open_source(str(tmp_path / name), "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9\n", "is not UTF-8.*iconv"),
        ("a.txt", b"\n \n", "has no lines of text"),
        ("a.csv", b"id,words\n1,a\n", "columns id, words.*expected one of text"),
        ("a.csv", b"text,label\na\n", "line 2: 1 fields, expected 2"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "is not a .jsonl file"),
        ("a.parquet", b"PAR2", "is not a .parquet file"),
    ],
)
def test_errors_say_what_was_expected(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / name), "train", formats=text.FORMATS)


def test_a_folder_without_text(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(OSError, match=r"has no text: expected \.txt files"):
        opened(tmp_path)


def test_bundled_languages():
    train, held_out = (
        open_source("bundled:languages", split) for split in ("train", "validation")
    )
    assert (len(train), len(held_out)) == (2956, 738)
    assert len(train.class_names) == 20
    assert np.bincount(held_out.labels).min() >= 30
    assert all(20 <= len(line) <= 64 for line in lines(train))
    assert not set(lines(train)) & set(lines(held_out))


def test_lines_from_python():
    source = as_source([("un", 0), ("two", 1)], class_names=("fr", "en"))
    assert source[1] == {"image": "two", "label": 1}
    assert as_source(["un", "deux"])[0] == {"image": "un", "label": -1}
