"""Features of a whole data set in one file, written so that it can be resumed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from simmim_jax.data.sources.base import NO_LABEL, Source
from simmim_jax.data.sources.paths import printable
from simmim_jax.monitoring.progress import make_progress, say
from simmim_jax.tasks.encoder import Embedded, Encoder
from simmim_jax.tasks.parts import Rows, Split, to_parquet, write_table


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
    each. half: store float16. plan: what the vectors depend on. Images that cannot be
    decoded are left out.
    returns: numbers of images written and left out; see `write_table`.
    """

    def rows(split: Split, span: range) -> Iterator[Rows]:
        for batch in encoder.embed_source(split.source, span):
            names = split.source.class_names
            yield Rows(_table(split.name, names, batch, half), batch.bad)

    return write_table(
        out,
        [Split("", split, source) for split, source in sources.items()],
        rows,
        {".parquet": to_parquet, ".npy": _to_npy},
        plan=dict(plan) | {"half": half},
        title="embedding",
    )


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
        say(f"{len(left_out):,} images left out, such as {printable(path)}: {error}")
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


def _table(
    split: str, class_names: tuple[str, ...], batch: Embedded, half: bool
) -> pyarrow.Table:
    values = batch.vectors.astype(np.float16 if half else np.float32)
    known = batch.labels != NO_LABEL
    names = np.array([*class_names, ""], object)  # of the label -1, the last one
    columns = {
        "path": pyarrow.array(map(printable, batch.paths), "string"),
        "split": pyarrow.array([split] * len(known), "string"),
        "index": batch.indices,
        "label": pyarrow.array(batch.labels, "int32", mask=~known),
        "class": pyarrow.array(
            names[batch.labels] if class_names else [None] * len(known),
            "string",
            mask=~known,
        ),
        "vector": pyarrow.FixedSizeListArray.from_arrays(
            values.ravel(), values.shape[1]
        ),
    }
    return pyarrow.table(columns)


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
