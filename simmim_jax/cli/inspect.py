"""Say what a data set has before training on it, or write one image as a batch has it.

    simmim inspect /data/photos
    simmim inspect /data/scenes --split=train --json
    simmim inspect /data/scenes --example=0 --out=first.npy --image_size=224,224

DATASET is any value of config.data.dataset. A sample of the images is decoded, so that
a million files take seconds; --json prints one object. --example writes the array
[h, w, c] that evaluation hands to the model, before it is normalised: at the size of
the image itself, these are the values of the file.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from simmim_jax.cli import arguments
from simmim_jax.data.survey.inspect import (
    IMAGES,
    Inspection,
    describe,
    inspect,
    size_text,
)
from simmim_jax.errors import UserError

# Bands that are listed.
_SHOWN = 16


def main(argv: Sequence[str] | None = None) -> None:
    """Inspect a data set, or write one of its images."""
    args = _parser().parse_args(argv)
    if (args.example is None) != (args.out is None):
        sys.exit("--example=N and --out=FILE.npy belong together: set both or none.")
    try:
        if args.example is not None:
            print(_write_example(args))
            return
        splits = (args.split,) if args.split else ()
        if args.sample < 1:
            raise UserError(f"--sample={args.sample} must be 1 or more.")
        found = inspect(args.dataset, splits, data_dir=args.data_dir, count=args.sample)
    except (UserError, OSError) as error:
        sys.exit(str(error))
    if args.json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        print(*_report(found), sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("inspect", __doc__)
    add = parser.add_argument
    add("dataset", help="what to inspect")
    add("--split", help="split to look at (all that there are; --example: train)")
    add("--data_dir", default="", help="folder of TFDS data sets")
    add("--json", action="store_true", help="print one JSON object")
    add("--sample", type=int, default=IMAGES, help="images to decode (%(default)s)")
    add("--example", type=int, metavar="N", help="number of an image, from 0")
    add("--out", metavar="FILE.npy", help="where --example is written")
    add("--channels", type=int, help="of the example (those of the file)")
    add(
        "--image_size",
        type=arguments.size,
        metavar="H,W",
        help="of the example [pixels] (that of the image)",
    )
    add(
        "--eval_crop",
        type=float,
        default=1.0,
        help="as config.data.eval_crop; 1.0: the whole image (%(default)s)",
    )
    add(
        "--value_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that become 0 and 255 (keep values)",
    )
    add("--bands", default="", metavar="A,B", help="names of bands (all)")
    add("--level", type=int, default=0, help="of a pyramid (0, the full resolution)")
    return parser


def _write_example(args: argparse.Namespace) -> str:
    """Write the array that evaluation hands to a batch; return what it is."""
    from simmim_jax.config import parsing, schema
    from simmim_jax.data.codecs.base import Decoding
    from simmim_jax.data.codecs.registry import read
    from simmim_jax.data.sources.registry import open_source
    from simmim_jax.tasks.views import eval_view

    split = args.split or "train"
    source = open_source(args.dataset, split, data_dir=args.data_dir)
    if not 0 <= args.example < len(source):
        raise UserError(
            f"--example={args.example}: expected 0 to {len(source) - 1:,}, the images "
            f"of split={split!r}."
        )
    example = source[args.example]
    bands = tuple(filter(None, args.bands.split(",")))
    value_range = tuple(args.value_range or ())
    decoding = Decoding(args.channels, bands, level=args.level)
    stored = read(example["image"], decoding).pixels
    fields = {
        "image_size": args.image_size or stored.shape[:2],
        "channels": stored.shape[2],
        "dtype": "uint8" if value_range else str(stored.dtype),
        "eval_crop": args.eval_crop,
        "value_range": value_range,
        "bands": bands,
        "level": args.level,
        "mean": (0.0,) * stored.shape[2],
    }
    data = parsing.parse_group(schema.Data, fields, "config.data")
    row = eval_view(data)(example, np.random.default_rng(0))
    image = row["image"]
    with open(args.out, "wb") as file:  # np.save would add an ending
        np.save(file, image, allow_pickle=False)
    label = int(row["label"])
    names = source.class_names
    of_class = f", class {names[label]}" if 0 <= label < len(names) else ""
    return (
        f"{args.out}: {image.dtype} {list(image.shape)}, {np.nanmin(image):g} to "
        f"{np.nanmax(image):g}{of_class}, from {example.get('path') or args.dataset}"
    )


# ---- The report ----------------------------------------------------------------------


def _report(found: Inspection) -> Iterator[str]:
    total = sum(found.splits.values())
    what = describe(found.encodings, found.bands, found.dtypes, found.sizes)
    kind = "images"
    if found.sounds:
        what, kind = "/".join(found.encodings), "sounds"
    classes = f", {found.classes.number:,} classes" if found.classes else ""
    yield f"{found.dataset}: {total:,} {kind} ({what or 'none can be read'}){classes}"
    rows = [
        ("splits", _counts(found.splits)),
        ("files", _counts(found.files)),
        ("sample", f"{found.sampled:,} {kind}"),
        ("encodings", _counts(found.encodings)),
        ("values", _counts(found.dtypes)),
    ]
    if found.sizes:
        smallest, median, largest = map(size_text, found.sizes)
        sizes = f"{smallest} to {largest}, median {median} (height x width)"
        rows.append(("sizes", smallest if smallest == largest else sizes))
    if found.sounds:
        shortest, middle, longest = found.sounds.seconds
        rates = {f"{rate:,} Hz": n for rate, n in found.sounds.rates.items()}
        channels = {f"{number}:": n for number, n in found.bands.items()}
        rows += [
            ("lengths", f"{shortest:.2f} to {longest:.2f} s, median {middle:.2f} s"),
            ("rates", _counts(rates)),
            ("channels", _counts(channels)),
            ("texts", f"{found.sounds.texts:,} sounds have one"),
        ]
    for band in found.values[:_SHOWN]:
        values = "no valid value"
        if band.min is not None:
            values = f"{band.min:g} to {band.max:g}"
        missing = f", {band.nodata:.1%} without data" if band.nodata else ""
        rows.append((f"band {band.name}", values + missing))
    if len(found.values) > _SHOWN:
        rows.append(("bands", f"{len(found.values) - _SHOWN} more"))
    if found.classes and found.classes.smallest and found.classes.largest:
        ends = (found.classes.smallest, found.classes.largest)
        (small, few), (large, many) = ends
        rows.append(("classes", f"{few:,} images of {small} to {many:,} of {large}"))
    if found.unlabelled:
        rows.append(("no labels", found.unlabelled))
    for group in found.unreadable:
        text = f"{group.images:,} {group.reason}, such as {group.first}"
        rows.append(("unreadable", f"{text}: {group.message}"))
    rows += [("note", oddity) for oddity in found.oddities]
    if found.command:
        rows.append(("to train", shlex.join(found.command)))
    width = max(len(title) for title, _ in rows)
    yield from (f"{title:<{width}}  {text}" for title, text in rows if text)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
