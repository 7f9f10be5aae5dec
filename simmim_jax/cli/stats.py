"""Measure the values of a data set per band: mean, deviation, range, percentiles.

    simmim stats /my/scenes
    simmim stats /my/scenes --channels=13 --all --out=stats.json --picture=values.png

DATASET is any value of config.data.dataset. A run reads a file that --out has written
as --config.data.statistics=stats.json; without one it measures a sample by itself.
Pixels that are NaN, or marked as missing, do not count. Integers of 8 and 16 bits are
counted exactly; percentiles of other values are those of 131,072 random ones a band.
Of sounds it measures the spectrograms of evaluation, --image_size=BANDS,FRAMES.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from simmim_jax.cli import arguments
from simmim_jax.data.codecs.base import Decoding, Raster
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.registry import open_source
from simmim_jax.data.survey.sample import (
    Values,
    decoded_by,
    holds_sounds,
    sample,
)
from simmim_jax.data.survey.stats import PERCENTILES, Accumulator, Statistics, to_json
from simmim_jax.errors import UserError
from simmim_jax.monitoring.progress import make_progress


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a split of a data set; print a table."""
    args = _parser().parse_args(argv)
    try:
        source = open_source(args.dataset, args.split, data_dir=args.data_dir)
        count = len(source) if args.all else min(args.sample, len(source))
        sums = _measured(source, count, args)
        statistics = sums.result(len(source))
        print("\n".join(table(statistics)))
        if args.out:
            with open(args.out, "w") as file:
                json.dump(to_json(statistics), file, indent=1)
            print(f"statistics         {args.out}")
        if args.picture:
            from simmim_jax.monitoring import pictures

            histograms = {
                band.name: sums.histogram(index)
                for index, band in enumerate(statistics.bands)
            }
            print(f"picture            {pictures.histograms(histograms, args.picture)}")
    except BrokenPipeError:  # as in `simmim stats DATA | head`
        raise
    except (OSError, UserError) as error:
        sys.exit(str(error))


def table(statistics: Statistics) -> list[str]:
    """Return the statistics as lines, a band each."""
    mark = "" if statistics.nodata is None else f", nodata {statistics.nodata:g}"
    columns = ["mean", "std", "min", *(f"{p:g} %" for p in PERCENTILES), "max"]
    width = max(4, *(len(band.name) for band in statistics.bands))
    lines = [
        f"{statistics.images:,} of {statistics.of:,} images, {statistics.dtype}{mark}",
        f"{'band':<{width}}"
        + "".join(f"{name:>11}" for name in columns)
        + f"{'no data':>9}",
    ]
    for band in statistics.bands:
        values = [band.mean, band.std, band.min, *band.percentiles.values(), band.max]
        lines.append(
            f"{band.name:<{width}}"
            + "".join(f"{value:>11.5g}" for value in values)
            + f"{band.nodata:>9.1%}"
        )
    return lines


def _measured(source: Source, count: int, args: argparse.Namespace) -> Accumulator:
    sums, bad = Accumulator(), 0
    values = _spectrograms(args) if holds_sounds(source) else _images(args)
    progress = make_progress(count, title="images")
    try:
        for step, each in enumerate(sample(source, count, values), 1):
            if isinstance(each.image, Raster):
                sums.add(each.image, each.index, args.nodata)
            else:
                bad += 1
            progress.tick(step)
    finally:
        progress.close()
    if bad:
        print(f"{bad:,} images cannot be read and do not count")
    return sums


def _images(args: argparse.Namespace) -> Values:
    bands = tuple(args.bands or ())
    return decoded_by(Decoding(args.channels, bands, level=args.level))


def _spectrograms(args: argparse.Namespace) -> Values:
    from simmim_jax.config.schema import Data
    from simmim_jax.tasks.views import values_of

    data = Data(view="speech", channels=1, flip=False, image_size=args.image_size)
    return values_of(data)


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("stats", __doc__)
    add = parser.add_argument
    add("dataset", help="data set to measure")
    add("--split", default="train", help="split (%(default)s)")
    add("--data_dir", default="", help="folder of TFDS data sets")
    add(
        "--sample",
        type=_positive,
        default=1000,
        help="evenly spaced images to measure (%(default)s)",
    )
    add("--all", action="store_true", help="measure all images")
    add(
        "--channels",
        type=_positive,
        help="1 or 3: turn photographs into grey or colour (as they are)",
    )
    add("--bands", nargs="+", metavar="NAME", help="bands, by the names in the files")
    add(
        "--image_size",
        type=arguments.size,
        default=(80, 64),
        metavar="H,W",
        help="bands and frames of spectrograms (80,64)",
    )
    add("--level", type=int, default=0, help="of a pyramid (0, the full resolution)")
    add(
        "--nodata",
        type=float,
        help="value of pixels without a measurement (what the files declare)",
    )
    add("--out", metavar="FILE.json", help="write the statistics")
    add("--picture", metavar="FILE.png", help="draw histograms")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number
