"""The training step of a learner, made of shapes alone, for devices here or elsewhere.

`loop` runs it, `performance` compiles it for TPU slices that are elsewhere.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simmim_jax.errors import UserError
from simmim_jax.runtime import sharding
from simmim_jax.training import flops, optim, steps
from simmim_jax.training.run import Learner
from simmim_jax.training.steps import TrainState

# The order of operations that needs least memory: a sixth of a step's temporary arrays
# less for a ViT-B, a fifth for a Swin-B, and no slower (before models/blocks.py had an
# order of its own, which needs this one).
CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# Activations are about 100 times as large as float32 pixels in our smallest models, 220
# times in a ViT-B: smaller batches fit, and need not be traced to know it.
_PER_PIXEL = 100


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training step and the state it changes: shapes, and how they are sharded."""

    schedule: optim.Schedule
    fresh_state: Callable[[Any], TrainState]  # of parameters
    step: Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]
    state: TrainState  # of jax.ShapeDtypeStruct, with shardings
    shardings: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    compiler_options: dict[str, str]

    def lower(self) -> jax.stages.Lowered:
        """Return the step, ready to be compiled; it donates the state's memory."""
        jitted = jax.jit(
            self.step,
            donate_argnums=0,
            out_shardings=(self.shardings, None),
            compiler_options=self.compiler_options,
        )
        return jitted.lower(self.state, self.batch)


def plan(learner: Learner, mesh: Mesh) -> Plan:
    """Return the training step on a mesh. Computes nothing.

    raises: UserError for what would end a run later.
    """
    params = check(learner, mesh)
    schedule, tx = learner.optimizer(params)

    def fresh_state(params: Any) -> TrainState:
        learned = steps.learning(params, learner.frozen)
        ema = jax.tree.map(jnp.copy, learned) if learner.ema_decay else None
        return TrainState(jnp.zeros([], jnp.int32), params, tx.init(learned), ema)

    def loss(params: Any, batch: steps.Batch, key: jax.Array) -> Any:
        return learner.loss(sharding.gathered(params, mesh), batch, key)

    update = functools.partial(
        steps.train_step,
        prepare=learner.prepare,
        loss=loss,
        tx=tx,
        seed=learner.seed,
        accumulation=learner.accumulation,
        frozen=learner.frozen,
        ema_decay=learner.ema_decay,
    )

    def train_step(
        state: TrainState, batch: steps.Batch
    ) -> tuple[TrainState, steps.Metrics]:
        with sharding.on_mesh(mesh):
            return update(state, batch)

    shapes = jax.eval_shape(fresh_state, params)
    shardings = sharding.state_sharding(shapes, mesh)
    layout = sharding.batch_sharding(mesh)
    return Plan(
        schedule=schedule,
        fresh_state=fresh_state,
        step=train_step,
        state=sharding.placed(shapes, shardings),
        shardings=shardings,
        batch={
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)
            for name, x in learner.batch.items()
        },
        compiler_options=CPU_OPTIONS if mesh.devices[0, 0].platform == "cpu" else {},
    )


def check(learner: Learner, mesh: Mesh) -> Any:
    """Return shapes of the parameters.

    Traces the loss of a step, but compiles nothing.
    raises: UserError for what would end a run later.
    """
    check_batch(learner.batch_size, learner.accumulation, mesh)
    check_groups(learner.mix_group, learner.batch_size, mesh)
    key = jax.random.key(learner.seed)
    params = jax.eval_shape(learner.init, key)
    learner.optimizer(params)

    def loss(params: Any, batch: steps.Batch, key: jax.Array) -> Any:
        return learner.loss(params, learner.prepare(batch, key), key)

    with sharding.on_mesh(mesh):
        jax.eval_shape(loss, params, dict(learner.batch), key)
    if mesh.devices[0, 0].platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        check_memory(learner, params, memory * jax.process_count())
    return params


def check_memory(learner: Learner, params: Any, memory: int) -> None:
    """Raise UserError where activations alone are twice as large as `memory` [bytes].

    memory: of all processes, which share the batch.

    XLA would find out, too, but compiles first: up to minutes.
    """
    pixels = sum(x.size for x in learner.batch.values()) / learner.accumulation
    if 4 * _PER_PIXEL * pixels < memory:
        return
    kept = activations(learner, params)
    if kept > 2 * memory:
        fits = max(int(learner.batch_size * memory / kept), 1)
        raise UserError(
            f"config.data.batch_size={learner.batch_size} needs {kept / 1e9:,.1f} GB "
            f"for activations; there are {memory / 1e9:,.1f} GB of memory. Try "
            f"--config.data.batch_size={1 << (fits.bit_length() - 1)}, "
            "--config.optim.accumulation, or --config.model.remat=full."
        )


def activations(learner: Learner, params: Any) -> float:
    """Return the size of what the backward pass keeps of a micro-batch [bytes].

    XLA needs more: 53 GB for 50 in a small ViT, 377 for 269 in a ViT-B, before GELU was
    computed again on CPUs.
    """
    key = jax.random.key(learner.seed)
    batch = jax.eval_shape(learner.prepare, dict(learner.batch), key)

    def pullback(params: Any, batch: steps.Batch, key: jax.Array) -> Any:
        def loss(learned: Any) -> Any:
            return learner.loss(params | learned, batch, key)

        learned = steps.learning(params, learner.frozen)
        return jax.vjp(loss, learned, has_aux=True)[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, params, batch, key))
    return sum(x.size * x.dtype.itemsize for x in kept) / learner.accumulation


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raise UserError where a batch does not divide over devices and micro-batches."""
    parts = mesh.size * accumulation
    if batch_size % parts:
        raise UserError(
            f"config.data.batch_size={batch_size} must be a multiple of {parts}: "
            f"{mesh.size} devices times config.optim.accumulation={accumulation}."
        )


def check_groups(mix_group: int, batch_size: int, mesh: Mesh) -> None:
    """Raise UserError where images would be mixed with those of other devices."""
    part = batch_size // mesh.size
    if mix_group and part % min(mix_group, batch_size):
        raise UserError(
            f"config.augment.mix_group={mix_group} with {part} images on each of "
            f"{mesh.size} devices: expected a divisor of {part}, or 0, which mixes the "
            "whole batch across devices."
        )


def flops_per_image(learner: Learner) -> float:
    """Return floating-point operations of a training step, an image [FLOP].

    What rematerialisation computes again does not count.
    """
    key = jax.random.key(learner.seed)
    params = jax.eval_shape(learner.init, key)
    batch = jax.eval_shape(learner.prepare, dict(learner.batch), key)

    def gradient(params: Any, batch: steps.Batch, key: jax.Array) -> Any:
        def loss(learned: Any) -> Any:
            return learner.plain_loss(params | learned, batch, key)

        return jax.grad(loss, has_aux=True)(steps.learning(params, learner.frozen))

    return flops.count(gradient, params, batch, key) / learner.batch_size
