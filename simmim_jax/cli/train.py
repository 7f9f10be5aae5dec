"""Pre-train, fine-tune, segment or compare, as a config says.

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
from collections.abc import Collection, Sequence
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from simmim_jax.checkpoints.disk import make_workdir
from simmim_jax.cli import arguments
from simmim_jax.cli.endings import ending
from simmim_jax.config import schema
from simmim_jax.config.schema import Compare, Config, Downstream
from simmim_jax.data.sources.registry import check_source
from simmim_jax.errors import Interrupted, NonFiniteError, StorageError, UserError
from simmim_jax.monitoring.writer import import_wandb
from simmim_jax.runtime import platforms
from simmim_jax.tasks import architecture, views

LOST = "stopped: a collective operation failed"
# Exit status of a run that was asked to stop and can be resumed (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75


def main(argv: Sequence[str] | None = None) -> None:
    """Check what can be checked at once, start JAX, and run config.mode."""
    end_at_ctrl_c()
    parser = arguments.parser("train", __doc__)
    add_arguments(parser, "quickstart")
    args, config, explicit = arguments.parse(parser, argv)
    start(args, config, explicit)


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end the process without a traceback until there is a run to save."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


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


def start(
    args: argparse.Namespace, fields: ConfigDict, explicit: Collection[str]
) -> None:
    """Run a config as its mode says; ends the process on errors.

    explicit: names of the fields that the command line sets.
    """
    if "://" in (args.workdir or ""):
        sys.exit(f"--workdir={args.workdir} is not a local folder: mount the bucket.")
    workdir = Path(args.workdir or default_workdir(args.config)).expanduser().absolute()
    try:
        config, said = check(fields, explicit, workdir)
        make_workdir(workdir)
    except (UserError, OSError) as error:
        sys.exit(str(error))

    # Orbax logs every file that it writes.
    logging.set_verbosity(logging.ERROR)
    # Compiled programs are kept, so that a second run starts at once.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "simmim_jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.expanduser()))
    platforms.leave_out_absent_tpu()
    from simmim_jax.runtime import distributed, host_memory

    try:
        distributed.start(
            args.distributed,
            coordinator_address=args.coordinator_address,
            num_processes=args.num_processes,
            process_id=args.process_id,
            initialization_timeout=args.initialization_timeout,
            heartbeat_timeout=args.heartbeat_timeout,
        )
    except UserError as error:
        sys.exit(str(error))
    with host_memory.kept():
        _run_or_explain(config, args.config, workdir, said)


def _run_or_explain(config: Config, name: str, workdir: Path, said: list[str]) -> None:
    """Run, and end the process with a sentence and a status on errors.

    name: FILE[:ARGUMENT] of the config.
    """
    import jax

    from simmim_jax.runtime import distributed, interrupt

    if jax.process_index() == 0:
        for line in said:
            print(line, flush=True)
    if jax.device_count() > 1:
        print(distributed.describe(), flush=True)
    try:
        if config.mode != "bench_input":
            distributed.check_shared(workdir)
        # Elsewhere than in a step the main thread may be too busy to stop by itself.
        with interrupt.catching(
            lambda it: distributed.fail(str(it), EXIT_INTERRUPTED)
        ) as signals:
            # Of this run, or of a part of a comparison.
            checkpoints = ("checkpoints/*/params", "*/checkpoints/*/params")
            if any(any(workdir.glob(pattern)) for pattern in checkpoints):
                signals.listen()
            run(config, name, workdir)
    except Interrupted as interruption:
        if not interruption.agreed:
            # The other processes go on, and threads of XLA that an orderly exit would
            # crash.
            distributed.fail(str(interruption), EXIT_INTERRUPTED)
        if jax.process_index() == 0:
            print(interruption)
        sys.exit(EXIT_INTERRUPTED)
    except BaseException as error:
        text = explanation(error)
        if jax.process_count() > 1:
            lost = text and text.startswith(LOST)
            status = distributed.EXIT_LOST if lost else 1
            distributed.fail(text or traceback.format_exc(), status)
        if isinstance(error, StorageError):
            distributed.fail(str(text), 1)  # an orderly exit would write again
        if text:
            sys.exit(text)
        raise


def explanation(error: BaseException) -> str | None:
    """Return what to tell the user of an error; None where its traceback says more."""
    import jax

    from simmim_jax.runtime import distributed

    if isinstance(error, NonFiniteError):
        return f"stopped: {error}"
    if isinstance(error, UserError):
        # Notes name the image; JAX adds a ruled-off note on tracebacks.
        added = getattr(error, "__notes__", [])
        notes = [note for note in added if not note.startswith("-----")]
        return "\n".join([str(error), *notes])
    first_line = str(error).partition("\n")[0]
    is_jax_error = isinstance(error, jax.errors.JaxRuntimeError)
    if is_jax_error and "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"out of memory: {first_line}\nTry --config.model.remat=full, then "
            "--config.optim.accumulation=4, or a smaller --config.data.batch_size."
        )
    if distributed.is_loss(error):
        return (
            f"{LOST}, most likely because another process is gone: see its log. The "
            f"same command resumes from the last checkpoint. {first_line}"
        )
    return None


def default_workdir(config: str) -> str:
    """runs/quickstart for configs/quickstart.py, runs/quickstart-smoke for :smoke."""
    file, _, argument = config.partition(":")
    return str(Path("runs", "-".join(filter(None, [Path(file).stem, argument]))))


def check(
    fields: ConfigDict,
    explicit: Collection[str] = (),
    workdir: Path | None = None,
) -> tuple[Config, list[str]]:
    """Return the typed config, and what to say of it, before JAX starts.

    raises: UserError for values that mean nothing and for missing data.
    """
    config = schema.parse(fields)
    said: list[str] = []
    if config.mode == "bench":
        return config, said  # without data and without weights
    of_bench = config.mode.startswith("bench")
    runs = [schema.single(config)]
    if isinstance(config, Compare) and not of_bench:
        runs = [config.pretrain, config.finetune]
    for run in runs:
        if run.wandb:
            import_wandb()
        for split in (run.data.train_split, run.data.eval_split):
            check_source(
                run.data.dataset,
                split,
                data_dir=run.data.data_dir,
                formats=views.formats(run.data),
            )
    config, said = architecture.adopt(config, explicit, workdir=workdir)
    if isinstance(config, Downstream) and not config.init_from and not of_bench:
        said = [
            "from scratch: config.init_from is empty; --config.init_from=WORKDIR "
            "starts from a pre-training run"
        ]
    return config, said


def run(config: Config, name: str, workdir: Path) -> None:
    """Carry out what config.mode names; name: FILE[:ARGUMENT] of the config."""
    import jax

    from simmim_jax.performance.bench import bench
    from simmim_jax.performance.bench_input import bench_input
    from simmim_jax.tasks import api

    if config.mode == "bench":
        bench(schema.single(config), workdir)
    elif config.mode == "bench_input":
        bench_input(schema.single(config), workdir)
    elif isinstance(config, Compare):
        api.compare(config, workdir)
    else:
        trained = api.RUNS[type(config)](config, workdir)
        if jax.process_index() == 0:
            lines = ending(config, name, workdir, trained.step, trained.best)
            print("", *lines, sep="\n")
