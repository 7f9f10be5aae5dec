"""AdamW as the official code groups and schedules it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simmim_jax.errors import UserError
from simmim_jax.runtime import sharding

Params = Any
# (step, scale) -> learning rate; `scale` multiplies the peak, not the floors.
Schedule = Callable[[jax.Array | int, float], jax.Array]

# Recipes give learning rates for this batch size and scale them linearly.
REFERENCE_BATCH = 512


def learning_rate(
    *,
    decay: str,
    peak: float,
    warmup_lr: float,
    min_lr: float,
    total_steps: int,
    warmup_steps: int,
    milestones: Sequence[int] = (),
    schedule: str,
) -> Schedule:
    """Return a linear warm-up followed by a decay.

    decay: "cosine" or "linear" to min_lr, "multistep" or "constant". Multistep divides
    the rate by ten at each milestone [steps].

    schedule: "official" reproduces two habits of SimMIM's code: a rate applies one
    update late, and the cosine counts from step 0, so that the rate drops where the
    warm-up ends. "official_prefix" is late, too, but its cosine starts after the
    warm-up (Swin-Transformer repository); "plain" is also on time.
    Floors are absolute: layer-wise decay scales the peak only (official
    `build_scheduler`).
    """

    if schedule not in ("official", "official_prefix", "plain"):
        raise UserError(
            f"config.optim.schedule={schedule!r}: expected 'official', "
            "'official_prefix' or 'plain'."
        )
    start = 0 if schedule == "official" else warmup_steps

    def rate_at(step: jax.Array | int, scale: float = 1.0) -> jax.Array:
        # A step known on the host is computed there: the device may be busy.
        xp: Any = jnp if isinstance(step, jax.Array) else np
        t = xp.asarray(step) if schedule == "plain" else xp.maximum(step - 1, 0)
        top = peak * scale
        warm = warmup_lr + t * (top - warmup_lr) / max(warmup_steps, 1)
        rate: jax.Array | float
        if decay == "cosine":
            progress = (t - start) / max(total_steps - start, 1)
            rate = min_lr + (top - min_lr) * (1 + xp.cos(xp.pi * progress)) / 2
        elif decay == "linear":
            progress = (t - start) / max(total_steps - start, 1)
            rate = top + (min_lr - top) * progress
        elif decay == "multistep":
            passed = sum((t >= milestone) * 1 for milestone in milestones)
            rate = top * 0.1**passed
        elif decay == "constant":
            rate = top
        else:
            raise UserError(
                f"config.optim.decay={decay!r}: expected 'cosine', 'linear', "
                "'multistep' or 'constant'."
            )
        return xp.where(t < warmup_steps, warm, rate)

    return rate_at


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the names along a JAX key path."""
    return tuple(key.key for key in path)


# Names that "intended" excludes from weight decay beside vectors.
TOKENS = {"cls_token", "mask_token"}
POSITIONS = {"pos_embed", "absolute_pos_embed"}
# Names in Swin that the official code looks for (`no_weight_decay_keywords`).
KEYWORDS = {"relative_position_bias_table", "logit_scale", "cpb_mlp_0", "cpb_mlp_2"}


def decay_mask(params: Params, groups: str) -> Params:
    """Return True for the parameters that weight decay applies to.

    Matrices decay; biases, norms, LayerScale, tokens and positions do not. "official"
    excludes fewer by accident: in a ViT it decays the mask token and position tables,
    in pre-training also Swin's tables and Swin V2's scales and position MLPs, since
    there its keywords never match. "intended" excludes them everywhere.
    """
    if groups == "intended":
        spared = TOKENS | POSITIONS | KEYWORDS
    elif groups == "official":
        is_swin = "layers_0" in params["encoder"]
        spared = POSITIONS | (TOKENS if is_swin else {"cls_token"})
        if is_swin and "decoder" not in params:
            spared |= KEYWORDS
    else:
        raise UserError(
            f"config.optim.decay_groups={groups!r}: expected 'official' or 'intended'."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim > 1 and spared.isdisjoint(path_names(path)), params
    )


def layer_scales(
    params: Params, layer_id: Callable[[tuple[str, ...]], int], decay: float
) -> Params:
    """Return the factor on each parameter's peak rate: decay ** (layers to the head).

    layer_id: names on a parameter's path -> its layer; 0 for embeddings.
    """
    ids = jax.tree_util.tree_map_with_path(
        lambda path, _: layer_id(path_names(path)), params
    )
    top = max(jax.tree.leaves(ids))
    return jax.tree.map(lambda i: decay ** (top - i), ids)


def scale_by_schedule(
    schedule: Schedule, scales: Params
) -> optax.GradientTransformation:
    """Multiply updates by minus each parameter's learning rate."""

    def update(updates, state, params=None):
        del params
        rates = {s: schedule(state.count, s) for s in set(jax.tree.leaves(scales))}
        updates = jax.tree.map(lambda u, s: -rates[s] * u, updates, scales)
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    return optax.GradientTransformation(init, update)


def adamw(
    schedule: Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    mask: Params,
    scales: Params,
) -> optax.GradientTransformation:
    """Return AdamW with decoupled decay, after clipping to a global L2 norm.

    clip_norm: 0 does not clip. mask: see `decay_mask`; scales: see `layer_scales`.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask),
        scale_by_schedule(schedule, scales),
    )


def at_step(state: optax.OptState, step: int) -> optax.OptState:
    """Return the state of `adamw` with its schedule at `step`; moments stay."""
    *others, last = state
    count = sharding.laid_out(np.int32(step), last.count.sharding)
    return (*others, last._replace(count=count))
