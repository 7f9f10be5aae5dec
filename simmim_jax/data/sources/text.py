"""Lines of text: files and tables of them, and folders of files by class.

A place has images, or lists of their paths, unless the view of a run asks for text:
`open_source` tries these formats only where they are passed to it.
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.folders import Files, list_files
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.manifests import COLUMNS, column_text, label_classes
from simmim_jax.data.sources.paths import (
    Paths,
    find_split,
    hashed_split,
    is_image,
    split_paths,
)
from simmim_jax.data.sources.remote import is_url, open_file
from simmim_jax.errors import NotFoundError, UserError

TEXT_ENDINGS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
_TEXT_FILES = Files(lambda name: name.lower().endswith(b".txt"), (".txt",), "text 1")


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Lines in memory, in UTF-8.

    labels int [n] or None; unlabelled: why there are none, if that may be a mistake.
    """

    lines: Paths = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    unlabelled: str = ""

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": self.lines[index], "label": label}


class _Line(NamedTuple):
    """label, split: "" for none."""

    text: str
    label: str = ""
    split: str = ""


def open_lines(place: str, split: str) -> TextSource:
    """Open one split of a .txt file, a table, or a folder of .txt files.

    Each line of a .txt file is an example; in a folder, its label is the first folder
    that the file is in, below that of a split. A table (.csv, .tsv, .jsonl, .parquet)
    has a column text, and optionally label or class, and split. Empty lines are left
    out. Without splits, one line in 20 is for validation, chosen by its hash: equal
    lines are in one split.

    raises: UserError for what is no text in UTF-8, for lists of images and unknown
    splits; NotFoundError without lines.
    """
    lines = [line for line in _read(place, split) if line.text.strip()]
    if not lines:
        raise NotFoundError(f"{place!r} has no lines of text: expected some. Add them.")
    texts = [line.text.replace("\0", " ").encode() for line in lines]
    known = sorted({line.split for line in lines} - {""})
    name = find_split(split, place, known.__contains__, known)
    if name is None:
        chosen = hashed_split(texts, split, place)
    else:
        chosen = np.array([i for i, line in enumerate(lines) if line.split == name])
    labels = [line.label for line in lines]
    classes = label_classes(place, [labels[i] for i in chosen], labels, name)
    return TextSource(Paths([texts[i] for i in chosen]), *classes)


def check_lines(place: str, split: str) -> None:
    """Raise the errors of `open_lines` for a place without text, in milliseconds."""
    if os.path.isdir(place):
        _text_files(place)
    elif not is_url(place) and not place.lower().endswith(".parquet"):
        next(iter(_read(place, split)), None)


def _read(place: str, split: str) -> Iterable[_Line]:
    if os.path.isdir(place):
        return _folder_lines(place, split)
    if place.lower().endswith(".txt"):
        return _file_lines(place)
    return _table_lines(place)


def _file_lines(file: str) -> Iterator[_Line]:
    for number, text in enumerate(read_lines(file)):
        words = text.split()
        if number == 0 and 0 < len(words) <= 2 and is_image(os.fsencode(words[0])):
            raise UserError(
                f"{file!r} lists images, such as {words[0]!r}, but config.data.view="
                "'text': expected lines of text. Leave out the view for images."
            )
        yield _Line(text)


def read_lines(file: str) -> Iterator[str]:
    """Yield the lines of a file; raises UserError if it is not UTF-8."""
    with open_file(file) as opened:
        try:
            yield from io.TextIOWrapper(opened, encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file!r} is not UTF-8 ({error}): expected text. Convert it, as by "
                "`iconv -f latin1 -t utf8`."
            ) from error


def _folder_lines(root: str, split: str) -> Iterator[_Line]:
    paths = _text_files(root)
    rests, splits = split_paths(paths, split) or (paths, [""] * len(paths))
    for path, rest, name in zip(paths, rests, splits, strict=True):
        if name is None:
            continue
        folder, slash, _ = rest.partition(b"/")
        label = os.fsdecode(folder) if slash else ""
        for text in read_lines(os.path.join(root, os.fsdecode(path))):
            yield _Line(text, label, name)


def _text_files(root: str) -> list[bytes]:
    paths = list_files(root, _TEXT_FILES)
    if not paths:
        raise NotFoundError(
            f"{root!r} has no text: expected .txt files in it or in class folders. "
            "Name a folder that has some, or a file."
        )
    return paths


# ---- Tables --------------------------------------------------------------------------


def _table_lines(file: str) -> Iterator[_Line]:
    rows = _rows(file)
    header = next(rows)
    lower = [str(name).strip().lower() for name in header]
    text, label, split = (
        next((lower.index(name) for name in COLUMNS[field] if name in lower), None)
        for field in ("text", "label", "split")
    )
    if text is None:
        lists_images = any(name in lower for name in COLUMNS["path"])
        raise UserError(
            f"{file!r} has the columns {', '.join(lower) or '(none)'}, but "
            f"config.data.view='text': expected one of {', '.join(COLUMNS['text'])}, "
            "optionally label or class, and split."
            + (" Leave out the view for images." if lists_images else "")
        )
    for row in rows:
        yield _Line(
            *(
                "" if column is None else column_text(row[column])
                for column in (text, label, split)
            )
        )


def _rows(file: str) -> Iterator[Sequence[Any]]:
    """Yield the names of the columns, then their values row by row.

    raises: UserError for a file that is not what its name says.
    """
    ending = os.path.splitext(file.lower())[1]
    read = {".parquet": _parquet_rows, ".jsonl": _json_rows}.get(ending, _csv_rows)
    try:
        yield from read(file)
    except UserError:
        raise
    except Exception as error:  # Arrow raises exceptions of many types
        raise UserError(
            f"{file!r} is not a {ending} file, or is corrupt ({error}): expected a "
            "table of text. Mend it, or write it again."
        ) from error


def _csv_rows(file: str) -> Iterator[Sequence[Any]]:
    delimiter = "\t" if file.lower().endswith(".tsv") else ","
    with open_file(file) as opened:
        text = io.TextIOWrapper(opened, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        yield (header := next(reader, []))
        for row in filter(None, reader):
            if len(row) != len(header):
                raise csv.Error(
                    f"line {reader.line_num}: {len(row)} fields, expected {len(header)}"
                )
            yield row


def _json_rows(file: str) -> Iterator[Sequence[Any]]:
    names: list[str] = []
    for line in read_lines(file):
        if line.strip():
            row = json.loads(line)
            if not names:
                yield (names := [*row])
            yield [row.get(name) for name in names]


def _parquet_rows(file: str) -> Iterator[Sequence[Any]]:
    import pyarrow.parquet

    with open_file(file) as opened:
        table = pyarrow.parquet.ParquetFile(opened)
        yield (names := table.schema_arrow.names)
        for batch in table.iter_batches():
            yield from zip(*(batch[name].to_pylist() for name in names), strict=True)


def _is_text(place: str) -> bool:
    is_file = place.lower().endswith(TEXT_ENDINGS)
    return os.path.isdir(place) or (
        is_file and (is_url(place) or os.path.isfile(place))
    )


FORMATS = (
    Format(f"text ({'/'.join(TEXT_ENDINGS)})", _is_text, check_lines, open_lines),
)
