"""Which patches are hidden: units of them, drawn on the device (paper section 3.1).

Every kind of mask hides the same number of units in each image, to the unit.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

from simmim_jax.errors import UserError

# BEiT's blocks cover at least 16 patches of its grid of 14x14; the longer side of a
# block is at most 1/0.3 times the shorter one.
MIN_BLOCK_SHARE = 16 / 196
MAX_BLOCK_ASPECT = 1 / 0.3


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
    rows, columns = _units(grid, unit, ratio)
    scores = jax.random.uniform(key, (batch, rows * columns))
    return _hide_lowest(scores.reshape(batch, rows, columns), grid, ratio)


def block_mask(
    key: jax.Array,
    batch: int,
    grid: tuple[int, int],
    unit: tuple[int, int],
    ratio: float,
) -> jax.Array:
    """As `random_mask`, in rectangles (block-wise masking of BEiT, its algorithm 1).

    Blocks have random areas, up to what is still to be hidden, aspects and places, and
    may overlap. One that would hide too much loses its last units, so that the number
    is exact; BEiT draws again, and after ten tries hides less.
    """
    rows, columns = _units(grid, unit, ratio)
    total = num_masked(rows * columns, ratio)
    smallest = MIN_BLOCK_SHARE * rows * columns
    y, x = jnp.arange(rows)[:, None], jnp.arange(columns)

    def add_block(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, step = state
        left = total - hidden.sum((1, 2), keepdims=True)
        numbers = jax.random.uniform(jax.random.fold_in(key, step), (4, batch, 1, 1))
        size, shape, down, across = numbers
        # Where less than the smallest block is left, BEiT draws between the two, too.
        area = smallest + size * (left - smallest)
        aspect = MAX_BLOCK_ASPECT ** (2 * shape - 1)
        height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, rows)
        width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, columns)
        top = jnp.floor(down * (rows - height + 1))
        start = jnp.floor(across * (columns - width + 1))
        block = (y >= top) & (y < top + height) & (x >= start) & (x < start + width)
        new = block & ~hidden
        count = new.reshape(batch, -1).cumsum(1).reshape(new.shape)
        return hidden | (new & (count <= left)), step + 1

    hidden, _ = jax.lax.while_loop(
        lambda state: (state[0].sum((1, 2)) < total).any(),
        add_block,
        (jnp.zeros((batch, rows, columns), bool), jnp.int32(0)),
    )
    return upsample(hidden, *grid)


def square_mask(
    key: jax.Array,
    batch: int,
    grid: tuple[int, int],
    unit: tuple[int, int],
    ratio: float,
) -> jax.Array:
    """As `random_mask`, in one square at a random place.

    Where the number of units is not a square's, its lower edge is cut short; where the
    square does not fit, it grows along the longer side of the image.
    """
    return _square(jax.random.uniform(key, (2, batch, 1, 1)), grid, unit, ratio)


def center_mask(
    key: jax.Array,
    batch: int,
    grid: tuple[int, int],
    unit: tuple[int, int],
    ratio: float,
) -> jax.Array:
    """As `square_mask`, in the centre (Context Encoders, Pathak et al., 2016)."""
    del key  # nothing is random
    return _square(jnp.full((2, batch, 1, 1), 0.5), grid, unit, ratio)


# (key, batch, grid, unit, ratio) -> mask, by config.mask.kind.
MaskGenerator = Callable[
    [jax.Array, int, tuple[int, int], tuple[int, int], float], jax.Array
]
MASKS: dict[str, MaskGenerator] = {
    "random": random_mask,
    "block": block_mask,
    "square": square_mask,
    "center": center_mask,
}


def _units(
    grid: tuple[int, int], unit: tuple[int, int], ratio: float
) -> tuple[int, int]:
    """Rows and columns of units; ValueError where they do not tile the grid."""
    if not 0 <= ratio <= 1:
        raise UserError(f"config.mask.ratio={ratio}: expected a share in 0..1.")
    (height, width), (unit_height, unit_width) = grid, unit
    if height % unit_height or width % unit_width:
        raise UserError(
            f"mask units of {unit_height}x{unit_width} patches do not tile a grid of "
            f"{height}x{width} patches: config.data.image_size must be a multiple of "
            "config.mask.unit_size, and that one of config.model.patch_size."
        )
    return height // unit_height, width // unit_width


def _hide_lowest(scores: jax.Array, grid: tuple[int, int], ratio: float) -> jax.Array:
    """Hides the units with the lowest scores, the first ones among equals.

    scores: [b rows columns]; returns: bool[b h w].
    """
    flat = scores.reshape(len(scores), -1)
    hidden = flat.argsort(axis=1)[:, : num_masked(flat.shape[1], ratio)]
    mask = jnp.zeros(flat.shape, bool)
    mask = jnp.put_along_axis(mask, hidden, True, axis=1, inplace=False)
    return upsample(mask.reshape(scores.shape), *grid)


def _square(
    place: jax.Array, grid: tuple[int, int], unit: tuple[int, int], ratio: float
) -> jax.Array:
    """place: [2 b 1 1] in [0, 1), from top to bottom and from left to right."""
    sizes = _units(grid, unit, ratio)
    side = math.ceil(math.sqrt(num_masked(math.prod(sizes), ratio)))

    def distances(place: jax.Array, size: int) -> jax.Array:
        """From the middle of the square, along one axis: [b 1 size]."""
        start = jnp.floor(place * max(size - side + 1, 1))
        return jnp.abs(jnp.arange(size) - start - (min(side, size) - 1) / 2)

    rows, columns = map(distances, place, sizes)
    scores = jnp.maximum(rows.swapaxes(1, 2), columns)
    return _hide_lowest(scores, grid, ratio)


def upsample(mask: jax.Array, height: int, width: int) -> jax.Array:
    """bool[b h w] -> bool[b height width], each value repeated over its rectangle."""
    p, q = height // mask.shape[1], width // mask.shape[2]
    return repeat(mask, "b h w -> b (h p) (w q)", p=p, q=q)


def avg_dist(mask: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
    """AvgDist of the paper: how far masked pixels are from the nearest visible one.

    Masks with 10 to 20 pixels pre-train best, the paper finds. Exact: squared distances
    separate into rows and columns, and the nearest pixel lies in the nearest patch.

    mask: bool[b h w] of patches, True = masked; patch_size: height and width of one, in
    pixels; returns: float32[b], the mean over masked pixels of Euclidean distances, in
    pixels. 0 where nothing is masked, infinite where nothing is visible.
    """

    def squared_gaps(patches: int, size: int) -> np.ndarray:
        """From every pixel to every patch, along one axis: [pixels patches]."""
        pixel, first = np.arange(patches * size)[:, None], np.arange(patches) * size
        gap = np.maximum(np.maximum(first - pixel, pixel - first - size + 1), 0)
        return np.square(gap, dtype=np.float32)

    height, width = mask.shape[1:]
    to_rows = squared_gaps(height, patch_size[0])
    to_columns = squared_gaps(width, patch_size[1])
    cost = jnp.where(mask, jnp.inf, 0)[:, None]
    # To the nearest visible patch within each column of patches, then over all columns.
    vertical = (to_rows[:, :, None] + cost).min(2)
    distance = jnp.sqrt((vertical[:, :, None] + to_columns).min(3))
    masked = upsample(mask, *distance.shape[1:])
    total = jnp.where(masked, distance, 0).sum((1, 2))
    return total / jnp.maximum(masked.sum((1, 2)), 1)
