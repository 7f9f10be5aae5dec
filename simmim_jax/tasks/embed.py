"""Features of a whole data set in one file, written so that it can be resumed."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from simmim_jax.data.loader.bad_examples import reason_of
from simmim_jax.data.sources.base import NO_LABEL, Source
from simmim_jax.errors import UserError
from simmim_jax.monitoring.progress import make_progress, say
from simmim_jax.tasks.encoder import BATCH, Embedded, Encoder

ENDINGS = (".parquet", ".npy")
# Images of a part, which an interrupted command keeps.
_PART = 16 * BATCH
_PLAN = "plan.json"
_LEFT_OUT = b"left_out"


def embed(
    encoder: Encoder,
    sources: Mapping[str, Source],
    out: str | Path,
    *,
    plan: Mapping[str, Any],
    half: bool = False,
) -> tuple[int, int]:
    """Write a vector for each image of some splits, or resume writing.

    out: a .parquet file with the columns path, split, index, label (where there is
    one), class and vector; or a .npy file [n, d] with a .txt of paths beside it, a line
    each. half: store float16. plan: what the vectors depend on; parts of another plan
    are refused. Images that cannot be decoded are left out, and listed in
    OUT.left_out.tsv.
    returns: numbers of images written and left out.
    raises: UserError if `out` exists, has another ending, or was begun with another
    plan.
    """
    out = Path(out).expanduser()
    if out.suffix not in ENDINGS:
        raise UserError(f"OUT='{out}': expected a file that ends in .parquet or .npy.")
    if out.exists():
        raise UserError(f"'{out}' exists already: remove it, or name another file.")
    parts = out.with_name(out.name + ".unfinished")
    sizes = {split: len(source) for split, source in sources.items()}
    _begin(parts, dict(plan) | {"examples": sizes, "half": half})
    progress = make_progress(sum(sizes.values()), title="embedding")
    done = 0
    for split, source in sources.items():
        for first in range(0, len(source), _PART):
            span = range(first, min(first + _PART, len(source)))
            part = parts / f"{split}-{first:09}.parquet"
            if part.exists():
                done += len(span)
                continue
            batches = []
            for batch in encoder.embed_source(source, span):
                batches.append(batch)
                done += len(batch.indices) + len(batch.bad)
                progress.show(done, {})
            _write(part, _table(split, source.class_names, batches, half))
    progress.close()
    files = [
        parts / f"{split}-{first:09}.parquet"
        for split, source in sources.items()
        for first in range(0, len(source), _PART)
    ]
    counts = _finish(files, out)
    shutil.rmtree(parts)
    return counts


def embedded(encoder: Encoder, source: Source, title: str) -> Embedded:
    """Return the features of all examples of a source in memory, with progress."""
    progress = make_progress(len(source), title=title)
    batches, done = [], 0
    for batch in encoder.embed_source(source, range(len(source))):
        batches.append(batch)
        done += len(batch.indices) + len(batch.bad)
        progress.show(done, {})
    progress.close()
    left_out = [bad for batch in batches for bad in batch.bad]
    if left_out:
        _, path, error = left_out[0]
        say(f"{len(left_out):,} images left out, such as {_text(path)}: {error}")
    return Embedded(
        np.concatenate([batch.indices for batch in batches]),
        [path for batch in batches for path in batch.paths],
        np.concatenate([batch.labels for batch in batches]),
        np.concatenate([batch.vectors for batch in batches]),
        left_out,
    )


def vectors_of(
    encoder: Encoder, source: Source, title: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors [n, d] and labels [n] of the labelled examples of a source."""
    found = embedded(encoder, source, title)
    known = found.labels != NO_LABEL
    return found.vectors[known], found.labels[known]


def _begin(parts: Path, plan: dict[str, Any]) -> None:
    """Make the folder of parts, or check that it belongs to the same plan."""
    file = parts / _PLAN
    if not file.exists():
        parts.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(plan, indent=2), encoding="utf-8")
        os.replace(unfinished, file)
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    for name in sorted(begun.keys() | plan.keys()):
        if begun.get(name) != plan.get(name):
            raise UserError(
                f"'{parts}' was begun with {name}={begun.get(name)!r}, and now it is "
                f"{plan.get(name)!r}: remove the folder to begin anew, or name another "
                "file."
            )


def _table(
    split: str, class_names: tuple[str, ...], batches: list[Any], half: bool
) -> pyarrow.Table:
    """Return some batches as a table; what was left out is in its metadata."""
    labels = np.concatenate([batch.labels for batch in batches])
    vectors = np.concatenate([batch.vectors for batch in batches])
    values = vectors.astype(np.float16 if half else np.float32).ravel()
    known = labels != NO_LABEL
    names = np.array([*class_names, ""], object)  # of the label -1, the last one
    left_out = [
        (split, index, _text(path), reason_of(error))
        for batch in batches
        for index, path, error in batch.bad
    ]
    columns = {
        "path": pyarrow.array([_text(p) for b in batches for p in b.paths], "string"),
        "split": pyarrow.array([split] * len(labels), "string"),
        "index": np.concatenate([batch.indices for batch in batches]),
        "label": pyarrow.array(labels, "int32", mask=~known),
        "class": pyarrow.array(
            names[labels] if class_names else [None] * len(labels),
            "string",
            mask=~known,
        ),
        "vector": pyarrow.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
    }
    return pyarrow.table(columns, metadata={_LEFT_OUT: json.dumps(left_out).encode()})


def _write(file: Path, table: pyarrow.Table) -> None:
    unfinished = file.with_suffix(".tmp")
    pyarrow.parquet.write_table(table, unfinished)
    os.replace(unfinished, file)


def _finish(files: list[Path], out: Path) -> tuple[int, int]:
    """Put the parts together; return the numbers of rows and of those left out."""
    tables = map(pyarrow.parquet.read_table, files)
    left_out: list[tuple[str, int, str, str]] = []

    def checked() -> Iterator[pyarrow.Table]:
        for table in tables:
            left_out.extend(json.loads(table.schema.metadata[_LEFT_OUT]))
            yield table.replace_schema_metadata(None)

    unfinished = out.with_name(out.name + ".tmp")
    write = _to_parquet if out.suffix == ".parquet" else _to_npy
    rows = write(checked(), unfinished, out)
    os.replace(unfinished, out)
    if left_out:
        lines = ["\t".join(map(str, row)) for row in left_out]
        text = "\n".join(["split\tindex\tpath\treason", *lines, ""])
        out.with_name(out.name + ".left_out.tsv").write_text(text, encoding="utf-8")
    return rows, len(left_out)


def _to_parquet(tables: Iterator[pyarrow.Table], unfinished: Path, out: Path) -> int:
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


def _to_npy(tables: Iterator[pyarrow.Table], unfinished: Path, out: Path) -> int:
    vectors, paths = [], []
    for table in tables:
        column = table["vector"].combine_chunks()
        values = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
        vectors.append(values)
        paths += [
            row["path"] or f"{row['split']}/{row['index']}"
            for row in table.select(["path", "split", "index"]).to_pylist()
        ]
    with unfinished.open("wb") as file:
        np.save(file, np.concatenate(vectors))
    lines = "".join(path.replace("\n", "\\n") + "\n" for path in paths)
    out.with_suffix(".txt").write_text(lines, encoding="utf-8")
    return len(paths)


def _text(path: str) -> str:
    """Return a path as valid Unicode: names need not be."""
    return path.encode("utf-8", "backslashreplace").decode()
