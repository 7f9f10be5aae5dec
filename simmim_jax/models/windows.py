"""Windows of a token grid: what Swin and Swin V2 share around their attention."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

# What the official code adds to the logits of tokens that may not see each other.
MASKED_LOGIT = -100.0
# What is added to those of tokens of different windows in one band.
OTHER_WINDOW = -1e30


def fit_window(grid: tuple[int, int], window: int, shift: int) -> tuple[int, int]:
    """Window and shift on a grid: one no larger than the window is one window.

    (Official `SwinTransformerBlock`: by the shorter side, where they differ.)
    """
    return (window, shift) if min(grid) > window else (min(grid), 0)


def padded(grid: tuple[int, int], window: int) -> tuple[int, int]:
    """The grid, enlarged at the bottom and right to whole windows."""
    height, width = (-(-side // window) * window for side in grid)
    return height, width


def to_windows(x: jax.Array, window: int, shift: int) -> jax.Array:
    """Cuts a grid into windows, after moving it up and left by `shift`.

    x: float[b h w d] -> float[b*windows*window² d]. Where windows do not fit, zeros are
    added at the bottom and right, as Swin's detection code does.
    """
    _, h, w, _ = x.shape
    height, width = padded((h, w), window)
    x = jnp.pad(x, ((0, 0), (0, height - h), (0, width - w), (0, 0)))
    if shift:
        x = jnp.roll(x, (-shift, -shift), (1, 2))
    return rearrange(x, "b (h p) (w q) d -> (b h w p q) d", p=window, q=window)


def from_windows(
    x: jax.Array, grid: tuple[int, int], window: int, shift: int
) -> jax.Array:
    """The inverse of `to_windows`: float[b*windows*window² d] -> float[b h w d]."""
    height, width = padded(grid, window)
    x = rearrange(
        x,
        "(b h w p q) d -> b (h p) (w q) d",
        h=height // window,
        w=width // window,
        p=window,
        q=window,
    )
    if shift:
        x = jnp.roll(x, (shift, shift), (1, 2))
    return x[:, : grid[0], : grid[1]]


def shift_mask(grid: tuple[int, int], window: int, shift: int) -> np.ndarray | None:
    """Keeps tokens apart that only the shift has brought into one window.

    returns: float32[windows window² window²], 0 or MASKED_LOGIT, or None without shift
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
    """Of a moved axis: whole windows, and the two parts of the last one."""
    return np.searchsorted([side - window, side - shift], np.arange(side), "right")


# ---- Bands ---------------------------------------------------------------------------
#
# Windows side by side are a band of the grid, whose tokens lie together already: a
# kernel that has a whole band needs no tokens moved within it, but a mask.


def fits_bands(grid: tuple[int, int], window: int, most: int) -> bool:
    """Whether a grid is bands of whole windows, of at most so many tokens each."""
    return padded(grid, window) == grid and window * grid[1] <= most


def to_bands(x: jax.Array, shift: int) -> jax.Array:
    """Moves a grid up by `shift`: float[b h w d] -> float[b*h*w d], band after band."""
    return rearrange(jnp.roll(x, -shift, 1), "b h w d -> (b h w) d")


def from_bands(x: jax.Array, grid: tuple[int, int], shift: int) -> jax.Array:
    """The inverse of `to_bands`."""
    x = rearrange(x, "(b h w) d -> b h w d", h=grid[0], w=grid[1])
    return jnp.roll(x, shift, 1)


def band_places(grid: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """int[n]: where in its window each token of a band is."""
    x = (np.arange(grid[1]) - shift) % grid[1]
    return (window * np.arange(window)[:, None] + x % window).ravel()


def band_mask(grid: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """What `shift_mask` is for windows: float32[bands n n], one band without shift."""
    height, width = grid
    bands = height // window if shift else 1
    x = (np.arange(width) - shift) % width
    y_regions = _regions(height, window, shift)[: bands * window]
    regions = 3 * y_regions[:, None] + _regions(width, window, shift)[x]
    regions = rearrange(regions, "(b p) w -> b (p w)", b=bands)
    mask = np.where(regions[:, :, None] != regions[:, None, :], MASKED_LOGIT, 0)
    windows = np.tile(x // window, window)
    other = windows[:, None] != windows[None, :]
    return np.where(other, OTHER_WINDOW, mask).astype(np.float32)


def bias_at(bias: jax.Array, places: np.ndarray) -> jax.Array:
    """The bias between tokens at these places of a window, whatever their window is.

    float[heads n n] -> float[heads m m] for int[m]. As products with ones, which TPUs
    do sooner than they gather.
    """
    at = np.eye(bias.shape[-1], dtype=np.float32)[places]
    return jnp.einsum("qa,hab,kb->hqk", at, bias, at, precision="highest")
