"""The one training loop: set up, restore, step, log, evaluate, save.

Order within a step, which resuming relies on: update, log, evaluate, save. A checkpoint
of step n holds the parameters after n updates and the input's position after n batches;
all metrics of step n are on disk before it.
"""

import contextlib
import dataclasses
import json
import platform
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simmim_jax import optim, sharding, steps
from simmim_jax.checkpoint import Checkpointer
from simmim_jax.data.pipeline import (
    EvalBatches,
    TrainIterator,
    eval_batches,
    train_iterator,
)
from simmim_jax.data.source import Source
from simmim_jax.data.sources import open_source
from simmim_jax.metrics import MetricWriter, StepTimer
from simmim_jax.steps import TrainState

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class Task:
    """In what pre-training and fine-tuning differ."""

    source: Source
    # key -> params, pure: runs under jit, straight onto the mesh.
    init: Callable[[jax.Array], Any]
    prepare: steps.Prepare
    loss: steps.Loss
    # (params, step) -> metrics of held-out data; may write pictures.
    evaluate: Callable[[Any, int], dict[str, float]]
    # The metric of `evaluate` that the best checkpoint is chosen by: "min" or "max".
    best: str
    mode: str
    # The layer of a parameter, for layer-wise learning-rate decay.
    layer_id: Callable[[tuple[str, ...]], int] = lambda path: 0
    layer_decay: float = 1.0
    # Replaces fresh parameters where a run starts anew.
    restore: Callable[[Any], Any] | None = None
    # Kept in checkpoints beside the config.
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a finished run leaves."""

    params: Any
    last: dict[str, float]  # metrics of the last evaluation
    best: dict[str, float]  # and of the best one
    best_step: int


class NonFiniteError(ArithmeticError):
    """Loss or gradients were NaN or infinite."""


class Interrupted(Exception):
    """The run was asked to stop, saved what it had, and can go on."""


def num_steps(duration: str, batch_size: int, num_examples: int) -> int:
    """ "10 epochs", "500 steps" or "100000 examples" in steps; at least 1, 0 for 0.

    An epoch is as many whole batches as it holds, as in the official code.
    """
    number, _, unit = duration.partition(" ")
    try:
        amount = float(number)
    except ValueError:
        amount = -1
    per_step = {
        "epochs": 1 / (num_examples // batch_size or num_examples / batch_size),
        "steps": 1,
        "examples": batch_size,
    }
    if unit not in per_step or amount < 0:
        raise ValueError(
            f"{duration!r} is no length of time: expected a number and a unit, such as "
            "'10 epochs', '500 steps' or '100000 examples'."
        )
    return max(1, round(amount / per_step[unit])) if amount else 0


def train(config: ConfigDict, workdir: Path, task: Task) -> Trained:
    """Trains until config.duration is over, from the last checkpoint in `workdir`.

    Raises NonFiniteError when a loss or gradient is not finite, and Interrupted after
    SIGTERM or SIGINT, once a checkpoint is written.
    """
    # ---- Lengths in steps ------------------------------------------------------------
    batch_size = config.data.batch_size

    def in_steps(duration: str) -> int:
        return num_steps(duration, batch_size, len(task.source))

    total = in_steps(config.duration)
    log_every, eval_every, save_every = (
        max(1, in_steps(duration))
        for duration in (config.log_every, config.eval_every, config.checkpoint_every)
    )

    # ---- Shapes, shardings, optimiser ------------------------------------------------
    mesh = sharding.make_mesh(**config.mesh)
    check_batch(config, mesh)
    schedule = optim.learning_rate(
        decay=config.optim.decay,
        peak=config.optim.lr * batch_size / optim.REFERENCE_BATCH,
        warmup_lr=config.optim.warmup_lr * batch_size / optim.REFERENCE_BATCH,
        min_lr=config.optim.min_lr * batch_size / optim.REFERENCE_BATCH,
        total_steps=total,
        warmup_steps=in_steps(config.optim.warmup),
        milestones=[in_steps(m) for m in config.optim.milestones],
        official=_is_official(config.optim.schedule),
    )
    shapes = jax.eval_shape(task.init, jax.random.key(config.seed))
    tx = optim.adamw(
        schedule,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        mask=optim.decay_mask(shapes, config.optim.decay_groups),
        scales=optim.layer_scales(shapes, task.layer_id, task.layer_decay),
    )

    def init(key: jax.Array) -> TrainState:
        params = task.init(key)
        return TrainState(jnp.zeros([], jnp.int32), params, tx.init(params))

    key = jax.random.key(config.seed)
    state_shapes = jax.eval_shape(init, key)
    shardings = sharding.state_sharding(state_shapes, mesh)

    # ---- State -----------------------------------------------------------------------
    # 1. The last checkpoint of this run; else
    # 2. a fresh model with a pre-trained encoder; else
    # 3. a fresh model.
    iterator = train_batches(config, task.source)
    checkpoints = Checkpointer(
        workdir, keep=config.keep_checkpoints, best=task.best, mode=task.mode
    )
    saved = checkpoints.steps()
    start = saved[-1] if saved else 0
    writer = MetricWriter(
        workdir,
        total_steps=total,
        resume_step=start,
        title=config.mode,
        wandb=config.wandb,
        is_main=jax.process_index() == 0,
    )
    if start:
        state = restore(checkpoints, start, state_shapes, shardings, iterator)
        writer.message(f"resumed at step {start} of {total}")
    else:
        state = jax.jit(init, out_shardings=shardings)(key)
        if task.restore:
            params = jax.device_put(task.restore(state.params), shardings.params)
            state = dataclasses.replace(state, params=params)
    meta = {"config": config.to_dict(), **describe_software(), **task.meta}
    write_json(workdir / "config.json", meta)

    # ---- Loop ------------------------------------------------------------------------
    step_fn = jax.jit(
        lambda state, batch: steps.train_step(
            state,
            batch,
            prepare=task.prepare,
            loss=task.loss,
            tx=tx,
            seed=config.seed,
            accumulation=config.optim.accumulation,
        ),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )

    def save(step: int, metrics: dict[str, float] | None) -> None:
        checkpoints.save(
            step,
            params=state.params,
            optimizer={"step": state.step, "state": state.opt_state},
            data=position,
            meta=meta | {"step": step},
            metrics=metrics,
        )

    log = _Log(writer, schedule, checkpoints, batch_size)
    with contextlib.closing(checkpoints), writer, _catch_signals() as stop_signal:
        batches = prefetch(iterator, mesh)
        for step in range(start + 1, total + 1):
            with log.timer.waiting():
                batch, position = next(batches)
            state, metrics = step_fn(state, batch)
            evaluates = step % eval_every == 0 or step == total
            saves = evaluates or step % save_every == 0 or bool(stop_signal)
            log.add(step, metrics, due=saves or step % log_every == 0 or step == 1)
            if saves:
                log.finish()
                held_out = None
                if evaluates:
                    held_out = task.evaluate(state.params, step)
                    writer.write(step, held_out)
                    writer.message(f"step {step}: {_text(held_out)}")
                save(step, held_out)
                log.timer.reset()
            if stop_signal:
                checkpoints.wait()
                writer.message(f"stopped by {stop_signal[0]}, saved at step {step}")
                raise Interrupted(
                    f"{stop_signal[0]} at step {step} of {total}: a checkpoint is "
                    "saved, the same command goes on from it."
                )
        checkpoints.wait()
        iterator.close()
        best_step = checkpoints.best_step() or total
        return Trained(
            state.params,
            checkpoints.metrics(checkpoints.steps()[-1]),
            checkpoints.metrics(best_step),
            best_step,
        )


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """ValueError where the batch does not divide over devices and parts."""
    parts = mesh.size * config.optim.accumulation
    if config.data.batch_size % parts:
        raise ValueError(
            f"config.data.batch_size={config.data.batch_size} must be a multiple of "
            f"{parts}: {mesh.size} devices times config.optim.accumulation="
            f"{config.optim.accumulation}."
        )


def train_batches(config: ConfigDict, source: Source) -> TrainIterator:
    """The stream of training batches that config.data describes."""
    return train_iterator(
        source,
        batch_size=config.data.batch_size // jax.process_count(),
        image_size=config.data.image_size,
        channels=config.data.channels,
        scale=config.data.crop_scale or None,
        ratio=config.data.crop_ratio,
        interpolation=config.data.interpolation,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.num_workers,
        num_threads=config.data.num_threads,
    )


def open_split(config: ConfigDict, split: str) -> Source:
    """One split of the data set that config.data names."""
    return open_source(config.data.dataset, split, data_dir=config.data.data_dir)


def eval_pass(config: ConfigDict, source: Source) -> EvalBatches:
    """All of `source` once, resized and cropped as config.data says."""
    return eval_batches(
        source,
        batch_size=config.data.batch_size // jax.process_count(),
        image_size=config.data.image_size,
        channels=config.data.channels,
        crop_fraction=config.data.eval_crop,
        interpolation=config.data.interpolation,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
    )


def prefetch(
    iterator: TrainIterator, mesh: Mesh, depth: int = 2
) -> Iterator[tuple[steps.Batch, dict[str, Any]]]:
    """Batches on the devices, `depth` ahead, with the input's position after each."""
    ready: deque[tuple[steps.Batch, dict[str, Any]]] = deque()
    for batch in iterator:
        ready.append((sharding.to_devices(batch, mesh), iterator.get_state()))
        if len(ready) == depth:
            yield ready.popleft()


def restore(
    checkpoints: Checkpointer,
    step: int,
    shapes: TrainState,
    shardings: TrainState,
    iterator: TrainIterator,
) -> TrainState:
    """The state at `step`, laid out by `shardings`; moves the iterator there."""
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )
    params, optimizer, position = checkpoints.restore(
        step,
        params=like.params,
        optimizer={"step": like.step, "state": like.opt_state},
    )
    iterator.set_state(position)
    return TrainState(optimizer["step"], params, optimizer["state"])


class _Log:
    """Metrics of steps, fetched and checked one step late, so that no step waits.

    A line goes out with each checkpoint too: its mean loss then covers the same steps
    whether or not the run was interrupted there.
    """

    def __init__(
        self,
        writer: MetricWriter,
        schedule: optim.Schedule,
        checkpoints: Checkpointer,
        batch_size: int,
    ):
        self.timer = StepTimer()
        self._writer = writer
        self._schedule = schedule
        self._checkpoints = checkpoints
        self._batch_size = batch_size
        self._running: tuple[int, steps.Metrics, bool] | None = None
        self._losses: list[float] = []

    def add(self, step: int, metrics: steps.Metrics, due: bool) -> None:
        """Finishes the step before this one, which may still be running."""
        self.finish()
        self._running = (step, metrics, due)

    def finish(self) -> None:
        """Waits for the last step, checks it, and writes a line if one is due."""
        if not self._running:
            return
        step, metrics, due = self._running
        self._running = None
        values = {name: float(v) for name, v in jax.device_get(metrics).items()}
        self._check(step, values)
        self._losses.append(values["loss"])
        if not due:
            return
        values["loss"] = float(np.mean(self._losses))
        values["learning_rate"] = self._rate(step)
        values |= self.timer.rates(len(self._losses) * self._batch_size)
        self._losses = []
        self._writer.write(step, values)
        self._writer.progress(step, values)

    def _rate(self, step: int) -> float:
        return float(self._schedule(step - 1, 1.0))

    def _check(self, step: int, values: dict[str, float]) -> None:
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if not bad:
            return
        self._checkpoints.wait()
        good = self._checkpoints.steps()
        raise NonFiniteError(
            f"{' and '.join(bad)} not finite at step {step}, with learning rate "
            f"{self._rate(step):.3e}. Last good checkpoint: "
            f"{f'step {good[-1]}' if good else 'none yet'}. Try a lower "
            "config.optim.lr, a longer config.optim.warmup, or config.dtype=float32."
        )


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[str]]:
    """A list that gets the name of a SIGTERM or SIGINT while the loop runs."""
    received: list[str] = []

    def handler(number: int, frame: Any) -> None:
        del frame
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        received.append(signal.Signals(number).name)

    previous = {}
    with contextlib.suppress(ValueError):  # not in the main thread: a notebook's
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _is_official(schedule: str) -> bool:
    if schedule not in ("official", "plain"):
        raise ValueError(
            f"config.optim.schedule={schedule!r}: expected 'official' or 'plain'."
        )
    return schedule == "official"


def describe_software() -> dict[str, Any]:
    """Versions, and the git commit when the code runs from a checkout."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    versions = {name: version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    return {"versions": versions, "git_commit": git.stdout.strip() or None}


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def _text(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
