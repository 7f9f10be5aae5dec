"""Explain the fields of a config: type, unit, allowed values, default and meaning.

    simmim fields
    simmim fields data
    simmim fields --config=quickstart optim.lr

Without --config, the fields of all modes are listed; with it, the values are those of
that config. A name shows that field, or all fields of a group.
"""

import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from simmim_jax.cli import arguments
from simmim_jax.config import schema
from simmim_jax.config.parsing import leaves, meaning
from simmim_jax.errors import did_you_mean

_WIDTH = 88


def main(argv: Sequence[str] | None = None) -> None:
    """Print the fields whose name begins with one of the arguments, or all."""
    parser = arguments.parser("fields", __doc__)
    arguments.add_config(parser, "quickstart")
    parser.add_argument("names", nargs="*", help="fields or groups, such as data")
    args, rest = parser.parse_known_args(argv)
    arguments.check_flags(parser, rest)
    if args.config:
        config = schema.parse(arguments.load(args.config, rest)[1])
        runs: list[tuple[str, Any]] = [("", schema.single(config))]
        if isinstance(config, schema.Compare):
            runs = [("pretrain.", config.pretrain), ("finetune.", config.finetune)]
    else:
        runs = [("", kind()) for kind in typing.get_args(schema.RunConfig)]
    entries = (entry for prefix, run in runs for entry in _entries(prefix, run, args))
    shown = list(dict.fromkeys(entries))
    if not shown:
        names = {name for _, run in runs for name, *_ in leaves(run)}
        groups = {name.split(".")[0] for name in names}
        sys.exit(
            f"no field {' or '.join(args.names)}: expected one of "
            f"{', '.join(sorted(groups))}, or a field of theirs."
            + did_you_mean(args.names[0], sorted(names | groups))
        )
    print("\n".join(shown))


def _entries(prefix: str, run: Any, args: Any) -> Iterator[str]:
    for name, each, kind, value in leaves(run):
        asked = [n.removeprefix("config.") for n in args.names]
        if asked and not any(name == n or name.startswith(f"{n}.") for n in asked):
            continue
        what = meaning(each)
        details = [type_name(kind), what.unit, what.allowed]
        yield "\n".join(
            [
                f"--config.{prefix}{name}={value!r}",
                textwrap.fill(
                    f"[{'; '.join(filter(None, details))}] {what.doc}",
                    _WIDTH,
                    initial_indent="    ",
                    subsequent_indent="    ",
                ),
            ]
        )


def type_name(kind: Any) -> str:
    """Return the type of a field as people write it: "int", "tuple[int, int]"."""
    if typing.get_args(kind):
        # "tuple[simmim_jax.config.parsing.Duration, ...]" without the module.
        return re.sub(r"\w+(?:\.\w+)*\.(?=\w)", "", str(kind))
    return kind.__name__
