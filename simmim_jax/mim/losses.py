"""Pre-training and fine-tuning losses, all in float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def masked_l1(
    prediction: jax.Array, target: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean |x - x̂| over masked pixels (SimMIM eq. 1; official `SimMIM.forward`).

    prediction, target: float[b h w c]; mask: [b h w], 1 or True = masked, or other
    weights, or [b h w c], a weight per value; returns: the loss, and the number (sum of
    weights) of masked pixels. The loss is 0 if no pixel is masked, and where the mask
    is 0 values may be anything finite.
    """
    return _masked_mean(jnp.abs(target - prediction.astype(jnp.float32)), mask)


def masked_l2(
    prediction: jax.Array, target: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean (x - x̂)², otherwise as `masked_l1`."""
    return _masked_mean(jnp.square(target - prediction.astype(jnp.float32)), mask)


def masked_smooth_l1(
    prediction: jax.Array, target: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Smooth L1 loss with beta=1, d²/2 up to d = |x - x̂| = 1; as `masked_l1`."""
    error = jnp.abs(target - prediction.astype(jnp.float32))
    return _masked_mean(jnp.where(error < 1, error**2 / 2, error - 0.5), mask)


def masked_cross_entropy(
    logits: jax.Array, target: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean -log p(target) of a classification of every value; as `masked_l1`.

    logits: float[b h w c k]; target: int[b h w c] in 0..k-1.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return _masked_mean(jax.nn.logsumexp(logits, axis=-1) - chosen, mask)


# (prediction, target, mask) -> (loss, masked pixels). Keys are config.loss.kind.
PixelLoss = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
PIXEL_LOSSES: dict[str, PixelLoss] = {
    "l1": masked_l1,
    "l2": masked_l2,
    "smooth_l1": masked_smooth_l1,
    "bins": masked_cross_entropy,
}


def _masked_mean(error: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    channels = error.shape[-1]
    mask = mask.astype(jnp.float32)
    if mask.ndim == error.ndim:  # pixels are counted by their share of channels
        pixels = mask.sum() / channels
    else:
        pixels, mask = mask.sum(), mask[..., None]
    return (error * mask).sum() / (pixels + 1e-5) / channels, pixels


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return float[b]; logits, targets: float[b k], rows of targets summing to 1."""
    return -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(-1)


def pixel_cross_entropy(
    logits: jax.Array, classes: jax.Array, ignore_index: int
) -> jax.Array:
    """Return the sum of -log p(class) over all pixels but those of ignore_index.

    logits: float[b h w k]; classes: int[b h w] in 0..k-1, or ignore_index.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    targets = jax.nn.one_hot(classes, logits.shape[-1])
    return -(targets * log_p).sum(-1, where=(classes != ignore_index)[..., None]).sum()


def smooth_labels(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Return float[b k]: 1 - smoothing on the label, the rest spread over all."""
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + (
        smoothing / num_classes
    )


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return float[b], the mean binary cross-entropy of the classes that are known.

    logits, targets: float[b k], targets in 0..1 or NaN where they are not known.
    """
    x = logits.astype(jnp.float32)
    # -t log σ(x) - (1 - t) log(1 - σ(x))
    return _known_mean(lambda t: jax.nn.softplus(x) - t * x, targets)


def absolute_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return float[b], the mean |x - t| of the numbers that are not NaN."""
    return _known_mean(lambda t: jnp.abs(outputs.astype(jnp.float32) - t), targets)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return float[b], the mean (x - t)² of the numbers that are not NaN."""
    return _known_mean(lambda t: jnp.square(outputs.astype(jnp.float32) - t), targets)


def _known_mean(
    error: Callable[[jax.Array], jax.Array], targets: jax.Array
) -> jax.Array:
    known = ~jnp.isnan(targets)
    errors = jnp.where(known, error(jnp.where(known, targets, 0)), 0)
    return errors.sum(-1) / jnp.maximum(known.sum(-1), 1)


# (outputs, targets), float[b k] both, -> float[b]. Keys are config.loss of fine-tuning.
HEAD_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "softmax": cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
    "l1": absolute_error,
    "l2": squared_error,
}
