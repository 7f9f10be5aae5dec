"""Windows of a token grid: what Swin and Swin V2 share around their attention."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

# What the official code adds to the logits of tokens that may not see each other.
MASKED_LOGIT = -100.0


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
    sides = padded(grid, window)
    # Bands along each axis: whole windows, and the two parts of the last one.
    bands = [
        np.searchsorted([side - window, side - shift], np.arange(side), "right")
        for side in sides
    ]
    regions = 3 * bands[0][:, None] + bands[1][None, :]
    regions = rearrange(regions, "(h p) (w q) -> (h w) (p q)", p=window, q=window)
    apart = regions[:, :, None] != regions[:, None, :]
    return np.where(apart, MASKED_LOGIT, 0).astype(np.float32)
