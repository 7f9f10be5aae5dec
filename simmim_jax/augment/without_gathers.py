"""Tables and warps of RandAugment without gathers, which are slow on TPUs.

Levels are pairs of one-hot hexadecimal digits: counts of pairs are a product, and a
table is one of 16 x 16. Warps are products by tiles: 16 x 16 results depend on a window
of 32 x 32 pixels, which products with one-hot vectors cut out. In a window, weights are
zero but for the four rows and columns around a position.

All products are exact in bfloat16: pixels have 8 bits, and weights are multiples of
2^-15 in two parts.

Compiled by the TPU compiler; it has not run on a TPU yet.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

TILE = 16
# Positions of a tile are at most 21 pixels apart (rotated by 30 degrees), and read one
# pixel before and two after; rounded up to whole registers.
WINDOW = 32


def histogram(pixels: jax.Array) -> jax.Array:
    """Count the pixels of each grey level: int[b h w c] -> int[b c 256]."""
    high, low = _digits(pixels)
    counts = jnp.einsum(
        "bcip,bcjp->bcij", high, low, preferred_element_type=jnp.float32
    )
    return counts.reshape(*counts.shape[:2], 256).astype(jnp.int32)


def look_up(tables: jax.Array, pixels: jax.Array) -> jax.Array:
    """Look up pixels, int[b h w c], in tables, int[b c 256]: float[b h w c]."""
    high, low = _digits(pixels)
    tables = rearrange(tables.astype(jnp.bfloat16), "b c (i j) -> b c i j", i=16)
    rows = jnp.einsum("bcij,bcip->bcjp", tables, high)
    found = jnp.where(low > 0, rows, 0).sum(2)
    return rearrange(found, "b c (h w) -> b h w c", h=pixels.shape[1])


def _digits(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return both hexadecimal digits of pixels, one-hot: bfloat16[b c 16 h*w] each."""
    flat = rearrange(pixels, "b h w c -> b c 1 (h w)")
    digits = jnp.arange(16)[:, None]
    return (
        (flat >> 4 == digits).astype(jnp.bfloat16),
        (flat & 15 == digits).astype(jnp.bfloat16),
    )


def sample(images: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Interpolate images at positions.

    images: uint8[b h w c]; x, y: float[b h w], pixel centres are at 0.5, 1.5 ...; of a
    tile, `WINDOW` - 4 pixels apart at most; returns: float[b h w c], undefined for
    positions outside the image.
    """
    _, h, w, _ = images.shape
    rows, row_weights = _windows(_tiles(y), h)
    columns, column_weights = _windows(_tiles(x), w)
    planes = rearrange(images.astype(jnp.bfloat16), "b h w c -> b h (c w)")
    slabs = jnp.einsum("btih,bhk->btik", rows, planes)
    slabs = rearrange(slabs, "b t i (c w) -> b t i c w", w=w)
    windows = jnp.einsum("bticw,btjw->btcij", slabs, columns)
    # Side by side: a matrix unit takes 128 terms at once.
    high = jnp.round(column_weights * 2**8) / 2**8
    parts = jnp.concatenate([high, column_weights - high], 2).astype(jnp.bfloat16)
    interpolated = jnp.einsum(
        "btcij,btjp->btcip",
        jnp.concatenate([windows, windows], 4),
        parts,
        preferred_element_type=jnp.float32,
    )
    result = (interpolated * row_weights[:, :, None]).sum(3)
    whole = rearrange(
        result, "b (y x) c (i j) -> b (y i) (x j) c", x=-(-w // TILE), i=TILE
    )
    return whole[:, :h, :w]


def _tiles(positions: jax.Array) -> jax.Array:
    """Cut float[b h w] into float[b tiles pixels]; the last ones repeat the edge."""
    _, h, w = positions.shape
    padded = jnp.pad(positions, ((0, 0), (0, -h % TILE), (0, -w % TILE)), mode="edge")
    return rearrange(padded, "b (y i) (x j) -> b (y x) (i j)", i=TILE, j=TILE)


def _windows(positions: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Return what cuts windows out along an axis, and the weights of their pixels.

    positions: float[b t p]; size: of the axis; returns: bfloat16[b t WINDOW size],
    one-hot, and float32[b t WINDOW p].
    """
    before = jnp.floor(positions - 0.5)
    start = before.min(2, keepdims=True) - 1
    window = jnp.arange(WINDOW)
    selected = jnp.clip(start + window, 0, size - 1)
    cut = selected[..., None] == jnp.arange(size)
    nth = window[:, None] - (before - start)[:, :, None]  # of four: -1, 0, 1, 2
    weights = jnp.zeros(nth.shape)
    for n, weight in enumerate(_cubic(positions - 0.5 - before), -1):
        weights = jnp.where(nth == n, weight[:, :, None], weights)
    return cut.astype(jnp.bfloat16), weights


def _cubic(t: jax.Array) -> Sequence[jax.Array]:
    """Return the weights of four points for a position between the middle ones.

    Keys' kernel, a = -1. Multiples of 2^-15 whose sum is 1, so that products with
    pixels are exact and equal points give themselves.
    """

    def rounded(weight: jax.Array) -> jax.Array:
        return jnp.round(weight * 2**15) / 2**15

    first = rounded(t * (t * (2 - t) - 1))
    third = rounded(t * (t * (1 - t) + 1))
    fourth = rounded(t * t * (t - 1))
    return first, 1 - first - third - fourth, third, fourth
