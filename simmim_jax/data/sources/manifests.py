"""Manifests: files that list the paths of images, and optionally labels and splits.

Those of sounds may also have the columns text, what is said, and start and end, the
part of a long recording in seconds. Relative paths start at the manifest's folder.
Other columns are targets where a run learns several classes an image, or numbers.
"""

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from simmim_jax.data.sources import targets
from simmim_jax.data.sources.base import MAX_CLASSES, NO_LABEL
from simmim_jax.data.sources.folders import FolderSource
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.huggingface import (
    TableSource,
    is_parquet_of_images,
    open_parquet,
)
from simmim_jax.data.sources.paths import (
    TRAIN,
    Classes,
    Paths,
    find_split,
    hashed_split,
    is_array,
    is_audio,
    is_image,
    nothing_to_learn_from,
)
from simmim_jax.data.sources.recordings import RecordingSource
from simmim_jax.data.sources.remote import MAX_BYTES, check_url, is_url, open_file
from simmim_jax.data.sources.targets import TargetSource, Wanted
from simmim_jax.errors import NotFoundError, UserError

MANIFEST_ENDINGS = (".txt", ".csv", ".tsv", ".parquet")
# Column names, in any case; the first one that exists is used.
COLUMNS = {
    "path": ("path", "image", "file", "filename", "file_name", "image_path"),
    "label": ("label", "class"),
    "split": ("split",),
    "text": ("text", "transcript", "sentence"),
    "start": ("start",),
    "end": ("end",),
}


class Row(NamedTuple):
    """A row of a manifest.

    text: what is said; start, end: of a part of a sound file [seconds]; targets: cells
    of the columns that a run learns.
    """

    line: int
    path: str
    label: str = ""
    split: str = ""
    text: str = ""
    start: float = 0.0
    end: float = math.inf
    targets: tuple[str, ...] = ()


def open_manifest(
    file: str,
    split: str,
    *,
    max_bytes: int = MAX_BYTES,
    wanted: Wanted | None = None,
) -> FolderSource | RecordingSource | TableSource | TargetSource:
    """Open one split of a manifest; see `open_source` for its content.

    Images keep the order of the list. Labels that are all whole numbers are kept; names
    are numbered in sorted order, over all splits; rows without one have the label -1.
    raises: UserError, which names the line, for rows that cannot be read; NotFoundError
    if the first image does not exist.
    """
    file = _located(file)
    if is_parquet_of_images(file):
        return open_parquet(file, split, max_bytes=max_bytes)
    rows = list(_rows(file, wanted))
    source, chosen = _open_rows(file, rows, split, max_bytes, is_labelled=not wanted)
    if wanted is None:
        return source
    texts = [row.targets or (row.label,) for row in rows]
    table, names = targets.parse(texts, [row.line for row in rows], wanted, file)
    return TargetSource(source, table[chosen], names)


def open_rows(
    file: str, rows: list[Row], split: str, *, max_bytes: int = MAX_BYTES
) -> FolderSource | RecordingSource:
    """Open one split of the rows of a file; as `open_manifest`."""
    return _open_rows(file, rows, split, max_bytes, is_labelled=True)[0]


def _open_rows(
    file: str, rows: list[Row], split: str, max_bytes: int, *, is_labelled: bool
) -> tuple[FolderSource | RecordingSource, np.ndarray]:
    """Return one split of the rows of a file, and which of them it has."""
    check_first(file, rows[0] if rows else None)
    for row in rows:
        if not row.path or "\0" in row.path:
            raise UserError(
                f"{file!r}, line {row.line}: {row.path[:40]!r} is not the path of an "
                "image. Mend the row, or remove it."
            )
    paths = [os.fsencode(row.path) for row in rows]
    splits = sorted({row.split for row in rows} - {""})
    without = next((row.line for row in rows if not row.split), None)
    if splits and without:
        raise UserError(
            f"{file!r}, line {without}: no split, but other rows have one. Expected a "
            "split in each row, or in none. Mend the row."
        )
    name = find_split(split, file, splits.__contains__, splits)
    if name is None:
        chosen = hashed_split(paths, split, file)
    else:
        chosen = np.array([i for i, row in enumerate(rows) if row.split == name])
    classes = Classes()
    if is_labelled:
        labels = [row.label for row in rows]
        classes = label_classes(file, [labels[i] for i in chosen], labels, name)
    root, chosen_paths = os.path.dirname(file), Paths([paths[i] for i in chosen])
    files = FolderSource(root, chosen_paths, *classes, max_bytes)
    if not is_audio(paths[0]):
        return files, chosen
    spans = np.array([(rows[i].start, rows[i].end) for i in chosen])
    texts = tuple(rows[i].text for i in chosen)
    return RecordingSource(files, texts, spans), chosen


def check_manifest(file: str, split: str) -> None:
    """Raise the errors of `open_manifest` that concern the first row."""
    del split
    file = _located(file)
    if not file.lower().endswith(".parquet"):
        check_first(file, next(_rows(file, None), None))
        return
    with open_file(file) as opened:
        if opened.read(4) != b"PAR1":
            raise UserError(
                f"{file!r} is not a Parquet file: it does not start with PAR1. Write "
                "it again, or name a .csv, .tsv or .txt."
            )


def _located(file: str) -> str:
    """Return the URL or the absolute path; raises UserError for an unreadable URL."""
    if not is_url(file):
        return os.path.abspath(file)
    check_url(file)
    return file


def check_first(file: str, row: Row | None) -> None:
    """Raise UserError without a first row, NotFoundError without its file."""
    if row is None:
        raise UserError(
            f"{file!r} lists no images: expected a path in each row. Add some."
        )
    path = os.path.join(os.path.dirname(file), row.path)
    if is_url(path):
        check_url(row.path if is_url(row.path) else path)
    elif not os.path.exists(path):
        raise NotFoundError(
            f"{file!r}, line {row.line}: {path!r} does not exist. Expected the path of "
            "an image, absolute or relative to the manifest's folder. Mend the paths, "
            "or move the list; for lines of text, set config.data.view='text'."
        )


def _rows(file: str, wanted: Wanted | None) -> Iterator[Row]:
    if file.lower().endswith(".parquet"):
        return _parquet_rows(file, wanted)
    is_text = file.lower().endswith(".txt")
    return _text_rows(file) if is_text else _csv_rows(file, wanted)


def _text_rows(file: str) -> Iterator[Row]:
    """Yield lines of a path, or of a path and a label separated by a tab or a space.

    A line that ends like an image file has no label: paths may contain spaces.
    """
    with _open_text(file) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if not text:
                continue
            path, tab, label = text.partition("\t")
            if not tab and not _is_path(os.fsencode(text)):
                path, _, label = text.rpartition(" ")
                path, label = (path, label) if path else (label, "")
            yield Row(number, path.strip(), label.strip())


def _is_path(text: bytes) -> bool:
    return is_image(text) or is_array(text) or is_audio(text)


def _open_text(file: str) -> io.TextIOWrapper:
    # Decodes paths as os.fsdecode does, and skips a byte order mark.
    return io.TextIOWrapper(
        open_file(file), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def _csv_rows(file: str, wanted: Wanted | None) -> Iterator[Row]:
    delimiter = "\t" if file.lower().endswith(".tsv") else ","
    between = "tabs" if delimiter == "\t" else "commas"
    with _open_text(file) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            columns = _columns(file, header)
            learned = targets.places_of(wanted, header, file) if wanted else []
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise csv.Error(f"{len(row)} fields, expected {len(header)}")
                cells = {name: row[place].strip() for name, place in columns.items()}
                if not cells["path"]:
                    name = header[columns["path"]]
                    raise csv.Error(f"no {name}, expected the path of an image")
                texts = tuple(row[place].strip() for place in learned)
                yield _row(file, reader.line_num, cells, texts)
        except csv.Error as error:
            raise UserError(
                f"{file!r}, line {reader.line_num}: {error}. Expected "
                f"{between} between columns, and "
                "quotes around a value that contains one. Mend the line."
            ) from error


def _parquet_rows(file: str, wanted: Wanted | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with open_file(file) as opened:
        try:
            table = pyarrow.parquet.ParquetFile(opened)
            names = table.schema_arrow.names
            columns = _columns(file, names)
            kind = table.schema_arrow.field(columns["path"]).type
            types = pyarrow.types
            if (
                types.is_struct(kind)
                or types.is_binary(kind)
                or types.is_large_binary(kind)
            ):
                raise UserError(
                    f"{file!r} holds images, not their paths: expected a local file, "
                    "of which groups of rows are read. Download it first."
                )
            learned = targets.places_of(wanted, names, file) if wanted else []
            read = [names[place] for place in (*columns.values(), *learned)]
            values = table.read(columns=[*dict.fromkeys(read)]).to_pydict()
            lists = [values[name] for name in read]
        except UserError:
            raise
        except Exception as error:  # Arrow raises exceptions of many types
            raise UserError(
                f"{file!r} is not a Parquet file, or is corrupt ({error}): expected a "
                "list of images. Write it again, for example with pandas, or as a .csv."
            ) from error
    for number, cells in enumerate(zip(*lists, strict=True), start=1):
        texts = tuple(map(column_text, cells))
        fields = dict(zip(columns, texts, strict=False))
        yield _row(file, number, fields, texts[len(columns) :])


def column_text(value: Any) -> str:
    """Return a value of a column; pandas stores integers with gaps as 1.0 and NaN.

    The values of a list are separated as several classes of an image are.
    """
    if isinstance(value, list):
        return targets.SEPARATOR.join(map(column_text, value))
    if value is None or value != value:
        return ""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _columns(file: str, header: list[str]) -> dict[str, int]:
    """Return the places of the columns that are there, by the names of fields."""
    lower = [name.strip().lower() for name in header]
    places = {
        field: lower.index(name)
        for field, names in COLUMNS.items()
        if (name := next((n for n in names if n in lower), None))
    }
    if "path" not in places:
        hint = (
            " Lines of text need config.data.view='text'." if "text" in places else ""
        )
        raise UserError(
            f"{file!r} has the columns {', '.join(header) or '(none)'}: expected one "
            f"of {', '.join(COLUMNS['path'])}, optionally label or class, and split, "
            f"in the first line, separated by commas or, in a .tsv, tabs.{hint}"
        )
    return places


def _row(file: str, line: int, cells: dict[str, str], texts: tuple[str, ...]) -> Row:
    """Return a row; raises UserError for times that are no numbers, or in disorder.

    texts: cells of the columns that a run learns.
    """
    start, end = cells.pop("start", "") or "0", cells.pop("end", "") or "inf"
    try:
        span = float(start), float(end)
    except ValueError:
        span = math.nan, math.nan
    if not 0 <= span[0] < span[1]:
        raise UserError(
            f"{file!r}, line {line}: start={start!r}, end={end!r}. Expected seconds, "
            "0 or more, and the end behind the start. Mend the row."
        )
    return Row(line, start=span[0], end=span[1], targets=texts, **cells)


def label_classes(
    place: str, labels: Sequence[str], all_labels: Sequence[str], split: str | None
) -> Classes:
    """Return the classes of the rows of a split; the labels of all rows name classes.

    labels: "" for none; split: its name, None if rows are divided by hashes.
    """
    if not any(labels):
        return Classes()
    every = {*all_labels} - {""}
    if number := targets.fractions(sorted(every)):
        return Classes(
            unlabelled=f"{place!r} has numbers such as {number} for labels, rather "
            "than classes: --config.loss=l2 learns them."
        )
    are_numbers = all(label.isascii() and label.isdigit() for label in every)

    def same(label: str) -> str:  # 01 is 1
        return label.lstrip("0") or "0" if are_numbers else label

    lacking = sorted({*map(same, every)} - {same(label) for label in labels if label})
    if lacking and split == TRAIN:
        return Classes(unlabelled=nothing_to_learn_from(lacking, place, "rows"))
    if are_numbers:
        # Python refuses to convert thousands of digits.
        last = max(every, key=lambda label: (len(label.lstrip("0")), label.lstrip("0")))
        if len(last.lstrip("0")) > len(str(MAX_CLASSES)) or int(last) >= MAX_CLASSES:
            raise UserError(
                f"{place!r} has the label {last[:20]}: expected names, or numbers "
                f"counted from 0 and less than {MAX_CLASSES:,}. Write the names of the "
                "classes as labels."
            )
        number_of_classes = int(last) + 1
        class_names = list(map(str, range(number_of_classes)))
        numbers = {label: int(label) for label in every}
    else:
        class_names = sorted(every)
        numbers = {label: i for i, label in enumerate(class_names)}
    numbers[""] = NO_LABEL
    found = np.array([numbers[label] for label in labels], np.int32)
    return Classes(found, tuple(class_names))


def _is_manifest(place: str) -> bool:
    is_listed = place.lower().endswith(MANIFEST_ENDINGS)
    return is_listed and (is_url(place) or os.path.isfile(place))


FORMAT = Format(
    f"a manifest ({'/'.join(MANIFEST_ENDINGS)})",
    _is_manifest,
    check_manifest,
    open_manifest,
    takes_max_bytes=True,
    takes_wanted=True,
)
