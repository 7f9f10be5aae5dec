"""Find the images that look alike to an encoder.

    simmim neighbours runs/mine /my/images --query=photo.jpg
    simmim neighbours runs/mine /my/images --duplicates=0.98

For each query, the nearest images of a data set by the cosine of their features;
without one, for a few images of the set itself. --duplicates lists pairs that are at
least as similar as that, of each image the --k nearest. Draws a picture, and writes a
table.
"""

import csv
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simmim_jax.cli import arguments
from simmim_jax.data.sources.paths import printable
from simmim_jax.errors import UserError
from simmim_jax.runtime import platforms

if TYPE_CHECKING:  # it imports JAX
    from simmim_jax.data.sources.base import Source
    from simmim_jax.tasks.encoder import Encoder
    from simmim_jax.tasks.probe import Nearest

_ROWS = 16  # of the picture


def main(argv: Sequence[str] | None = None) -> None:
    """Print, draw and write the nearest images."""
    parser = arguments.parser("neighbours", __doc__)
    parser.add_argument("run", help="workdir of a run, or a checkpoint")
    parser.add_argument("dataset", help="images to search")
    parser.add_argument("--query", nargs="+", default=[], help="image files")
    parser.add_argument(
        "--duplicates", type=float, metavar="COSINE", help="list similar pairs instead"
    )
    parser.add_argument("--k", type=int, default=6, help="images a query (%(default)s)")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    arguments.add_features(parser)
    parser.add_argument("--output", default="neighbours.png", help="(%(default)s)")
    parser.add_argument("--table", default="neighbours.csv", help="(%(default)s)")
    args = parser.parse_args(argv)
    platforms.leave_out_absent_tpu()
    from simmim_jax.data.sources.registry import open_source
    from simmim_jax.tasks.encoder import Encoder
    from simmim_jax.tasks.views import formats

    with arguments.explained():
        encoder = Encoder.load(args.run, pool=args.pool, block=args.block)
        print(f"{args.run}: {encoder.describe()}")
        source = open_source(
            args.dataset,
            args.split,
            data_dir=args.data_dir,
            formats=formats(encoder.config.data),
        )
        _search(encoder, source, args)


def _search(encoder: "Encoder", source: "Source", args: Any) -> None:
    from simmim_jax.tasks import probe
    from simmim_jax.tasks.embed import embedded

    found = embedded(encoder, source, "embedding")
    images = len(found.vectors)
    if images < 2:
        raise UserError(f"{args.dataset!r} has {images} images: expected 2 or more.")
    paths = [
        path or f"example {index}"
        for path, index in zip(found.paths, found.indices, strict=True)
    ]
    k = min(args.k, images - 1)
    if args.query:
        queries, names = encoder.embed(args.query), args.query
        nearest = probe.nearest(queries, found.vectors, k)
        pictures: list[Any] = list(args.query)
    else:
        chosen = np.arange(images)
        if args.duplicates is None:
            chosen = np.linspace(0, images - 1, min(_ROWS, images)).astype(int)
        names = [paths[i] for i in chosen]
        queries = found.vectors[chosen]
        nearest = _without_itself(probe.nearest(queries, found.vectors, k + 1), chosen)
        pictures = [int(found.indices[i]) for i in chosen]
    rows = _rows(names, paths, nearest, args.duplicates)
    for query, path, cosine in rows[: 4 * _ROWS]:
        print(f"{cosine:.4f}  {printable(query)}  {printable(path)}")
    if len(rows) > 4 * _ROWS:
        print(f"... and {len(rows) - 4 * _ROWS:,} more")
    with open(
        args.table, "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        csv.writer(file).writerows([["query", "path", "cosine"], *rows])
    print(f"table: {args.table}, {len(rows):,} pairs")
    shown = {query for query, _, _ in rows}
    drawn = [i for i, name in enumerate(names) if name in shown][:_ROWS]
    if drawn:
        _draw(encoder, source, found.indices, pictures, nearest, drawn, args.output)
        print(f"picture: {args.output}")


def _without_itself(nearest: "Nearest", chosen: np.ndarray) -> "Nearest":
    """Return the neighbours of vectors that are in the bank themselves."""
    others = nearest.indices != chosen[:, None]
    others[others.all(axis=1), -1] = False  # it was beyond k equal ones
    shape = len(chosen), nearest.indices.shape[1] - 1
    return type(nearest)(*(array[others].reshape(shape) for array in nearest))


def _rows(
    names: Sequence[str],
    paths: Sequence[str],
    nearest: "Nearest",
    threshold: float | None,
) -> list[tuple[str, str, float]]:
    """Return (query, path, cosine); with a threshold, each similar pair once."""
    rows, seen = [], set()
    for row, name in enumerate(names):
        found = zip(nearest.indices[row], nearest.similarities[row], strict=True)
        for index, cosine in found:
            pair = frozenset((name, paths[index]))
            if threshold is not None and (cosine < threshold or pair in seen):
                continue
            seen.add(pair)
            rows.append((name, paths[index], float(cosine)))
    return sorted(rows, key=lambda row: -row[2]) if threshold is not None else rows


def _draw(
    encoder: "Encoder",
    source: "Source",
    indices: np.ndarray,
    pictures: Sequence[Any],
    nearest: "Nearest",
    drawn: Sequence[int],
    output: str,
) -> None:
    from simmim_jax.monitoring.pictures import neighbour_grid
    from simmim_jax.tasks.display import displayed

    data = encoder.config.data

    def shown(what: Sequence[Any]) -> np.ndarray:
        contents = [source[i]["image"] if isinstance(i, int) else i for i in what]
        return displayed(data, encoder.prepare(contents))

    neighbours = [
        shown([int(indices[i]) for i in nearest.indices[row]]) for row in drawn
    ]
    queries = shown([pictures[row] for row in drawn])
    neighbour_grid(queries, np.stack(neighbours), output)
