"""The training step that a config describes, for devices that may be elsewhere.

What `train_loop` runs and what `aot` compiles for a slice that is not there is the same
step: it is made here, of shapes alone.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simmim_jax.errors import UserError
from simmim_jax.runtime import sharding
from simmim_jax.training import flops, inputs, optim, steps
from simmim_jax.training.steps import TrainState

# The order of operations that needs least memory: a sixth of a step's temporary arrays
# less for a ViT-B, a fifth for a Swin-B, and no slower.
_CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns, and how: all that a training step is made of."""

    # key -> params, pure: runs under jit, straight onto the mesh.
    init: Callable[[jax.Array], Any]
    prepare: steps.Prepare
    loss: steps.Loss
    # The same without what is computed twice to save memory: a utilisation counts it.
    plain_loss: steps.Loss
    # Of an epoch.
    num_examples: int
    # The layer of a parameter, for layer-wise learning-rate decay.
    layer_id: Callable[[tuple[str, ...]], int] = lambda path: 0
    layer_decay: float = 1.0
    # Top-level names of parameters that do not learn.
    frozen: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training step and the state it changes: shapes, and where they lie."""

    schedule: optim.Schedule
    fresh_state: Callable[[Any], TrainState]  # of parameters
    step: Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]
    state: TrainState  # of jax.ShapeDtypeStruct, with shardings
    shardings: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    compiler_options: dict[str, str]

    def lower(self) -> jax.stages.Lowered:
        """The step, ready to be compiled; it reuses the state's memory."""
        jitted = jax.jit(
            self.step,
            donate_argnums=0,
            out_shardings=(self.shardings, None),
            compiler_options=self.compiler_options,
        )
        return jitted.lower(self.state, self.batch)


def plan(config: ConfigDict, learner: Learner, mesh: Mesh) -> Plan:
    """The training step of `config` on a mesh.

    Computes nothing. raises: ValueError for what would end a run later.
    """
    params = check(config, learner, mesh)
    schedule, tx = optimizer(config, learner, params)

    def fresh_state(params: Any) -> TrainState:
        learned = steps.learning(params, learner.frozen)
        ema = jax.tree.map(jnp.copy, learned) if config.ema_decay else None
        return TrainState(jnp.zeros([], jnp.int32), params, tx.init(learned), ema)

    def loss(params: Any, batch: steps.Batch, key: jax.Array) -> Any:
        return learner.loss(sharding.gathered(params, mesh), batch, key)

    update = functools.partial(
        steps.train_step,
        prepare=learner.prepare,
        loss=loss,
        tx=tx,
        seed=config.seed,
        accumulation=config.optim.accumulation,
        frozen=learner.frozen,
        ema_decay=config.ema_decay,
    )

    def train_step(
        state: TrainState, batch: steps.Batch
    ) -> tuple[TrainState, steps.Metrics]:
        with sharding.on_mesh(mesh):
            return update(state, batch)

    shapes = jax.eval_shape(fresh_state, params)
    shardings = sharding.state_sharding(shapes, mesh)
    return Plan(
        schedule=schedule,
        fresh_state=fresh_state,
        step=train_step,
        state=sharding.placed(shapes, shardings),
        shardings=shardings,
        batch=_batch_like(config, sharding.batch_sharding(mesh)),
        compiler_options=_CPU_OPTIONS if mesh.devices[0, 0].platform == "cpu" else {},
    )


def check(config: ConfigDict, learner: Learner, mesh: Mesh) -> Any:
    """Shapes of the parameters; ValueError for what would end a run later.

    Traces the loss of a step, but compiles nothing.
    """
    inputs.check_batch(config, mesh)
    for name, duration in (
        ("duration", config.duration),
        ("log_every", config.log_every),
        ("eval_every", config.eval_every),
        ("checkpoint_every", config.checkpoint_every),
        ("optim.warmup", config.optim.warmup),
    ):
        try:
            in_steps(config, learner, duration)
        except ValueError as error:
            raise UserError(f"config.{name}={error}") from None
    key = jax.random.key(config.seed)
    params = jax.eval_shape(learner.init, key)
    optimizer(config, learner, params)

    def loss(params: Any, batch: steps.Batch, key: jax.Array) -> Any:
        return learner.loss(params, learner.prepare(batch, key), key)

    with sharding.on_mesh(mesh):
        jax.eval_shape(loss, params, _batch_like(config), key)
    return params


def optimizer(
    config: ConfigDict, learner: Learner, params: Any
) -> tuple[optim.Schedule, optax.GradientTransformation]:
    """The learning rate and AdamW of config.optim, for parameters of these shapes."""
    batch_scale = config.data.batch_size / optim.REFERENCE_BATCH
    schedule = optim.learning_rate(
        decay=config.optim.decay,
        peak=config.optim.lr * batch_scale,
        warmup_lr=config.optim.warmup_lr * batch_scale,
        min_lr=config.optim.min_lr * batch_scale,
        total_steps=in_steps(config, learner, config.duration),
        warmup_steps=in_steps(config, learner, config.optim.warmup),
        milestones=[in_steps(config, learner, m) for m in config.optim.milestones],
        schedule=config.optim.schedule,
    )
    mask = optim.decay_mask(params, config.optim.decay_groups)
    scales = optim.layer_scales(params, learner.layer_id, learner.layer_decay)
    tx = optim.adamw(
        schedule,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        mask=steps.learning(mask, learner.frozen),
        scales=steps.learning(scales, learner.frozen),
    )
    return schedule, tx


def flops_per_image(config: ConfigDict, learner: Learner) -> float:
    """Floating-point operations of a training step, of the model and an image.

    What the step computes again with config.model.remat does not count.
    """
    key = jax.random.key(config.seed)
    params = jax.eval_shape(learner.init, key)
    batch = jax.eval_shape(learner.prepare, _batch_like(config), key)

    def gradient(params: Any, batch: steps.Batch, key: jax.Array) -> Any:
        def loss(learned: Any) -> Any:
            return learner.plain_loss(params | learned, batch, key)

        return jax.grad(loss, has_aux=True)(steps.learning(params, learner.frozen))

    return flops.count(gradient, params, batch, key) / config.data.batch_size


def in_steps(config: ConfigDict, learner: Learner, duration: str) -> int:
    """ "10 epochs", "500 steps" or "100000 examples" in steps."""
    return inputs.num_steps(duration, config.data.batch_size, learner.num_examples)


def _batch_like(
    config: ConfigDict, layout: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    size = config.data.batch_size
    pixels = (size, *config.data.image_size, config.data.channels)
    return {
        "image": jax.ShapeDtypeStruct(pixels, jnp.uint8, sharding=layout),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=layout),
    }
