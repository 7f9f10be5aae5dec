"""The one training loop: set up, restore, step, log, evaluate, save.

Order within a step, which resuming relies on: update, log, evaluate, save. A checkpoint
of step n holds the parameters after n updates and the input's position after n batches;
all metrics of step n are on disk before it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from simmim_jax.checkpoints.record import describe_software
from simmim_jax.checkpoints.store import Checkpointer
from simmim_jax.data.loader.bad_examples import REASONS
from simmim_jax.data.sources.base import Source
from simmim_jax.errors import Interrupted
from simmim_jax.monitoring.profile import Profile
from simmim_jax.monitoring.writer import MetricWriter, write_json
from simmim_jax.runtime import distributed, host_memory, sharding
from simmim_jax.runtime.distributed import AnyProcess
from simmim_jax.runtime.interrupt import catch_signals
from simmim_jax.training import compilation, inputs, resume, steps
from simmim_jax.training.compilation import Learner, in_steps
from simmim_jax.training.step_log import StepLog
from simmim_jax.training.steps import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Learner):
    """In what pre-training and fine-tuning differ."""

    source: Source
    # What the data are, in a line for the person who watches.
    data: str
    # (params, step) -> metrics of held-out data; may draw a picture.
    evaluate: Callable[[Any, int], dict[str, float]]
    # The metric of `evaluate` that the best checkpoint is chosen by: "min" or "max".
    best: str
    mode: str
    # Draws what the model will see, where a run starts anew.
    preview: Callable[[], Path] | None = None
    # Replaces fresh parameters where a run starts anew.
    restore: Callable[[Any], Any] | None = None
    # Where `evaluate` draws at a step.
    picture: Callable[[int], Path] | None = None
    # Kept in checkpoints beside the config.
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a finished run leaves."""

    params: Any  # moving averages with config.ema_decay
    step: int
    last: dict[str, float]  # metrics of the last evaluation


def train(config: ConfigDict, workdir: Path, task: Task) -> Trained:
    """Trains until config.duration is over, from the last checkpoint in `workdir`.

    Raises NonFiniteError when a loss or gradient is not finite, and Interrupted after
    SIGTERM or SIGINT, once a checkpoint is written.
    """
    begin = time.perf_counter()
    # ---- Shapes, optimiser, shardings ------------------------------------------------
    mesh = sharding.make_mesh(**config.mesh)
    plan = compilation.plan(config, task, mesh)
    key = jax.random.key(config.seed)

    with contextlib.ExitStack() as stack:
        # ---- State -------------------------------------------------------------------
        # 1. The last checkpoint of this run; else
        # 2. a fresh model with a pre-trained encoder; else
        # 3. a fresh model.
        checkpoints = stack.enter_context(
            Checkpointer(
                workdir, keep=config.keep_checkpoints, best=task.best, mode=task.mode
            )
        )
        iterator = stack.enter_context(
            contextlib.closing(inputs.train_batches(config, task.source, workdir))
        )
        start = checkpoints.last_step() or 0
        total = in_steps(config, task, config.duration)
        writer = stack.enter_context(
            MetricWriter(
                workdir,
                total_steps=total,
                resume_step=start,
                title=config.mode,
                wandb=config.wandb,
                is_main=jax.process_index() == 0,
            )
        )
        writer.message(task.data)
        if start:
            for change in resume.changes(
                workdir, config, task.meta, finished=start >= total
            ):
                writer.message(change)
            state = resume.restore(checkpoints, start, plan.state, iterator)
            writer.message(f"resumed at step {start} of {total}")
        else:
            if task.preview and jax.process_index() == 0:
                writer.picture(0, "augmented", task.preview())
            params = jax.jit(task.init, out_shardings=plan.shardings.params)(key)
            if task.restore:
                params = sharding.laid_out(task.restore(params), plan.shardings.params)
            state = jax.jit(
                plan.fresh_state, out_shardings=plan.shardings, donate_argnums=0
            )(params)
        meta = {"config": config.to_dict(), **describe_software(), **task.meta}
        if jax.process_index() == 0:
            write_json(workdir / "config.json", meta)

        # ---- Compile and loop --------------------------------------------------------
        if start < total:
            writer.message("compiling the training step ...")
            before = time.perf_counter()
            lowered = plan.lower()
            # XLA leaves Python free: operations are counted meanwhile.
            with ThreadPoolExecutor(1) as pool:
                flops = pool.submit(compilation.flops_per_image, config, task)
                step_fn = lowered.compile()
            distributed.meet()
            host_memory.make_room()
            seconds = time.perf_counter() - before
            writer.message(f"compiled the training step in {seconds:.1f} s")
            log = StepLog(
                writer,
                plan.schedule,
                checkpoints,
                config.data.batch_size,
                start,
                flops_per_image=flops.result(),
                startup={"compile_seconds": seconds},
                begin=begin,
            )
            profile = stack.enter_context(
                contextlib.closing(Profile(workdir, **config.profile))
            )
            batches = inputs.batches_on_devices(iterator, mesh)
            span = range(start + 1, total + 1)
            first = config.profile.start_step
            if config.profile.num_steps and first >= len(span):
                writer.message(
                    f"no profile: of the {len(span)} steps to go, none comes after "
                    f"config.profile.start_step={first}"
                )
            with catch_signals() as stop:
                state = loop(
                    *(config, task, state, step_fn, batches),
                    *(log, profile, meta, span, stop),
                )
        best = checkpoints.best_step() or total
        writer.message(f"best at step {best}: {_text(checkpoints.metrics(best))}")
        return Trained(state.averaged, total, checkpoints.metrics(total))


def loop(
    config: ConfigDict,
    task: Task,
    state: TrainState,
    step_fn: Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]],
    batches: Iterator[tuple[steps.Batch, dict[str, Any]]],
    log: StepLog,
    profile: Profile,
    meta: dict[str, Any],
    span: range,
    stop: list[str],
) -> TrainState:
    """The steps of `span`: update, log, evaluate, save, in this order.

    stop: gets the name of a signal when the run is to save and end with Interrupted.
    """
    total = span[-1]
    # A length of 0 is never: the last step alone evaluates and saves.
    log_every, eval_every, save_every = (
        in_steps(config, task, duration) or total
        for duration in (config.log_every, config.eval_every, config.checkpoint_every)
    )
    asked = AnyProcess()
    for step in span:
        stops = asked.ask(bool(stop))
        with log.timer.waiting():
            batch, position = next(batches)
        sharding.await_on_cpus((state, batch))
        # The guard: nothing else may pass between host and device and hold this up.
        with profile.step(step), jax.transfer_guard("disallow"):
            state, metrics = step_fn(state, batch)
        evaluates = step % eval_every == 0 or step == total
        saves = evaluates or step % save_every == 0 or stops
        due = saves or step % log_every == 0
        if due:
            position["bad_images"] = distributed.total(position["bad_images"], REASONS)
        with jax.transfer_guard("disallow"):
            log.add(step, metrics, due, position["bad_images"])
        if done := profile.after(metrics):
            log.writer.message(done)
        if not saves:
            continue
        log.finish()
        held_out = task.evaluate(state.averaged, step) if evaluates else None
        if held_out:
            log.check(step, held_out)
            log.writer.write(step, held_out)
            log.writer.message(f"step {step}: {_text(held_out)}")
            if task.picture:
                log.writer.picture(step, "held out", task.picture(step))
        before = time.perf_counter()
        log.checkpoints.save(
            step,
            params=state.averaged,
            optimizer=resume.optimizer_item(state),
            data=position,
            meta=meta | {"step": step},
            metrics=held_out,
        )
        log.note("checkpoint_seconds", time.perf_counter() - before)
        if stops or step == total:
            log.checkpoints.wait()
        if stops:
            signal = stop[0] if stop else "a signal to another process"
            raise Interrupted(
                f"{signal} at step {step} of {total}: a checkpoint is saved, the same "
                "command goes on from it."
            )
        host_memory.give_back_gaps()
        log.restart_clock()
    return state


def _text(metrics: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}"
        for name, value in metrics.items()
    )
