"""Windows of a token grid, for Swin and Swin V2."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

# Added by the official code to logits of tokens that must not attend to each other.
MASKED_LOGIT = -100.0
# Added to logits of tokens of different windows in one band.
OTHER_WINDOW_LOGIT = -1e30


def fit_window(grid: tuple[int, int], window: int, shift: int) -> tuple[int, int]:
    """Return the window and shift to use on a grid.

    A grid whose shorter side fits into the window gets an unshifted window of that side
    (official `SwinTransformerBlock`).
    """
    return (window, shift) if min(grid) > window else (min(grid), 0)


def padded(grid: tuple[int, int], window: int) -> tuple[int, int]:
    """Return the grid size, padded at the bottom and right to whole windows."""
    height, width = (-(-side // window) * window for side in grid)
    return height, width


def to_windows(
    x: jax.Array, window: int, shift: int, pad_after_shift: bool = False
) -> jax.Array:
    """Cut a grid into windows, after rolling it up and left by `shift`.

    x: float[b h w d] -> float[b*windows*window² d]. Bottom and right are zero-padded to
    whole windows: before the shift, as in Swin's detection code, or after it, as in
    timm.
    """
    _, h, w, _ = x.shape
    height, width = padded((h, w), window)
    padding = ((0, 0), (0, height - h), (0, width - w), (0, 0))
    if not pad_after_shift:
        x = jnp.pad(x, padding)
    if shift:
        x = jnp.roll(x, (-shift, -shift), (1, 2))
    if pad_after_shift:
        x = jnp.pad(x, padding)
    return rearrange(x, "b (h p) (w q) d -> (b h w p q) d", p=window, q=window)


def from_windows(
    x: jax.Array,
    grid: tuple[int, int],
    window: int,
    shift: int,
    pad_after_shift: bool = False,
) -> jax.Array:
    """Invert `to_windows`: float[b*windows*window² d] -> float[b h w d]."""
    height, width = padded(grid, window)
    x = rearrange(
        x,
        "(b h w p q) d -> b (h p) (w q) d",
        h=height // window,
        w=width // window,
        p=window,
        q=window,
    )
    if pad_after_shift:
        x = x[:, : grid[0], : grid[1]]
    if shift:
        x = jnp.roll(x, (shift, shift), (1, 2))
    return x[:, : grid[0], : grid[1]]


def shift_mask(grid: tuple[int, int], window: int, shift: int) -> np.ndarray | None:
    """Return the mask between tokens that share a window only because of the shift.

    returns: float32[windows window² window²], 0 or MASKED_LOGIT; None without a shift
    (official `attn_mask`).
    """
    if not shift:
        return None
    y, x = (_regions(side, window, shift) for side in padded(grid, window))
    regions = rearrange(
        3 * y[:, None] + x, "(h p) (w q) -> (h w) (p q)", p=window, q=window
    )
    apart = regions[:, :, None] != regions[:, None, :]
    return np.where(apart, MASKED_LOGIT, 0).astype(np.float32)


def _regions(side: int, window: int, shift: int) -> np.ndarray:
    """Label a shifted axis: 0 for whole windows, 1 and 2 for the parts of the last."""
    return np.searchsorted([side - window, side - shift], np.arange(side), "right")


# ---- Bands ---------------------------------------------------------------------------
#
# A band is a row of windows. Its tokens are contiguous in the grid already, so a kernel
# that takes a whole band needs a mask instead of a permutation.


def fits_bands(grid: tuple[int, int], window: int, max_tokens: int) -> bool:
    """Return whether whole windows tile the grid in bands of at most `max_tokens`."""
    return padded(grid, window) == grid and window * grid[1] <= max_tokens


def roll_grids(x: jax.Array, grid: tuple[int, int], shift: int) -> jax.Array:
    """Roll grids up by `shift` rows, down by a negative one: float[b*h*w d].

    As a product with a permutation: by the TPU compiler's estimate rolling by rows that
    are no multiple of 8 takes three times as long (findings/tpu_compiler_rolls.sh).
    """
    if not shift:
        return x
    tokens = grid[0] * grid[1]
    permutation = np.roll(np.eye(tokens), shift * grid[1], 1)
    x = rearrange(x, "(b n) d -> b n d", n=tokens)
    x = jnp.einsum("mn,bnd->bmd", permutation.astype(x.dtype), x, precision="highest")
    return rearrange(x, "b n d -> (b n) d")


def band_places(grid: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """Return the position of each token of a band within its window, int[n]."""
    x = (np.arange(grid[1]) - shift) % grid[1]
    return (window * np.arange(window)[:, None] + x % window).ravel()


def band_mask(grid: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """Return the mask of bands: float32[bands n n], of one band without a shift."""
    height, width = grid
    bands = height // window if shift else 1
    x = (np.arange(width) - shift) % width
    y_regions = _regions(height, window, shift)[: bands * window]
    regions = 3 * y_regions[:, None] + _regions(width, window, shift)[x]
    regions = rearrange(regions, "(b p) w -> b (p w)", b=bands)
    mask = np.where(regions[:, :, None] != regions[:, None, :], MASKED_LOGIT, 0)
    windows = np.tile(x // window, window)
    other = windows[:, None] != windows[None, :]
    return np.where(other, OTHER_WINDOW_LOGIT, mask).astype(np.float32)


def bias_at(bias: jax.Array, places: np.ndarray) -> jax.Array:
    """Gather the bias between tokens by their positions within windows, `places`.

    float[heads n n] -> float[heads m m] for int[m]. Products with one-hot matrices are
    faster than gathers on TPUs.
    """
    one_hot = np.eye(bias.shape[-1], dtype=np.float32)[places]
    return jnp.einsum("qa,hab,kb->hqk", one_hot, bias, one_hot, precision="highest")
