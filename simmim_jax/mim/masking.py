"""Masks of units of patches, drawn on the device (paper section 3.1).

Every kind of mask hides exactly the same number of units in each image; spans hide
the same share of those that have data.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce, repeat

from simmim_jax.errors import UserError

# BEiT's blocks cover at least 16 patches of the 14x14 grid; their longer side is at
# most 1/0.3 times the shorter one.
MIN_BLOCK_SHARE = 16 / 196
MAX_BLOCK_ASPECT = 1 / 0.3


def num_masked(units: int, ratio: float) -> int:
    """Return the number of hidden units, rounded up as in the official generator."""
    return math.ceil(units * ratio)


def random_mask(
    key: jax.Array,
    batch: int,
    grid: tuple[int, int],
    unit: tuple[int, int],
    ratio: float,
) -> jax.Array:
    """Mask random units, the same number in each sample (official `MaskGenerator`).

    grid: patches of an image, (h, w); unit: patches that are hidden together, (uh, uw);
    ratio: fraction of units to hide, in [0, 1]; returns: bool[b h w], True = masked.
    Raises UserError if units do not tile the grid.
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
    """Mask rectangles (BEiT's block-wise masking, algorithm 1); see `random_mask`.

    Blocks have random areas (up to what is left to hide), aspect ratios and positions,
    and may overlap. A block that would hide too much loses its last units, so the
    number is exact. BEiT draws again instead, and hides less after ten attempts.
    """
    rows, columns = _units(grid, unit, ratio)
    total = num_masked(rows * columns, ratio)
    smallest = MIN_BLOCK_SHARE * rows * columns
    y, x = jnp.arange(rows)[:, None], jnp.arange(columns)

    def draw(key: jax.Array, samples: jax.Array) -> jax.Array:
        """Return bool[n rows columns], the masks of n consecutive samples."""

        def add_block(
            state: tuple[jax.Array, jax.Array],
        ) -> tuple[jax.Array, jax.Array]:
            hidden, step = state
            left = total - hidden.sum((1, 2), keepdims=True)
            numbers = jax.random.uniform(
                jax.random.fold_in(key, step), (4, batch, 1, 1)
            )
            size, shape, down, across = numbers[:, samples]
            # BEiT also draws between the two if less than the smallest block is left.
            area = smallest + size * (left - smallest)
            aspect = MAX_BLOCK_ASPECT ** (2 * shape - 1)
            height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, rows)
            width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, columns)
            top = jnp.floor(down * (rows - height + 1))
            start = jnp.floor(across * (columns - width + 1))
            block = (y >= top) & (y < top + height) & (x >= start) & (x < start + width)
            new = block & ~hidden
            count = new.reshape(len(new), -1).cumsum(1).reshape(new.shape)
            return hidden | (new & (count <= left)), step + 1

        hidden, _ = jax.lax.while_loop(
            lambda state: (state[0].sum((1, 2)) < total).any(),
            add_block,
            (jnp.zeros((len(samples), rows, columns), bool), jnp.int32(0)),
        )
        return hidden

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and batch % mesh.size == 0:
        # Each device stops by itself: otherwise all would ask each other every time.
        part = jax.P(mesh.axis_names)
        draw = jax.shard_map(
            draw, in_specs=(jax.P(), part), out_specs=part, check_vma=False
        )
    return upsample(draw(key, jnp.arange(batch)), *grid)


def square_mask(
    key: jax.Array,
    batch: int,
    grid: tuple[int, int],
    unit: tuple[int, int],
    ratio: float,
) -> jax.Array:
    """Mask one square at a random position; see `random_mask`.

    If the number of units is not a square number, the bottom edge is incomplete. A
    square that does not fit grows along the longer side of the image.
    """
    return _square(jax.random.uniform(key, (2, batch, 1, 1)), grid, unit, ratio)


def center_mask(
    key: jax.Array,
    batch: int,
    grid: tuple[int, int],
    unit: tuple[int, int],
    ratio: float,
) -> jax.Array:
    """Mask the central square (Context Encoders, Pathak et al., 2016)."""
    del key  # deterministic
    return _square(jnp.full((2, batch, 1, 1), 0.5), grid, unit, ratio)


def span_mask(
    key: jax.Array,
    measured: jax.Array,
    unit: tuple[int, int],
    ratio: float,
    lengths: tuple[int, int],
) -> jax.Array:
    """Mask spans of whole columns, as of text or of time; see `random_mask`.

    Lengths are uniform in `lengths`, shortest and longest [units]; the last span of a
    sample may be cut. Spans do not touch as long as there are visible columns between
    them. Only columns with data are hidden: `ratio` is the share of them, rounded up to
    whole units, less than all.

    measured: bool[b h w], patches with data.
    """
    batch, *grid = measured.shape
    _, columns = _units((grid[0], grid[1]), unit, ratio)
    has_data = reduce(measured, "b h (w u) -> b w", "any", u=unit[1])
    count = has_data.sum(1, keepdims=True)
    # 1e-4 absorbs that float32 has no 0.1. A line of one column stays visible.
    total = jnp.ceil(count * ratio - 1e-4).astype(jnp.int32)
    total = jnp.maximum(jnp.minimum(total, count - 1), 0)
    most = max(num_masked(columns, ratio), 1)
    for_length, for_order, for_place = jax.random.split(key, 3)
    shortest, longest = lengths
    size = jax.random.randint(for_length, (batch, most), shortest, longest + 1)
    size = jnp.diff(jnp.minimum(size.cumsum(1), total), axis=1, prepend=0)
    # Shuffled, so that the one that is cut may be anywhere; unused ones come last.
    order = jax.random.uniform(for_order, size.shape)
    order = jnp.where(size > 0, order, jnp.inf).argsort(1)
    size = jnp.take_along_axis(size, order, 1)
    # Each span has a place of its own between visible columns or at an end.
    visible = count - total
    scores = jax.random.uniform(for_place, (batch, columns + 1))
    scores = jnp.where(jnp.arange(columns + 1) <= visible, scores, jnp.inf)
    place = jnp.minimum(scores.argsort(1)[:, :most], visible)
    place = jnp.sort(jnp.where(size > 0, place, columns), 1)
    start = place + size.cumsum(1) - size
    rank = has_data.cumsum(1)[:, None] - 1  # of a column among those with data
    inside = (rank >= start[..., None]) & (rank < (start + size)[..., None])
    mask = has_data & inside.any(1)
    return upsample(mask[:, None], grid[0], grid[1])


# (key, batch, grid, unit, ratio) -> mask. Keys of MASKS are config.mask.kind, beside
# "span", which takes more.
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
    """Return rows and columns of units; UserError if they do not tile the grid."""
    if not 0 <= ratio <= 1:
        raise UserError(f"config.mask.ratio={ratio}: expected 0 to 1.")
    (height, width), (unit_height, unit_width) = grid, unit
    if height % unit_height or width % unit_width:
        raise UserError(
            f"mask units of {unit_height}x{unit_width} patches do not tile a grid of "
            f"{height}x{width} patches. config.data.image_size must be a multiple of "
            "config.mask.unit_size, and that a multiple of config.model.patch_size."
        )
    return height // unit_height, width // unit_width


def _hide_lowest(scores: jax.Array, grid: tuple[int, int], ratio: float) -> jax.Array:
    """Mask the units with the lowest scores; of equal ones, the first.

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
    """Mask a square; place: [2 b 1 1] in [0, 1), top to bottom and left to right."""
    sizes = _units(grid, unit, ratio)
    side = math.ceil(math.sqrt(num_masked(math.prod(sizes), ratio)))

    def distances(place: jax.Array, size: int) -> jax.Array:
        """Return distances from the square's centre along one axis, [b 1 size]."""
        start = jnp.floor(place * max(size - side + 1, 1))
        return jnp.abs(jnp.arange(size) - start - (min(side, size) - 1) / 2)

    rows, columns = map(distances, place, sizes)
    scores = jnp.maximum(rows.swapaxes(1, 2), columns)
    return _hide_lowest(scores, grid, ratio)


def where_measured(
    mask: jax.Array, valid: jax.Array | None, patch_size: tuple[int, int]
) -> jax.Array:
    """Return a mask without the patches that hold no data at all.

    mask: bool[b h w] of patches; valid: bool[b height width c] of pixels, None if all
    of them have data; patch_size: (height, width) [pixels].
    """
    return mask if valid is None else mask & measured_patches(valid, patch_size)


def measured_patches(valid: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
    """Return bool[b h w], patches with data; see `where_measured`."""
    p, q = patch_size
    return reduce(valid, "b (h p) (w q) c -> b h w", "any", p=p, q=q)


def upsample(mask: jax.Array, height: int, width: int) -> jax.Array:
    """Repeat values over rectangles: bool[b h w] -> bool[b height width]."""
    p, q = height // mask.shape[1], width // mask.shape[2]
    return repeat(mask, "b h w -> b (h p) (w q)", p=p, q=q)


def avg_dist(mask: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
    """AvgDist of the paper: mean distance of masked pixels to the nearest visible one.

    The paper finds that masks with 10 to 20 pixels pre-train best. The result is exact:
    squared distances separate into rows and columns, and the nearest pixel is in the
    nearest patch.

    mask: bool[b h w] of patches, True = masked; patch_size: (height, width) [pixels];
    returns: float32[b], mean Euclidean distance [pixels], 0 if nothing is masked and
    infinite if nothing is visible.
    """

    def squared_gaps(patches: int, size: int) -> np.ndarray:
        """Return squared pixel-to-patch gaps along one axis, [pixels patches]."""
        pixel, first = np.arange(patches * size)[:, None], np.arange(patches) * size
        gap = np.maximum(np.maximum(first - pixel, pixel - first - size + 1), 0)
        return np.square(gap, dtype=np.float32)

    height, width = mask.shape[1:]
    to_rows = squared_gaps(height, patch_size[0])
    to_columns = squared_gaps(width, patch_size[1])
    cost = jnp.where(mask, jnp.inf, 0)[:, None]
    # Minimum over the patches of each column, then over columns.
    vertical = (to_rows[:, :, None] + cost).min(2)
    distance = jnp.sqrt((vertical[:, :, None] + to_columns).min(3))
    masked = upsample(mask, *distance.shape[1:])
    total = jnp.where(masked, distance, 0).sum((1, 2))
    return total / jnp.maximum(masked.sum((1, 2)), 1)
