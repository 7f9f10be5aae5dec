"""Checkpoints of others to ours and back.

    python -m simmim_jax.convert simmim_pretrain.pth runs/pretrained
    python -m simmim_jax.convert runs/mine hf/mine --to=huggingface

The source is an official .pth, a file or folder of timm, a folder of Hugging Face
transformers, or a workdir of ours; which, its content tells. What it does not tell,
--model.FIELD=VALUE and --data.FIELD=VALUE do: fields of config.model and config.data.
"""

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from simmim_jax.convert import files, huggingface, microsoft, timm
from simmim_jax.convert.model import Given, Model

FORMATS = ("simmim_jax", "official", "huggingface", "timm")


def read(path: Path, given: Given) -> Model:
    """The model in a file or folder of any format."""
    if path.is_file():
        return microsoft.read(path, given)
    if huggingface.is_folder(path):
        return huggingface.read(path, given)
    if timm.is_folder(path):
        return timm.read(path, given)
    if given != Given() and path.exists():
        raise ValueError(
            f"'{path}' is no file, and has no config.json of transformers or timm. "
            "Where it is a workdir of ours, leave all flags but --to away: it tells "
            "all there is to know."
        )
    return Model.load(path)


def write(model: Model, path: Path, form: str, source: Path) -> list[str]:
    """Writes the model in one of FORMATS; returns the names of what was left out."""
    if path.exists():
        raise FileExistsError(f"'{path}' exists: choose another name, or remove it.")
    if (path.suffix in files.SUFFIXES) != (form == "official") and form != "timm":
        kind = f"a file, {files.SUFFIXES}" if form == "official" else "a folder"
        raise ValueError(f"'{path}': expected {kind}, for --to={form}.")
    if form == "timm":
        return timm.write(model, path)
    if form == "simmim_jax":
        model.save(path, str(source))
    elif form == "official":
        microsoft.write(model, path)
    else:
        huggingface.write(model, path)
    return []


def main(argv: Sequence[str] | None = None) -> None:
    """Converts, and prints what was read, left out and written."""
    parser = argparse.ArgumentParser(
        prog="python -m simmim_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="file or folder to read")
    parser.add_argument("target", type=Path, help="file or folder to write")
    parser.add_argument(
        "--to", choices=FORMATS, default=FORMATS[0], help="format to write"
    )
    parser.add_argument(
        "--classes", type=Path, help="text file with the name of a class in each line"
    )
    parser.add_argument(
        "--leave_out",
        default="",
        metavar="PATTERN",
        help="leave out tensors whose official names match",
    )
    args, rest = parser.parse_known_args(argv)
    try:
        given = Given(
            **_fields(rest),
            class_names=args.classes.read_text().splitlines() if args.classes else (),
            leave_out=args.leave_out,
        )
        model = read(args.source, given)
        print(f"read {args.source}: {_describe(model)}")
        model.params()  # raises where tensors do not fit
        unwritten = write(model, args.target, args.to, args.source)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if left_out := [*model.left_out, *unwritten]:
        print(f"left out: {_summary(left_out)}")
    print(f"wrote {args.target}")


def _fields(flags: Iterable[str]) -> dict[str, dict[str, Any]]:
    """["--model.depth=12"] -> {"model": {"depth": 12}, "data": {}}."""
    fields: dict[str, dict[str, Any]] = {"model": {}, "data": {}}
    for flag in flags:
        found = re.fullmatch(r"--(model|data)\.(\w+)=(.*)", flag)
        if not found:
            raise ValueError(
                f"{flag}: expected --model.FIELD=VALUE or --data.FIELD=VALUE."
            )
        part, name, value = found.groups()
        try:
            fields[part][name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            fields[part][name] = value  # a text without its quotes
    return fields


def _describe(model: Model) -> str:
    height, width = model.data["image_size"]
    size = sum(value.size for value in model.state.values())
    return (
        f"{model.kind}, {model.model['name']}, {size:,} parameters, images of "
        f"{height}x{width}x{model.channels}, mean {_round(model.data['mean'])}, "
        f"std {_round(model.data['std'])}"
    )


def _round(numbers: Iterable[float]) -> str:
    return "(" + ", ".join(f"{number:.3g}" for number in numbers) + ")"


def _summary(names: Iterable[str]) -> str:
    """Names with numbers made alike, and how many of each."""
    counts = Counter(re.sub(r"\d+", "*", name) for name in names)
    return ", ".join(f"{name} ({n})" if n > 1 else name for name, n in counts.items())


if __name__ == "__main__":
    main()
