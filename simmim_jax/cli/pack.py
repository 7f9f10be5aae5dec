"""Pack a data set into ArrayRecord shards of smaller images, for faster reads.

    simmim pack /my/images /my/packed
    simmim pack tfds:imagenet2012 /my/packed --short_side=320
    simmim pack /my/packed

DATASET is any value of config.data.dataset; afterwards OUT is one, too. An interrupted
command resumes when it is run again, and ends with the same bytes. Images that cannot
be decoded are skipped and listed in OUT/skipped.tsv. Values of more than 8 bits need
--format=raw, which keeps names of bands and nodata values, too.
With a packed folder as the only argument, the command reads it and compares checksums.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from simmim_jax.cli import arguments
from simmim_jax.data.loader.workers import num_cpus
from simmim_jax.data.pack.command import pack, verify
from simmim_jax.data.pack.shards import FORMATS, Options
from simmim_jax.data.sources import packed
from simmim_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Pack a data set, or verify a packed one."""
    args = _parser().parse_args(argv)
    try:
        _check_numbers(args)
        if args.out is None:
            return verify(args.dataset, args.workers)
        pack(
            args.dataset,
            args.out,
            _named_splits(args.splits),
            Options(
                short_side=args.short_side,
                format=args.format,
                quality=args.quality,
                channels=args.channels,
                value_range=args.value_range and tuple(args.value_range),
                level=args.level,
                max_image_pixels=args.max_image_pixels,
                max_file_mb=args.max_file_mb,
            ),
            data_dir=args.data_dir,
            workers=args.workers,
            shard_mb=args.shard_mb,
        )
    except (OSError, UserError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(
            "Interrupted. Run the same command again to resume: complete shards are "
            "kept."
        )


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("pack", __doc__)
    add = parser.add_argument
    add("dataset", help="data set to pack, or packed folder to verify")
    add("out", nargs="?", help="new folder")
    add(
        "--splits",
        default="train,validation",
        help="splits to pack; NAME=SPLIT renames one, as in 'train=train[:90%%]' "
        "(%(default)s)",
    )
    add("--data_dir", default="", help="folder of TFDS data sets")
    add(
        "--short_side",
        type=int,
        default=256,
        help="of the packed images [pixels]; smaller images keep their size. 0: all "
        "keep it, and with --format=jpeg files are copied unchanged (%(default)s)",
    )
    add(
        "--format",
        choices=FORMATS,
        default="jpeg",
        help="raw: the values without loss (%(default)s)",
    )
    add("--quality", type=int, default=90, help="of JPEG, 1 to 100 (%(default)s)")
    add(
        "--channels",
        type=int,
        default=3,
        help="1 or 3; of arrays, any number (%(default)s)",
    )
    add(
        "--value_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that become 0 and 255, such as 0 4095 (keep values)",
    )
    add("--level", type=int, default=0, help="of a pyramid (0, the full resolution)")
    add(
        "--max_image_pixels",
        type=int,
        default=Options.max_image_pixels,
        help="larger images are skipped (%(default)s)",
    )
    add(
        "--max_file_mb",
        type=int,
        default=Options.max_file_mb,
        help="larger files are skipped [MB] (%(default)s)",
    )
    add("--workers", type=int, default=num_cpus(), help="processes (%(default)s)")
    add(
        "--shard_mb",
        type=float,
        default=64,
        help=f"size of a shard [MB]; larger for data sets that would have more than "
        f"{packed.MAX_SHARDS} shards (%(default)s)",
    )
    return parser


def _check_numbers(args: argparse.Namespace) -> None:
    for name, expected, valid in (
        ("short_side", "0 or more", args.short_side >= 0),
        ("quality", "from 1 to 100", 1 <= args.quality <= 100),
        ("shard_mb", "more than 0", args.shard_mb > 0),
        ("workers", "1 or more", args.workers > 0),
        ("channels", "1 or more", args.channels > 0),
        ("level", "0 or more", args.level >= 0),
        ("max_image_pixels", "1 or more", args.max_image_pixels > 0),
        ("max_file_mb", "1 or more", args.max_file_mb > 0),
    ):
        if not valid:
            raise UserError(f"--{name}={getattr(args, name)} must be {expected}.")


def _named_splits(text: str) -> dict[str, str]:
    """ "train,held_out=test[:10%]" -> {"train": "train", "held_out": "test[:10%]"}."""
    splits: dict[str, str] = {}
    for entry in text.split(","):
        name, _, split = entry.partition("=")
        if not re.fullmatch(r"\w+", name) or name in splits:
            raise UserError(
                f"--splits={text!r}: expected different names of letters and digits. "
                "Name a slice as in --splits='train=train[:90%]'."
            )
        splits[name] = split or name
    return splits
