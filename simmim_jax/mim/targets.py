"""What is predicted: pixels as they are, normalised, smaller, or sorted into bins."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce, repeat

from simmim_jax.errors import UserError

# Added to the variance of a window.
EPS = 1e-6


def check_window(window: int) -> None:
    """ValueError for a side in pixels that has no centre, or nothing beside it."""
    if window % 2 == 0 or window < 3:
        raise UserError(
            f"config.target.window={window}: expected an odd number from 3 on."
        )


def window_moments(images: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation around every pixel, channel by channel.

    images: float32[b h w c]; window: side in pixels, odd; returns: two of
    float32[b h w c], √(variance + 1e-6) the second. Windows end at the border of the
    image; the variance is unbiased, of n - 1 (official `norm_targets`).

    Sums over windows are products with a band matrix, along one axis and then the
    other: as exact as adding value by value. Differences of cumulative sums are less
    so, since those grow with the image. The mean of the image is taken off first: that
    changes no variance, and leaves less for float32 to cancel. ValueError for a window
    without a centre.
    """
    check_window(window)
    rows, columns = (_band(size, window) for size in images.shape[1:3])
    count = np.outer(rows.sum(1), columns.sum(1))[:, :, None]

    def mean(x: jax.Array) -> jax.Array:
        sums = jnp.einsum("yh, xw, bhwc -> byxc", rows, columns, x, precision="highest")
        return sums / count

    center = images.mean((1, 2), keepdims=True)
    offset = images - center
    local = mean(offset)
    variance = (mean(jnp.square(offset)) - jnp.square(local)) * (count / (count - 1))
    return center + local, jnp.sqrt(jnp.maximum(variance, 0) + EPS)


def _band(size: int, window: int) -> np.ndarray:
    """float32[size size], 1 where two positions share a window."""
    position = np.arange(size)
    near = np.abs(position[:, None] - position) <= window // 2
    return near.astype(np.float32)


def normalize_windows(images: jax.Array, window: int) -> jax.Array:
    """(x - mean) / std of the window around each pixel; as `window_moments`."""
    mean, std = window_moments(images, window)
    return (images - mean) / std


def downsample(images: jax.Array, factor: int) -> jax.Array:
    """float[b h w c] -> [b h/factor w/factor c], each pixel the mean of its cell."""
    return reduce(images, "b (h p) (w q) c -> b h w c", "mean", p=factor, q=factor)


def upsample(images: jax.Array, factor: int) -> jax.Array:
    """[b h w c] -> [b h*factor w*factor c], each pixel repeated over its cell."""
    return repeat(images, "b h w c -> b (h p) (w q) c", p=factor, q=factor)


def to_bins(pixels: jax.Array, bins: int) -> jax.Array:
    """Values in 0..255 -> int32, the number of their bin: `bins` equally wide ones."""
    return jnp.floor(pixels * bins / 256).astype(jnp.int32)


def from_bins(logits: jax.Array) -> jax.Array:
    """float[... bins] -> float[...] in 0..255, the expected value.

    A bin stands for the mean of the whole numbers in it.
    """
    bins = logits.shape[-1]
    values = (jnp.arange(bins) + 0.5) * (256 / bins) - 0.5
    return jax.nn.softmax(logits) @ values
