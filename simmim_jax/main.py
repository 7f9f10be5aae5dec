"""Command line: python -m simmim_jax.main --config=configs/quickstart.py."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
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
    "Where checkpoints, metrics and pictures go; a run goes on from what lies there. "
    "Default: runs/<name of the config>.",
)
DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Join the other processes of the run: auto where a launcher tells of them (Cloud "
    "TPU, Slurm, Kubernetes) or --coordinator_address does; off: run alone.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0, where no launcher tells.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes, where no launcher tells."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0 on, where no launcher tells."
)
INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "Seconds until all processes must have joined."
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    60,
    "Seconds until a process that gives no sign of life is taken to be gone, and the "
    "others stop.",
)
LOST = "stopped: what all processes compute together failed"
# Exit status of a run that was asked to stop and can go on (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75


def main(argv: Sequence[str]) -> None:
    """Checks what can be checked at once, starts JAX, and runs config.mode."""
    if len(argv) > 1:
        sys.exit(f"unexpected arguments {argv[1:]}: flags start with --")
    config = CONFIG.value
    if config is None:
        sys.exit("--config is missing: try --config=configs/quickstart.py")
    if "://" in (WORKDIR.value or ""):
        sys.exit(f"--workdir={WORKDIR.value} is not a local folder: mount the bucket.")
    workdir = Path(WORKDIR.value or default_workdir()).expanduser().absolute()
    try:
        check(config)
        workdir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")

    # Orbax tells every file that it writes; only what went wrong is worth a line.
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    # Compiled programs are kept, so that a second run starts at once.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "simmim_jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.expanduser()))
    from simmim_jax import distributed, host_memory

    try:
        joined = distributed.start(
            DISTRIBUTED.value,
            coordinator_address=COORDINATOR.value,
            num_processes=NUM_PROCESSES.value,
            process_id=PROCESS_ID.value,
            initialization_timeout=INITIALIZATION_TIMEOUT.value,
            heartbeat_timeout=HEARTBEAT_TIMEOUT.value,
        )
    except ValueError as error:
        sys.exit(f"ValueError: {error}")
    import jax

    if not joined and host_memory.keep_all_freed():
        # Its results would be there before its memory is free for the next step.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    from simmim_jax.bench import bench
    from simmim_jax.bench_input import bench_input
    from simmim_jax.compare import compare
    from simmim_jax.finetune import finetune
    from simmim_jax.interrupt import Interrupted
    from simmim_jax.pretrain import pretrain

    run = {
        "pretrain": pretrain,
        "finetune": finetune,
        "compare": compare,
        "bench": bench,
        "bench_input": bench_input,
    }[config.mode]
    if jax.device_count() > 1:
        print(distributed.describe(), flush=True)
    try:
        if config.mode != "bench_input":
            distributed.check_shared(workdir)
        run(config, workdir)
    except Interrupted as interruption:
        if jax.process_index() == 0:
            print(interruption)
        sys.exit(EXIT_INTERRUPTED)
    except BaseException as error:
        text = explanation(error)
        if jax.process_count() > 1:
            lost = text and text.startswith(LOST)
            status = distributed.EXIT_LOST if lost else 1
            distributed.fail(text or traceback.format_exc(), status)
        if text:
            sys.exit(text)
        raise


def explanation(error: BaseException) -> str | None:
    """What to tell the user of an error; None where its traceback says more."""
    import jax

    from simmim_jax.step_log import NonFiniteError

    if isinstance(error, ValueError | FileNotFoundError):
        # What the package itself raises is meant for the user; the rest is a bug.
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if Path(__file__).parent not in Path(raised_in).parents:
            return None
        # Which image it was; JAX adds a ruled-off note on tracebacks.
        added = getattr(error, "__notes__", [])
        notes = [note for note in added if not note.startswith("-----")]
        return "\n".join([f"{type(error).__name__}: {error}", *notes])
    if isinstance(error, NonFiniteError):
        return f"stopped: {error}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        first_line = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in str(error):
            return (
                f"out of memory: {first_line}\nTry --config.model.remat=full, "
                "then --config.optim.accumulation=4, or a smaller "
                "--config.data.batch_size."
            )
        if jax.process_count() > 1:
            return (
                f"{LOST}, most likely because another one is gone: see its log. The "
                f"same command goes on from the last checkpoint. {first_line}"
            )
    return None


def default_workdir() -> str:
    """runs/quickstart for configs/quickstart.py, runs/quickstart-smoke for :smoke."""
    file, _, argument = config_flags.get_config_filename(
        flags.FLAGS["config"]
    ).partition(":")
    return str(Path("runs", "-".join(filter(None, [Path(file).stem, argument]))))


def check(config: ConfigDict) -> None:
    """ValueError or FileNotFoundError for what is wrong before anything is compiled."""
    mode = config.get("mode")
    modes = ("pretrain", "finetune", "compare", "bench", "bench_input")
    if mode not in modes:
        raise ValueError(f"config.mode={mode!r}: expected one of {modes}.")
    if (mode == "compare") != ("pretrain" in config) and not mode.startswith("bench"):
        raise ValueError(
            f"config.mode={mode!r}: this config is "
            f"{'none' if mode == 'compare' else 'that'} of a comparison. Leave its "
            "mode as it is."
        )
    runs = [config.pretrain, config.finetune] if mode == "compare" else [config]
    if mode in ("bench", "bench_input"):
        runs = [config.get("pretrain", config)]
    for run in runs:
        check_values(run)
        if mode == "bench":
            continue  # without data and without weights
        for split in (run.data.train_split, run.data.eval_split):
            check_source(run.data.dataset, split, data_dir=run.data.data_dir)
        init_from = Path(run.get("init_from", "")).expanduser()
        has_checkpoint = (init_from / "params").is_dir() or any(
            init_from.glob("checkpoints/*/params")
        )
        if run.get("init_from") and not has_checkpoint:
            raise FileNotFoundError(
                f"config.init_from='{init_from}' has no checkpoint: expected the "
                "workdir of a pre-training run, with checkpoints/<step>/ in it, or one "
                "of those step folders."
            )


def check_values(config: ConfigDict) -> None:
    """ValueError for a value of the right type that means nothing."""
    data = config.data
    sizes = {
        "data.image_size": data.image_size,
        "model.patch_size": config.model.patch_size,
    }
    if "mask" in config:
        sizes["mask.unit_size"] = config.mask.unit_size
    for name, size in sizes.items():
        if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise ValueError(
                f"config.{name}={size!r}: expected height and width in pixels, "
                f"such as --config.{name}='(64, 64)'."
            )
    for name in ("mean", "std"):
        if len(data[name]) != data.channels:
            raise ValueError(
                f"config.data.{name}={data[name]!r}: expected one number for each of "
                f"config.data.channels={data.channels}."
            )
    choices = {
        "dtype": (config.dtype, ("bfloat16", "float32")),
        "data.interpolation": (data.interpolation, ("bilinear", "bicubic")),
    }
    for name, (value, expected) in choices.items():
        if value not in expected:
            raise ValueError(f"config.{name}={value!r}: expected one of {expected}.")
    for name, number in (
        ("data.batch_size", data.batch_size),
        ("optim.accumulation", config.optim.accumulation),
    ):
        if number < 1:
            raise ValueError(f"config.{name}={number}: expected 1 or more.")
    for name, number in config.profile.items():
        if number < 0:
            raise ValueError(f"config.profile.{name}={number}: expected 0 or more.")
    if not 0 <= data.max_bad_fraction <= 1:
        raise ValueError(
            f"config.data.max_bad_fraction={data.max_bad_fraction}: expected 0 to 1."
        )
    if data.num_workers < -1 or data.num_threads < -1 or data.num_threads == 0:
        raise ValueError(
            f"config.data.num_workers={data.num_workers}, num_threads="
            f"{data.num_threads}: expected numbers of processes and threads, or -1 for "
            "as many as the machine has CPUs for. num_workers may be 0."
        )
    if not 0 < data.eval_crop <= 1:
        raise ValueError(f"config.data.eval_crop={data.eval_crop}: expected 0 to 1.")
    if not 0 <= config.ema_decay < 1:
        raise ValueError(
            f"config.ema_decay={config.ema_decay}: expected 0 to 1, such as 0.9999."
        )


def parse_flags(argv: list[str]) -> list[str]:
    """Flags as absl parses them, with a sentence instead of a traceback on mistakes."""
    try:
        rest = flags.FLAGS(argv)
        getattr(CONFIG.value, "mode", None)  # loads it, or raises what went wrong
        return rest
    except (AttributeError, KeyError) as error:
        # ml_collections hands some of its messages over as quoted text.
        message = str(error.args[0]).replace("\\n", ": ").replace("\\'", "")
        message = " ".join(message.split()).strip("'")
        sys.exit(f"unknown config field {message}")
    except Exception as error:  # whatever a config file raises, too
        # A config's own error comes with its traceback; what it says ends it.
        sys.exit(str(error).strip().splitlines()[-1].strip())


if __name__ == "__main__":
    # At once and without a traceback, where there is nothing to save.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    app.run(main, flags_parser=parse_flags)
