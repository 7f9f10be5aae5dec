"""Flags that several commands share, and configs found by name."""

import argparse
import contextlib
import importlib.util
import itertools
import operator
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from simmim_jax.config.parsing import TYPES
from simmim_jax.errors import NotFoundError, UserError, did_you_mean

# What Ctrl-C says where parts of the result are kept.
RESUMES = "Interrupted. Run the same command again to resume."


class _Parser(argparse.ArgumentParser):
    """A parser that knows what an unknown flag may mean."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, or exit with a sentence."""
        check_flags(self, sys.argv[1:] if args is None else args)
        return super().parse_args(args, namespace)


def parser(command: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of a sub-command; --help shows `doc`, examples included."""
    return _Parser(
        prog=f"simmim {command}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_config(parser: argparse.ArgumentParser, example: str) -> None:
    """Add --config, and say how fields are changed."""
    parser.add_argument(
        "--config",
        metavar="NAME[:ARGUMENT]",
        help=f"name or file of a config, such as {example}; `simmim configs` lists "
        "them",
    )
    parser.epilog = (
        "--config.FIELD=VALUE changes a field of the config, such as "
        "--config.data.batch_size=256; `simmim fields` explains them."
    )


def add_features(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which features of an encoder are meant, and of what."""
    parser.add_argument(
        "--pool",
        choices=("mean", "cls"),
        default="mean",
        help="mean of the patches, or the class token of a ViT (%(default)s)",
    )
    parser.add_argument(
        "--block", type=int, help="of a ViT: features after this block (the last norm)"
    )
    parser.add_argument("--data_dir", default="", help="folder of TFDS data sets")


@contextlib.contextmanager
def explained(interrupted: str = "Interrupted.") -> Iterator[None]:
    """Exit with a sentence where the user's files, flags or Ctrl-C end a command."""
    try:
        yield
    except UserError as error:
        sys.exit(str(error))
    except BrokenPipeError:  # as in `simmim neighbours ... | head`
        raise
    except OSError as error:
        place = "" if error.filename is None else f" {error.filename!r}"
        sys.exit(f"cannot read or write{place}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(interrupted)


def size(text: str) -> tuple[int, int]:
    """Return (height, width) of "H,W", the type of an argument."""
    height, width = map(int, text.split(","))
    return height, width


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, ConfigDict, set[str]]:
    """Parse the flags of a command that takes a config, and load the config.

    args.config becomes FILE[:ARGUMENT]. Exits with a sentence on mistakes.
    returns: the flags, the config, and the names of the fields that flags set.
    """
    args, rest = parser.parse_known_args(argv)
    check_flags(parser, rest)
    if args.config is None:
        name = next((text for text in rest if not text.startswith("-")), "quickstart")
        sys.exit(f"--config is missing: try --config={name}")
    args.config, config = load(args.config, rest)
    explicit = {
        argument.partition("=")[0].removeprefix("--config.")
        for argument in rest
        if argument.startswith("--config.")
    }
    return args, config, explicit


def check_flags(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    """Exit with a sentence on flags that are neither known nor fields of a config."""
    known = set(re.findall(r"--\w+", parser.format_help()))
    for argument in itertools.takewhile(lambda argument: argument != "--", rest):
        flag = argument.partition("=")[0]
        is_known = flag in known or flag.startswith("--config.")
        if flag.startswith("--") and not is_known:
            sys.exit(f"unknown flag {flag}.{did_you_mean(flag, sorted(known))}")


def config_folder() -> Path:
    """Return the folder of the configs that come with the package."""
    spec = importlib.util.find_spec("simmim_jax.configs")
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            "the package has no configs: install it, with `pip install -e .` in a clone"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def config_names() -> list[str]:
    """Return the names of the runs among them, in order."""
    parts = {"__init__", "common", "models"}
    return sorted(p.stem for p in config_folder().glob("*.py") if p.stem not in parts)


def find_config(text: str) -> str:
    """Return "FILE:ARGUMENT" of "quickstart:smoke", "configs/quickstart.py:smoke" …

    A file of the user comes first, then the configs of the package, by name, with or
    without "configs/" and ".py".

    raises: NotFoundError for a config that does not exist; it names similar ones.
    """
    name, colon, argument = text.partition(":")
    path = Path(name).expanduser()
    if not path.is_file():
        path = config_folder() / f"{stem_of(name)}.py"
    return f"{path}{colon}{argument}"


def stem_of(name: str) -> str:
    """Return "quickstart" of "configs/quickstart.py", a config of the package.

    raises: NotFoundError for a config that does not exist; it names similar ones.
    """
    stem = name.removeprefix("configs/").removesuffix(".py")
    if stem not in config_names():
        meant = did_you_mean(stem, config_names())
        raise NotFoundError(
            f"--config={name} does not exist: expected a Python file, or one of "
            f"the names that `simmim configs` lists.{meant}"
        )
    return stem


def load(text: str, overrides: Sequence[str]) -> tuple[str, ConfigDict]:
    """Return FILE[:ARGUMENT] and the config of that name, with fields overridden.

    overrides: such as ["--config.data.batch_size=256"]. Exits with a sentence on
    mistakes.
    """
    try:
        config = find_config(text)
    except UserError as error:
        sys.exit(str(error))
    fields = _executed(config)
    argv = ["simmim", *_of_both(config, fields, overrides)]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", fields, flag_values=values, sys_argv=argv
        )
        rest = values(argv)
    except (AttributeError, KeyError) as error:
        # ml_collections passes some of its messages on as quoted text.
        message = str(error.args[0]).replace("\\n", ": ").replace("\\'", "")
        message = " ".join(message.split()).strip("'")
        sys.exit(f"unknown config field {message}")
    except flags.IllegalFlagValueError as error:
        sys.exit(_of_wrong_type(str(error), argv[1:], fields))
    except Exception as error:  # such as of a flag without a value
        sys.exit(str(error).strip().splitlines()[-1].strip())
    if len(rest) > 1:
        sys.exit(f"unexpected arguments {rest[1:]}: flags start with --")
    return config, fields


def _of_wrong_type(said: str, overrides: Sequence[str], fields: ConfigDict) -> str:
    """Return the sentence for a value that is not of its field's type.

    said: absl's, "flag --config.FIELD=VALUE: <what Python says>".
    """
    for override in _joined(overrides):
        name, _, value = override.removeprefix("--config.").partition("=")
        if said.startswith(f"flag {override}: ") and _has(fields, name):
            now = operator.attrgetter(name)(fields)
            expected = TYPES.get(type(now).__name__, f"values such as '{now}'")
            return f"config.{name}={value!r}: expected {expected}."
    return said.strip().splitlines()[-1].strip()


def _executed(config: str) -> ConfigDict:
    """Return the config of FILE[:ARGUMENT]; exits with what went wrong in the file."""
    values = flags.FlagValues()
    argv = ["simmim", f"--config={config}"]
    holder = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=argv
    )
    try:
        values(argv)
        fields = holder.value
    except Exception as error:
        # The message may be a traceback of the config file; its last line is the error.
        said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        said = said.strip().removeprefix("ValueError: ")
        file = config.partition(":")[0]
        if Path(file).parent == config_folder():
            sys.exit(said)
        traced = "".join(traceback.format_exception(error))
        lines = re.findall(rf'File "{re.escape(file)}", line (\d+)', traced)
        sys.exit(f"{':'.join([file, *lines[-1:]])}: {said}")
    if not isinstance(fields, ConfigDict):
        sys.exit(
            f"--config={config} returns {type(fields).__name__}: expected a ConfigDict."
        )
    return fields


def _of_both(
    config: str, fields: ConfigDict, overrides: Sequence[str]
) -> Sequence[str]:
    """Return the overrides; on a comparison, a field of its runs means both of them.

    --config.data.dataset=X becomes --config.pretrain.data.dataset=X and
    --config.finetune.data.dataset=X, whichever exist.
    """
    if "pretrain" not in fields:
        return overrides
    expanded = []
    for override in _joined(overrides):
        name, equals, value = override.removeprefix("--config.").partition("=")
        if not override.startswith("--config.") or name.split(".")[0] in fields:
            expanded.append(override)
            continue
        runs = [run for run in ("pretrain", "finetune") if _has(fields[run], name)]
        if not runs:
            names = _names(fields.pretrain) | _names(fields.finetune)
            sys.exit(
                f"unknown config field {name}: this is a comparison, whose fields are "
                f"those of config.pretrain and config.finetune. `simmim fields "
                f"--config={config}` lists them." + did_you_mean(name, sorted(names))
            )
        expanded += [f"--config.{run}.{name}{equals}{value}" for run in runs]
    return expanded


def _joined(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with --config.FIELD VALUE as --config.FIELD=VALUE."""
    joined: list[str] = []
    for override in overrides:
        last = joined[-1] if joined else ""
        if last.startswith("--config.") and "=" not in last and override[:2] != "--":
            joined[-1] += f"={override}"
        else:
            joined.append(override)
    return joined


def _has(fields: ConfigDict, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(fields, ConfigDict) or part not in fields:
            return False
        fields = fields[part]
    return True


def _names(fields: ConfigDict, prefix: str = "") -> set[str]:
    """Return the dotted names of all fields, groups unfolded."""
    return {
        name
        for key, value in fields.items()
        for name in (
            _names(value, f"{prefix}{key}.")
            if isinstance(value, ConfigDict)
            else {f"{prefix}{key}"}
        )
    }
