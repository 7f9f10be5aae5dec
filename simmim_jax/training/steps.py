"""The update of a training step: (state, batch) -> (state, metrics), a pure function.

Everything random in a step comes from fold_in(key(seed), step) and a purpose, so that
a run is the same on any number of devices and after any restart.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from einops import rearrange

# Scope of what `prepare` does, in the names of operations of a compiled step.
PREPARATION = "preparation"

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# (batch, key) -> inputs of the loss: draws augmentation and masks.
Prepare = Callable[[Batch, jax.Array], Batch]
# (params, inputs, key of drop path) -> loss, metrics.
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]


@flax.struct.dataclass
class TrainState:
    """All that training changes."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    # Moving average of the parameters that learn, or None.
    ema: Any = None

    @property
    def averaged(self) -> Any:
        """Parameters to evaluate and to use: averages where the run keeps them."""
        return self.params | (self.ema or {})


def learning(params: Any, frozen: Sequence[str]) -> Any:
    """Return the parameters outside the top-level names `frozen`."""
    return {name: tree for name, tree in params.items() if name not in frozen}


def purpose(key: jax.Array, name: str) -> jax.Array:
    """Return the key of a named use of randomness."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    prepare: Prepare,
    loss: Loss,
    tx: optax.GradientTransformation,
    seed: int,
    accumulation: int = 1,
    frozen: Sequence[str] = (),
    ema_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Update the parameters once.

    tx: for `learning(params, frozen)`; the other parameters have neither gradients nor
    optimiser state. accumulation: number of micro-batches, which save memory; masks and
    gradient clipping are those of the whole batch. ema_decay: the average becomes
    ema_decay * average + (1 - ema_decay) * parameters; 0: there is none.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    with jax.named_scope(PREPARATION):
        inputs = prepare(batch, key)
    key = purpose(key, "drop_path")
    learned = learning(state.params, frozen)

    def gradients(inputs: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        def loss_of(learned: Any) -> tuple[jax.Array, Metrics]:
            return loss(state.params | learned, inputs, key)

        return jax.grad(loss_of, has_aux=True)(learned)

    if accumulation == 1:
        grads, metrics = gradients(inputs, key)
    else:
        # Sample i goes to micro-batch i % accumulation: no sample leaves its device.
        parts = jax.tree.map(
            lambda x: rearrange(x, "(b a) ... -> a b ...", a=accumulation), inputs
        )
        keys = jax.random.split(key, accumulation)
        shapes = jax.eval_shape(jax.vmap(gradients), parts, keys)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
        total, _ = jax.lax.scan(
            lambda total, xs: (jax.tree.map(jnp.add, total, gradients(*xs)), None),
            zeros,
            (parts, keys),
        )
        grads, metrics = jax.tree.map(lambda x: x / accumulation, total)

    updates, opt_state = tx.update(grads, state.opt_state, learned)
    learned = optax.apply_updates(learned, updates)
    params, ema = state.params | learned, state.ema
    if ema_decay:
        ema = jax.tree.map(lambda e, p: e + (1 - ema_decay) * (p - e), ema, learned)
    metrics |= {
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
    }
    return TrainState(state.step + 1, params, opt_state, ema), metrics
