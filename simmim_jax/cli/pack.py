"""Pack any data set into ArrayRecord shards of smaller images, which are read faster.

    simmim pack /my/images /my/packed
    simmim pack tfds:imagenet2012 /my/packed --short_side=320
    simmim pack /my/packed

DATASET is what config.data.dataset takes, and so is OUT once it is packed. A command
that was stopped resumes when it is run again, and ends with the same bytes. Images that
cannot be decoded are skipped and listed in OUT/skipped.tsv. With one packed folder and
nothing else, the command reads all of it and compares checksums.
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
    """Packs, or verifies what was packed."""
    args = _parser().parse_args(argv)
    try:
        _check_numbers(args)
        if args.out is None:
            return verify(args.dataset, args.workers)
        pack(
            args.dataset,
            args.out,
            _named_splits(args.splits),
            Options(args.short_side, args.format, args.quality, args.channels),
            data_dir=args.data_dir,
            workers=args.workers,
            shard_mb=args.shard_mb,
        )
    except (OSError, UserError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on; complete shards are kept.")


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("pack", __doc__)
    add = parser.add_argument
    add("dataset", help="what to pack, or a packed folder to verify")
    add("out", nargs="?", help="folder to make")
    add(
        "--splits",
        default="train,validation",
        help="what to pack; a part has a name, as in 'train=train[:90%%]' "
        "(%(default)s)",
    )
    add("--data_dir", default="", help="where TFDS sets are")
    add(
        "--short_side",
        type=int,
        default=256,
        help="pixels; smaller images stay as large as they are. 0: so do all, and "
        "encoded files stay as they are (%(default)s)",
    )
    add("--format", choices=FORMATS, default="jpeg", help="raw: pixels (%(default)s)")
    add("--quality", type=int, default=90, help="of JPEG, 1 to 100 (%(default)s)")
    add("--channels", type=int, choices=(1, 3), default=3, help="(%(default)s)")
    add("--workers", type=int, default=num_cpus(), help="processes (%(default)s)")
    add(
        "--shard_mb",
        type=float,
        default=64,
        help=f"MB in a shard, more where there would be over {packed.MAX_SHARDS} "
        "(%(default)s)",
    )
    return parser


def _check_numbers(args: argparse.Namespace) -> None:
    for name, expected, valid in (
        ("short_side", "0 or more", args.short_side >= 0),
        ("quality", "from 1 to 100", 1 <= args.quality <= 100),
        ("shard_mb", "more than 0", args.shard_mb > 0),
        ("workers", "1 or more", args.workers > 0),
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
                f"--splits={text}: expected different names of letters and digits; "
                "name a part as in --splits='train=train[:90%]'."
            )
        splits[name] = split or name
    return splits
