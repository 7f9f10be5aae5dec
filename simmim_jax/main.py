"""Command line: python -m simmim_jax.main --config=configs/quickstart.py."""

import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from simmim_jax.data.sources import check_source

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, with ':argument' where it takes one; --config.FIELD=VALUE changes a "
    "field.",
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where checkpoints, metrics and pictures go; a run goes on with what lies there. "
    "Default: runs/<name of the config>.",
)
# Exit status of a run that was asked to stop and can go on (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75


def main(argv: Sequence[str]) -> None:
    """Checks what can be checked at once, starts JAX, and runs config.mode."""
    if len(argv) > 1:
        sys.exit(f"unexpected arguments {argv[1:]}: flags start with --")
    config = CONFIG.value
    if config is None:
        sys.exit("--config is missing: try --config=configs/quickstart.py")
    workdir = Path(WORKDIR.value or default_workdir()).expanduser().absolute()
    try:
        check(config)
        workdir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")

    start_jax()
    from simmim_jax import train_loop
    from simmim_jax.compare import compare
    from simmim_jax.finetune import finetune
    from simmim_jax.pretrain import pretrain

    run = {"pretrain": pretrain, "finetune": finetune, "compare": compare}[config.mode]
    try:
        run(config, workdir)
    except train_loop.NonFiniteError as error:
        sys.exit(f"stopped: {error}")
    except train_loop.Interrupted as interruption:
        print(interruption)
        sys.exit(EXIT_INTERRUPTED)


def start_jax() -> None:
    """Imports JAX with a cache of compiled programs, for faster second runs."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        folder = Path(cache, "simmim_jax").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def default_workdir() -> str:
    """runs/quickstart for configs/quickstart.py, runs/quickstart-smoke for :smoke."""
    file, _, argument = config_flags.get_config_filename(
        flags.FLAGS["config"]
    ).partition(":")
    return str(Path("runs", "-".join(filter(None, [Path(file).stem, argument]))))


def check(config: ConfigDict) -> None:
    """ValueError or FileNotFoundError for what is wrong before anything is compiled."""
    modes = ("pretrain", "finetune", "compare")
    if config.get("mode") not in modes:
        raise ValueError(
            f"config.mode={config.get('mode')!r}: expected one of {modes}."
        )
    for run in (
        [config.pretrain, config.finetune] if config.mode == "compare" else [config]
    ):
        data = run.data
        for split in (data.train_split, data.eval_split):
            check_source(data.dataset, split, data_dir=data.data_dir)
        init_from = run.get("init_from")
        if init_from and not Path(init_from).expanduser().is_dir():
            raise FileNotFoundError(
                f"config.init_from={init_from!r} does not exist: expected the workdir of "
                "a pre-training run or one of its checkpoints/<step> folders."
            )


def parse_flags(argv: list[str]) -> list[str]:
    """Flags as absl parses them, with a sentence instead of a traceback on mistakes."""
    try:
        return app.parse_flags_with_usage(argv)
    except (
        AttributeError,
        KeyError,
        OSError,
        TypeError,
        ValueError,
        config_flags.UnsupportedOperationError,
    ) as error:
        sys.exit("\n".join(unknown_fields(argv)) or f"{type(error).__name__}: {error}")


def unknown_fields(argv: list[str]) -> Iterator[str]:
    """A sentence for each --config.FIELD that the config does not have."""
    config = flags.FLAGS["config"].value
    if not isinstance(config, ConfigDict):
        return
    known = list(field_names(config))
    for arg in argv[1:]:
        name = arg.lstrip("-").partition("=")[0]
        if name.startswith("config.") and name.removeprefix("config.") not in known:
            close = difflib.get_close_matches(
                name.removeprefix("config."), known, 3, 0.5
            )
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            yield f"unknown field {name}.{hint}"


def field_names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, those of sections included."""
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from field_names(value, f"{prefix}{name}.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
