"""Tables that are computed in parts, so that an interrupted command resumes."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.loader.bad_examples import reason_of
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.paths import printable
from simmim_jax.errors import UserError
from simmim_jax.monitoring.progress import make_progress

# Examples of a part, which an interrupted command keeps.
PART = 1024
# What the parts in a folder depend on.
PLAN = "plan.json"
_LEFT_OUT = b"left_out"
# Writes tables to its second argument, which becomes the third; returns their rows.
Writer = Callable[[Iterator[pyarrow.Table], Path, Path], int]


class Split(NamedTuple):
    """One split of a data set; dataset, name: as the user calls them, or ""."""

    dataset: str
    name: str
    source: Source


class Rows(NamedTuple):
    """Rows of some examples; bad: (index, path, error) of those that have none."""

    table: pyarrow.Table
    bad: Sequence[tuple[int, str, Exception]]


Compute = Callable[[Split, range], Iterable[Rows]]


def write_table(
    out: str | Path,
    splits: Sequence[Split],
    compute: Compute,
    writers: Mapping[str, Writer],
    *,
    plan: Mapping[str, Any],
    title: str,
) -> tuple[int, int]:
    """Write what is computed of all examples to one file, or resume writing.

    compute: yields the rows of a range of examples; writers: by ending of `out`; plan:
    what the rows depend on, parts of another plan are refused; title: of the progress.
    What has no row is listed in OUT.left_out.tsv.
    returns: numbers of rows written and of examples left out.
    raises: UserError if `out` exists, has another ending, or was begun with another
    plan.
    """
    out = Path(out).expanduser()
    if out.suffix not in writers:
        endings = " or ".join(writers)
        raise UserError(f"OUT='{out}': expected a file that ends in {endings}.")
    if out.exists():
        raise UserError(f"'{out}' exists already: remove it, or name another file.")
    folder = out.with_name(out.name + ".unfinished")
    begin(folder, splits, plan)
    total = sum(len(split.source) for split in splits)
    progress = make_progress(total, title=title)
    done, files = 0, []
    for number, split in enumerate(splits):
        for first in range(0, len(split.source), PART):
            span = range(first, min(first + PART, len(split.source)))
            file = folder / f"{number}-{first:09}.parquet"
            files.append(file)
            if file.exists():
                done += len(span)
                continue
            parts = []
            for rows in compute(split, span):
                parts.append(rows)
                done += rows.table.num_rows + len(rows.bad)
                progress.show(done, {})
            _write(file, _joined(split, parts))
    progress.close()
    counts = _finish(files, out, writers[out.suffix])
    shutil.rmtree(folder)
    return counts


def to_parquet(tables: Iterator[pyarrow.Table], unfinished: Path, out: Path) -> int:
    """Write tables as one Parquet file."""
    del out
    rows, writer = 0, None
    for table in tables:
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(unfinished, table.schema)
        writer.write_table(table)
        rows += table.num_rows
    assert writer is not None
    writer.close()
    return rows


def to_csv(tables: Iterator[pyarrow.Table], unfinished: Path, out: Path) -> int:
    """Write tables as one CSV file with a line of names; what is missing is empty."""
    del out
    rows = 0
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for number, table in enumerate(tables):
            if not number:
                writer.writerow(table.column_names)
            writer.writerows(row.values() for row in _rows_of(table))
            rows += table.num_rows
    return rows


def to_jsonl(tables: Iterator[pyarrow.Table], unfinished: Path, out: Path) -> int:
    """Write tables as one JSON object a line."""
    del out
    rows = 0
    with unfinished.open("w", encoding="utf-8") as file:
        for table in tables:
            for row in _rows_of(table):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            rows += table.num_rows
    return rows


def _rows_of(table: pyarrow.Table) -> Iterator[dict[str, Any]]:
    """Yield rows whose float32 values have as many digits as tell them apart."""
    columns = []
    for column in table.columns:
        values = column.to_pylist()
        if column.type == pyarrow.float32():
            values = [float(str(np.float32(value))) for value in values]
        columns.append(values)
    for values in zip(*columns, strict=True):
        yield dict(zip(table.column_names, values, strict=True))


# ---- Parts ---------------------------------------------------------------------------


def begin(folder: Path, splits: Sequence[Split], plan: Mapping[str, Any]) -> None:
    """Make the folder of what is computed, or check that it belongs to the same plan.

    raises: UserError for a folder of another plan.
    """
    examples = [[split.dataset, split.name, len(split.source)] for split in splits]
    plan = dict(plan) | {"examples": examples}
    file = folder / PLAN
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(plan, indent=2), encoding="utf-8")
        os.replace(unfinished, file)
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    for name in sorted(begun.keys() | plan.keys()):
        if begun.get(name) != plan.get(name):
            raise UserError(
                f"'{folder}' was begun with {name}={begun.get(name)!r}, and now it is "
                f"{plan.get(name)!r}: remove the folder to begin anew, or choose "
                "another name."
            )


def _joined(split: Split, parts: Sequence[Rows]) -> pyarrow.Table:
    """Return some rows as a table; what was left out is in its metadata."""
    left_out = [
        (split.name, index, printable(path), _reason(error))
        for rows in parts
        for index, path, error in rows.bad
    ]
    table = pyarrow.concat_tables([rows.table for rows in parts])
    return table.replace_schema_metadata({_LEFT_OUT: json.dumps(left_out).encode()})


def _reason(error: Exception) -> str:
    return reason_of(error) if isinstance(error, OSError | BadImage) else str(error)


def _write(file: Path, table: pyarrow.Table) -> None:
    unfinished = file.with_suffix(".tmp")
    pyarrow.parquet.write_table(table, unfinished)
    os.replace(unfinished, file)


def _finish(files: list[Path], out: Path, write: Writer) -> tuple[int, int]:
    """Put the parts together; return the numbers of rows and of those left out."""
    tables = map(pyarrow.parquet.read_table, files)
    left_out: list[tuple[str, int, str, str]] = []

    def checked() -> Iterator[pyarrow.Table]:
        for table in tables:
            left_out.extend(json.loads(table.schema.metadata[_LEFT_OUT]))
            yield table.replace_schema_metadata(None)

    unfinished = out.with_name(out.name + ".tmp")
    rows = write(checked(), unfinished, out)
    os.replace(unfinished, out)
    if left_out:
        lines = ["\t".join(map(str, row)) for row in left_out]
        text = "\n".join(["split\tindex\tpath\treason", *lines, ""])
        out.with_name(out.name + ".left_out.tsv").write_text(text, encoding="utf-8")
    return rows, len(left_out)
