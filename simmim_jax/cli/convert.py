"""Convert checkpoints from and to other libraries.

    simmim convert simmim_pretrain.pth runs/pretrained
    simmim convert runs/mine hf/mine --to=huggingface

The source is an official .pth, a file or folder of timm, a folder of Hugging Face
transformers, or a workdir of simmim_jax; the format is detected. Set what the source
does not record with --model.FIELD=VALUE and --data.FIELD=VALUE, fields of config.model
and config.data.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from simmim_jax.checkpoints.convert.formats import FORMATS, notes, read, write
from simmim_jax.checkpoints.convert.model import Model
from simmim_jax.checkpoints.convert.overrides import Overrides
from simmim_jax.cli import arguments
from simmim_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and print what was read, left out and written."""
    parser = arguments.parser("convert", __doc__)
    parser.add_argument("source", type=Path, help="file or folder to read")
    parser.add_argument("target", type=Path, help="file or folder to write")
    parser.add_argument(
        "--to", choices=FORMATS, default=FORMATS[0], help="format to write"
    )
    parser.add_argument(
        "--classes", type=Path, help="text file with one class name per line"
    )
    parser.add_argument(
        "--leave_out",
        default="",
        metavar="PATTERN",
        help="leave out tensors whose names match",
    )
    args, rest = parser.parse_known_args(argv)
    try:
        re.compile(args.leave_out)
        overrides = Overrides(
            **_fields(rest),
            class_names=_lines(args.classes) if args.classes else (),
            leave_out=args.leave_out,
        )
        model = read(args.source, overrides)
        print(f"read {args.source}: {_summary(model)}")
        model.params()  # raises if tensors do not fit
        unwritten = write(model, args.target, args.to, args.source)
    except re.error as error:
        sys.exit(
            f"--leave_out={args.leave_out}: expected a regular expression, such as "
            f"'head': {error}."
        )
    except (OSError, UserError) as error:
        sys.exit(str(error))
    for note in notes(model, args.to):
        print(f"note: {note}")
    if left_out := [*model.left_out, *unwritten]:
        print(f"left out: {_grouped(left_out)}")
    print(f"wrote {args.target}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"--classes={path} is no text ({error}). Expected the name of a class on "
            "each line, in UTF-8."
        ) from error


def _fields(flags: Iterable[str]) -> dict[str, dict[str, Any]]:
    """["--model.depth=12"] -> {"model": {"depth": 12}, "data": {}}."""
    fields: dict[str, dict[str, Any]] = {"model": {}, "data": {}}
    for flag in flags:
        found = re.fullmatch(r"--(model|data)\.(\w+)=(.*)", flag)
        if not found:
            raise UserError(
                f"{flag}: expected --model.FIELD=VALUE or --data.FIELD=VALUE."
            )
        part, name, value = found.groups()
        try:
            fields[part][name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            fields[part][name] = value  # text without quotes
    return fields


def _summary(model: Model) -> str:
    height, width = model.data["image_size"]
    size = sum(value.size for value in model.state.values())
    return (
        f"{model.kind}, {model.model['name']}, {size:,} parameters, images of "
        f"{height}x{width}x{model.channels}, mean {_round(model.data['mean'])}, "
        f"std {_round(model.data['std'])}"
    )


def _round(numbers: Iterable[float]) -> str:
    return "(" + ", ".join(f"{number:.3g}" for number in numbers) + ")"


def _grouped(names: Iterable[str]) -> str:
    """Names with numbers replaced by "*", and the count of each."""
    counts = Counter(re.sub(r"\d+", "*", name) for name in names)
    return ", ".join(f"{name} ({n})" if n > 1 else name for name, n in counts.items())
