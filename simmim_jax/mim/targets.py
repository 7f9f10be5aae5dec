"""Prediction targets: pixels as they are, normalised, downsampled or binned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce, repeat

from simmim_jax.errors import UserError

# Added to the variance of a window.
EPS = 1e-6


def check_window(window: int) -> None:
    """Raise UserError if the side of a window [pixels] is even or below 3."""
    if window % 2 == 0 or window < 3:
        raise UserError(
            f"config.target.window={window}: expected an odd number, at least 3."
        )


def window_moments(
    images: jax.Array, window: int, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the mean and standard deviation around every pixel, per channel.

    images: float32[b h w c]; window: odd side [pixels]; valid: bool[b h w c], values
    that count, None for all of them; returns: two float32[b h w c],
    the second √(variance + 1e-6). Windows are cropped at the border of the image. The
    variance is unbiased, over n - 1 (official `norm_targets`). Raises UserError for a
    window without a centre.

    Sums over windows are products with a band matrix along each axis, as exact as
    adding value by value. Differences of cumulative sums are less exact, since those
    grow with the image. The mean of the image is subtracted first: this keeps the
    variance and reduces cancellation in float32.
    """
    check_window(window)
    rows, columns = (_band(size, window) for size in images.shape[1:3])

    def sums(x: jax.Array) -> jax.Array:
        return jnp.einsum("yh, xw, bhwc -> byxc", rows, columns, x, precision="highest")

    count: Any
    if valid is None:
        count = np.outer(rows.sum(1), columns.sum(1))[:, :, None]
        freedom = count - 1
        center = images.mean((1, 2), keepdims=True)
        offset = images - center
    else:
        inside = sums(valid.astype(jnp.float32))
        count, freedom = jnp.maximum(inside, 1), jnp.maximum(inside - 1, 1)
        measured = jnp.maximum(valid.sum((1, 2), keepdims=True), 1)
        center = jnp.where(valid, images, 0).sum((1, 2), keepdims=True) / measured
        offset = jnp.where(valid, images - center, 0)
    local = sums(offset) / count
    variance = sums(jnp.square(offset)) / count - jnp.square(local)
    variance = variance * (count / freedom)
    return center + local, jnp.sqrt(jnp.maximum(variance, 0) + EPS)


def _band(size: int, window: int) -> np.ndarray:
    """Return float32[size size], 1 where a position is in the window of the other."""
    position = np.arange(size)
    near = np.abs(position[:, None] - position) <= window // 2
    return near.astype(np.float32)


def normalize_windows(
    images: jax.Array, window: int, valid: jax.Array | None = None
) -> jax.Array:
    """Return (x - mean) / std of the window around each pixel; see `window_moments`."""
    mean, std = window_moments(images, window, valid)
    return (images - mean) / std


def downsample(
    images: jax.Array, factor: int, valid: jax.Array | None = None
) -> jax.Array:
    """Average over cells: float[b h w c] -> [b h/factor w/factor c].

    valid: bool[b h w c], values that count, None for all of them.
    """
    cells = "b (h p) (w q) c -> b h w c"
    if valid is None:
        return reduce(images, cells, "mean", p=factor, q=factor)
    total = reduce(jnp.where(valid, images, 0), cells, "sum", p=factor, q=factor)
    count = reduce(valid.astype(images.dtype), cells, "sum", p=factor, q=factor)
    return total / jnp.maximum(count, 1)


def any_in_cell(valid: jax.Array, factor: int) -> jax.Array:
    """Return whether a cell has a valid value: bool[b h w c], smaller by `factor`."""
    return reduce(valid, "b (h p) (w q) c -> b h w c", "any", p=factor, q=factor)


def upsample(images: jax.Array, factor: int) -> jax.Array:
    """Repeat pixels over cells: [b h w c] -> [b h*factor w*factor c]."""
    return repeat(images, "b h w c -> b (h p) (w q) c", p=factor, q=factor)


def to_bins(pixels: jax.Array, bins: int) -> jax.Array:
    """Return the indices, int32, of values in 0..255 among `bins` equal intervals."""
    return jnp.floor(pixels * bins / 256).astype(jnp.int32)


def from_bins(logits: jax.Array) -> jax.Array:
    """Return the expected value, float[...] in 0..255, of logits, float[... bins].

    A bin has the mean value of its integers.
    """
    bins = logits.shape[-1]
    values = (jnp.arange(bins) + 0.5) * (256 / bins) - 0.5
    return jax.nn.softmax(logits) @ values
