"""Losses of pre-training and fine-tuning, all in float32."""

import jax
import jax.numpy as jnp


def masked_l1(
    prediction: jax.Array, target: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean |x - x̂| over masked pixels (SimMIM eq. 1; official `SimMIM.forward`).

    prediction, target: float[b h w c]; mask: [b h w], 1 or True = masked, may hold
    other weights; returns: the loss, and the number of masked pixels it is over.
    No pixel masked gives 0.
    """
    mask = mask.astype(jnp.float32)[..., None]
    error = jnp.abs(target - prediction.astype(jnp.float32)) * mask
    pixels = mask.sum()
    return error.sum() / (pixels + 1e-5) / target.shape[-1], pixels


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits: float[b k]; targets: float[b k], rows summing to 1 -> float[b]."""
    return -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(-1)


def smooth_labels(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """int[b] -> float[b k]: 1 - smoothing on the label, the rest spread over all."""
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + (
        smoothing / num_classes
    )
