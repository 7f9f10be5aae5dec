"""The one training loop: set up, restore, step, log, evaluate, save.

Order within a step, which resuming relies on: update, log, evaluate, save. A checkpoint
of step n holds the parameters after n updates and the input's position after n batches;
all metrics of step n are on disk before it.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simmim_jax import flops, inputs, optim, resume, sharding, steps
from simmim_jax.checkpoint import Checkpointer, describe_software
from simmim_jax.data.source import Source
from simmim_jax.interrupt import Interrupted, catch_signals
from simmim_jax.metrics import MetricWriter, write_json
from simmim_jax.step_log import StepLog
from simmim_jax.steps import TrainState


@dataclasses.dataclass(frozen=True)
class Task:
    """In what pre-training and fine-tuning differ."""

    source: Source
    # What the data are, in a line for the person who watches.
    data: str
    # key -> params, pure: runs under jit, straight onto the mesh.
    init: Callable[[jax.Array], Any]
    prepare: steps.Prepare
    loss: steps.Loss
    # (params, step) -> metrics of held-out data; may draw a picture.
    evaluate: Callable[[Any, int], dict[str, float]]
    # The metric of `evaluate` that the best checkpoint is chosen by: "min" or "max".
    best: str
    mode: str
    # The layer of a parameter, for layer-wise learning-rate decay.
    layer_id: Callable[[tuple[str, ...]], int] = lambda path: 0
    layer_decay: float = 1.0
    # Draws what the model will see, where a run starts anew.
    preview: Callable[[], Path] | None = None
    # Replaces fresh parameters where a run starts anew.
    restore: Callable[[Any], Any] | None = None
    # Top-level names of parameters that do not learn.
    frozen: tuple[str, ...] = ()
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


def check(config: ConfigDict, task: Task) -> Any:
    """Shapes of the parameters; ValueError for what would end a run later.

    Traces the loss of a step, but compiles nothing.
    """
    inputs.check_batch(config, sharding.make_mesh(**config.mesh))
    for duration in (config.log_every, config.eval_every, config.checkpoint_every):
        _in_steps(config, task, duration)
    key = jax.random.key(config.seed)
    params = jax.eval_shape(task.init, key)
    optimizer(config, task, params)

    def loss(params: Any, batch: steps.Batch, key: jax.Array) -> Any:
        return task.loss(params, task.prepare(batch, key), key)

    jax.eval_shape(loss, params, _batch_like(config), key)
    return params


def flops_per_image(config: ConfigDict, task: Task) -> float:
    """Floating-point operations of a training step, of the model and an image.

    With config.model.remat what is computed again counts again.
    """
    key = jax.random.key(config.seed)
    params = jax.eval_shape(task.init, key)
    batch = jax.eval_shape(task.prepare, _batch_like(config), key)

    def gradient(params: Any, batch: steps.Batch, key: jax.Array) -> Any:
        def loss(learned: Any) -> Any:
            return task.loss(params | learned, batch, key)

        return jax.grad(loss, has_aux=True)(steps.learning(params, task.frozen))

    return flops.count(gradient, params, batch, key) / config.data.batch_size


def train(config: ConfigDict, workdir: Path, task: Task) -> Trained:
    """Trains until config.duration is over, from the last checkpoint in `workdir`.

    Raises NonFiniteError when a loss or gradient is not finite, and Interrupted after
    SIGTERM or SIGINT, once a checkpoint is written.
    """
    # ---- Shapes, optimiser, shardings ------------------------------------------------
    params = check(config, task)
    mesh = sharding.make_mesh(**config.mesh)
    key = jax.random.key(config.seed)
    schedule, tx = optimizer(config, task, params)

    def fresh_state(params: Any) -> TrainState:
        learned = steps.learning(params, task.frozen)
        ema = jax.tree.map(jnp.copy, learned) if config.ema_decay else None
        return TrainState(jnp.zeros([], jnp.int32), params, tx.init(learned), ema)

    shapes = jax.eval_shape(fresh_state, params)
    shardings = sharding.state_sharding(shapes, mesh)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(catch_signals())
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
        total = _in_steps(config, task, config.duration)
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
            state = resume.restore(
                checkpoints, start, sharding.placed(shapes, shardings), iterator
            )
            writer.message(f"resumed at step {start} of {total}")
        else:
            if task.preview and jax.process_index() == 0:
                writer.picture(0, "augmented", task.preview())
            params = jax.jit(task.init, out_shardings=shardings.params)(key)
            if task.restore:
                params = jax.device_put(task.restore(params), shardings.params)
            state = jax.jit(fresh_state, out_shardings=shardings, donate_argnums=0)(
                params
            )
        meta = {"config": config.to_dict(), **describe_software(), **task.meta}
        if jax.process_index() == 0:
            write_json(workdir / "config.json", meta)

        # ---- Compile and loop --------------------------------------------------------
        if start < total:
            writer.message("compiling the training step ...")
            begin = time.perf_counter()
            step_fn = compile_step(config, task, tx, shapes, shardings, mesh)
            seconds = time.perf_counter() - begin
            writer.message(f"compiled the training step in {seconds:.1f} s")
            log = StepLog(writer, schedule, checkpoints, config.data.batch_size, start)
            batches = inputs.batches_on_devices(iterator, mesh)
            span = range(start + 1, total + 1)
            state = loop(config, task, state, step_fn, batches, log, meta, span, stop)
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
        _in_steps(config, task, duration) or total
        for duration in (config.log_every, config.eval_every, config.checkpoint_every)
    )
    for step in span:
        with log.timer.waiting():
            batch, position = next(batches)
        state, metrics = step_fn(state, batch)
        evaluates = step % eval_every == 0 or step == total
        saves = evaluates or step % save_every == 0 or bool(stop)
        due = saves or step % log_every == 0
        log.add(step, metrics, due, position["bad_images"])
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
        log.checkpoints.save(
            step,
            params=state.averaged,
            optimizer=resume.optimizer_item(state),
            data=position,
            meta=meta | {"step": step},
            metrics=held_out,
        )
        if stop or step == total:
            log.checkpoints.wait()
        if stop:
            raise Interrupted(
                f"{stop[0]} at step {step} of {total}: a checkpoint is saved, the same "
                "command goes on from it."
            )
        log.restart_clock()
    return state


def optimizer(
    config: ConfigDict, task: Task, params: Any
) -> tuple[optim.Schedule, optax.GradientTransformation]:
    """The learning rate and AdamW of config.optim, for parameters of these shapes."""
    batch_scale = config.data.batch_size / optim.REFERENCE_BATCH
    schedule = optim.learning_rate(
        decay=config.optim.decay,
        peak=config.optim.lr * batch_scale,
        warmup_lr=config.optim.warmup_lr * batch_scale,
        min_lr=config.optim.min_lr * batch_scale,
        total_steps=_in_steps(config, task, config.duration),
        warmup_steps=_in_steps(config, task, config.optim.warmup),
        milestones=[_in_steps(config, task, m) for m in config.optim.milestones],
        schedule=config.optim.schedule,
    )
    mask = optim.decay_mask(params, config.optim.decay_groups)
    scales = optim.layer_scales(params, task.layer_id, task.layer_decay)
    tx = optim.adamw(
        schedule,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        mask=steps.learning(mask, task.frozen),
        scales=steps.learning(scales, task.frozen),
    )
    return schedule, tx


def compile_step(
    config: ConfigDict,
    task: Task,
    tx: optax.GradientTransformation,
    shapes: TrainState,
    shardings: TrainState,
    mesh: Mesh,
) -> Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]:
    """The training step, compiled for these shapes; it reuses the state's memory."""
    step = functools.partial(
        steps.train_step,
        prepare=task.prepare,
        loss=task.loss,
        tx=tx,
        seed=config.seed,
        accumulation=config.optim.accumulation,
        frozen=task.frozen,
        ema_decay=config.ema_decay,
    )
    batch = _batch_like(config, sharding.batch_sharding(mesh))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    return jitted.lower(sharding.placed(shapes, shardings), batch).compile()


def _batch_like(
    config: ConfigDict, layout: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    size = config.data.batch_size
    pixels = (size, *config.data.image_size, config.data.channels)
    return {
        "image": jax.ShapeDtypeStruct(pixels, jnp.uint8, sharding=layout),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=layout),
    }


def _in_steps(config: ConfigDict, task: Task, duration: str) -> int:
    return inputs.num_steps(duration, config.data.batch_size, len(task.source))


def _text(metrics: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}"
        for name, value in metrics.items()
    )
