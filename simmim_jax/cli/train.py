"""Pre-train, fine-tune or compare, as a config says.

    simmim train --config=quickstart
    simmim train --config=vit_base --config.data.dataset=/data/photos

The same command resumes a run that was stopped. Exit status 75: stopped by a signal, a
checkpoint is saved; 69: another process of the run is gone.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from simmim_jax.cli import arguments
from simmim_jax.data.sources.registry import check_source
from simmim_jax.errors import Interrupted, NonFiniteError, NotFoundError, UserError

LOST = "stopped: a collective operation failed"
# Exit status of a run that was asked to stop and can be resumed (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75


def main(argv: Sequence[str] | None = None) -> None:
    """Check what can be checked at once, start JAX, and run config.mode."""
    parser = arguments.parser("train", __doc__)
    add_arguments(parser, "quickstart")
    args, config = arguments.parse(parser, argv)
    start(args, config)


def add_arguments(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the flags of a run; `example` is the name of a config."""
    add = parser.add_argument
    arguments.add_config(parser, example)
    add(
        "--workdir",
        help="folder of checkpoints, metrics and pictures; an existing run is resumed. "
        "Default: runs/<name of the config>",
    )
    add(
        "--distributed",
        choices=("auto", "on", "off"),
        default="auto",
        help="join the other processes of the run. auto: where a launcher (Cloud TPU, "
        "Slurm, Kubernetes) or --coordinator_address announces them; off: run alone",
    )
    add("--coordinator_address", help="HOST:PORT of process 0, without a launcher")
    add("--num_processes", type=int, help="number of processes, without a launcher")
    add("--process_id", type=int, help="number of this process, from 0")
    add(
        "--initialization_timeout",
        type=int,
        default=300,
        metavar="SECONDS",
        help="until all processes must have joined (%(default)s)",
    )
    add(
        "--heartbeat_timeout",
        type=int,
        default=60,
        metavar="SECONDS",
        help="until a silent process is given up and the others stop (%(default)s)",
    )


def start(args: argparse.Namespace, config: ConfigDict) -> None:
    """Run `config` as its mode says; ends the process on errors."""
    # Until there is something to save, Ctrl-C ends the process without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "://" in (args.workdir or ""):
        sys.exit(f"--workdir={args.workdir} is not a local folder: mount the bucket.")
    workdir = Path(args.workdir or default_workdir(args.config)).expanduser().absolute()
    try:
        check(config)
        workdir.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        sys.exit(str(error))

    # Compiled programs are kept, so that a second run starts at once.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "simmim_jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.expanduser()))
    from simmim_jax.runtime import distributed, host_memory

    try:
        joined = distributed.start(
            args.distributed,
            coordinator_address=args.coordinator_address,
            num_processes=args.num_processes,
            process_id=args.process_id,
            initialization_timeout=args.initialization_timeout,
            heartbeat_timeout=args.heartbeat_timeout,
        )
    except UserError as error:
        sys.exit(str(error))
    import jax

    if not joined and host_memory.keep_all_freed():
        # Asynchronous results would exist before their memory is free for the next
        # step.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    from simmim_jax.performance.bench import bench
    from simmim_jax.performance.bench_input import bench_input
    from simmim_jax.tasks.classify import finetune
    from simmim_jax.tasks.compare import compare
    from simmim_jax.tasks.pretrain import pretrain

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
    """Return what to tell the user of an error; None where its traceback says more."""
    import jax

    if isinstance(error, NonFiniteError):
        return f"stopped: {error}"
    if isinstance(error, UserError):
        # Notes name the image; JAX adds a ruled-off note on tracebacks.
        added = getattr(error, "__notes__", [])
        notes = [note for note in added if not note.startswith("-----")]
        return "\n".join([str(error), *notes])
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
                f"{LOST}, most likely because another process is gone: see its log. "
                f"The same command resumes from the last checkpoint. {first_line}"
            )
    return None


def default_workdir(config: str) -> str:
    """runs/quickstart for configs/quickstart.py, runs/quickstart-smoke for :smoke."""
    file, _, argument = config.partition(":")
    return str(Path("runs", "-".join(filter(None, [Path(file).stem, argument]))))


def check(config: ConfigDict) -> None:
    """ValueError or FileNotFoundError for what is wrong before anything is compiled."""
    mode = config.get("mode")
    modes = ("pretrain", "finetune", "compare", "bench", "bench_input")
    if mode not in modes:
        raise UserError(f"config.mode={mode!r}: expected one of {modes}.")
    if (mode == "compare") != ("pretrain" in config) and not mode.startswith("bench"):
        raise UserError(
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
            raise NotFoundError(
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
            raise UserError(
                f"config.{name}={size!r}: expected height and width in pixels, "
                f"such as --config.{name}='(64, 64)'."
            )
    for name in ("mean", "std"):
        if len(data[name]) != data.channels:
            raise UserError(
                f"config.data.{name}={data[name]!r}: expected one number for each of "
                f"config.data.channels={data.channels}."
            )
    choices = {
        "dtype": (config.dtype, ("bfloat16", "float32")),
        "data.interpolation": (data.interpolation, ("bilinear", "bicubic")),
    }
    for name, (value, expected) in choices.items():
        if value not in expected:
            raise UserError(f"config.{name}={value!r}: expected one of {expected}.")
    for name, number in (
        ("data.batch_size", data.batch_size),
        ("optim.accumulation", config.optim.accumulation),
    ):
        if number < 1:
            raise UserError(f"config.{name}={number}: expected 1 or more.")
    for name, number in config.profile.items():
        if number < 0:
            raise UserError(f"config.profile.{name}={number}: expected 0 or more.")
    if not 0 <= data.max_bad_fraction <= 1:
        raise UserError(
            f"config.data.max_bad_fraction={data.max_bad_fraction}: expected 0 to 1."
        )
    if data.num_workers < -1 or data.num_threads < -1 or data.num_threads == 0:
        raise UserError(
            f"config.data.num_workers={data.num_workers}, num_threads="
            f"{data.num_threads}: expected numbers of processes and threads, or -1 for "
            "as many as the machine has CPUs for. num_workers may be 0."
        )
    if not 0 < data.eval_crop <= 1:
        raise UserError(f"config.data.eval_crop={data.eval_crop}: expected 0 to 1.")
    if not 0 <= config.ema_decay < 1:
        raise UserError(
            f"config.ema_decay={config.ema_decay}: expected 0 to 1, such as 0.9999."
        )
