"""Which patches are hidden: random units, drawn on the device (paper section 3.1)."""

import math

import jax
import jax.numpy as jnp
from einops import repeat


def num_masked(units: int, ratio: float) -> int:
    """How many of `units` are hidden: rounded up, as the official generator does."""
    return math.ceil(units * ratio)


def random_mask(
    key: jax.Array,
    batch: int,
    grid: tuple[int, int],
    unit: tuple[int, int],
    ratio: float,
) -> jax.Array:
    """A mask for every sample, hiding the same number of units in each.

    grid: patches of an image, (h, w); unit: patches that are hidden together, (uh, uw);
    ratio: share of units hidden, in [0, 1]; returns: bool[b h w], True = masked.
    ValueError where units do not tile the grid (official `MaskGenerator`).
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"config.mask.ratio={ratio}: expected a share in 0..1.")
    (height, width), (unit_height, unit_width) = grid, unit
    if height % unit_height or width % unit_width:
        raise ValueError(
            f"mask units of {unit_height}x{unit_width} patches do not tile a grid of "
            f"{height}x{width} patches: config.data.image_size must be a multiple of "
            "config.mask.unit_size, and that one of config.model.patch_size."
        )
    rows, columns = height // unit_height, width // unit_width
    order = jax.random.uniform(key, (batch, rows * columns)).argsort(axis=1)
    hidden = order[:, : num_masked(rows * columns, ratio)]
    mask = jnp.zeros((batch, rows * columns), bool)
    mask = jnp.put_along_axis(mask, hidden, True, axis=1, inplace=False)
    return upsample(mask.reshape(batch, rows, columns), height, width)


def upsample(mask: jax.Array, height: int, width: int) -> jax.Array:
    """bool[b h w] -> bool[b height width], each value repeated over its rectangle."""
    p, q = height // mask.shape[1], width // mask.shape[2]
    return repeat(mask, "b h w -> b (h p) (w q)", p=p, q=q)
