"""Textbook Swin with SimMIM's semantics, the baseline of ours.

Windows cut by reshaping and transposing, shifts by rolling, one product for queries,
keys and values, the bias table gathered and added: the official semantics, without any
optimisation for a compiler. Parameters have our names but for `qkv` and `patch_norm`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.models.layers import Encoded

INIT = nn.initializers.normal(0.02)


def bias_index(window: int) -> np.ndarray:
    """Return the row of the bias table per query and key."""
    y, x = np.divmod(np.arange(window**2), window)
    dy, dx = (c[:, None] - c[None] + window - 1 for c in (y, x))
    return dy * (2 * window - 1) + dx


def shift_mask(side: int, window: int, shift: int) -> np.ndarray:
    """Return -100 for tokens of a shifted window that were apart: [windows n n]."""
    parts = np.zeros((side, side))
    ends = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(ends):
        for j, columns in enumerate(ends):
            parts[rows, columns] = 3 * i + j
    parts = rearrange(parts, "(h p) (w q) -> (h w) (p q)", p=window, q=window)
    return np.where(parts[:, :, None] != parts[:, None], -100.0, 0.0)


class Attention(nn.Module):
    """Multi-head self-attention within windows."""

    heads: int
    window: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        """Apply attention to x, [b*w n d]; mask: [w n n]."""
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, kernel_init=INIT, dtype=self.dtype)
        qkv = dense(3 * width, name="qkv")(x)
        q, k, v = rearrange(
            qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads
        )
        table = self.param(
            "relative_position_bias_table",
            INIT,
            ((2 * self.window - 1) ** 2, self.heads),
        )
        scores = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k)
        scores += table[bias_index(self.window)].transpose(2, 0, 1)
        if mask is not None:
            scores = rearrange(scores, "(b w) h q k -> b w h q k", w=len(mask))
            scores += mask.astype(np.float32)[:, None]
            scores = rearrange(scores, "b w h q k -> (b w) h q k")
        weights = jax.nn.softmax(scores).astype(self.dtype)
        y = jnp.einsum("bhqk,bhkd->bhqd", weights, v)
        return dense(width, name="proj")(rearrange(y, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Attention in windows, shifted or not, and an MLP with an exact GELU."""

    heads: int
    window: int
    shifted: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to x, [b h w d]."""
        side, width = x.shape[1], x.shape[-1]
        norm = functools.partial(nn.LayerNorm, 1e-5, dtype=self.dtype)
        dense = functools.partial(nn.Dense, kernel_init=INIT, dtype=self.dtype)
        window = min(self.window, side)
        shift = window // 2 if self.shifted and side > window else 0
        y = jnp.roll(norm(name="norm1")(x), (-shift, -shift), (1, 2))
        y = rearrange(y, "b (h p) (w q) d -> (b h w) (p q) d", p=window, q=window)
        mask = shift_mask(side, window, shift) if shift else None
        y = Attention(self.heads, window, self.dtype, name="attn")(y, mask)
        y = rearrange(
            y,
            "(b h w) (p q) d -> b (h p) (w q) d",
            h=side // window,
            w=side // window,
            p=window,
        )
        x = x + jnp.roll(y, (shift, shift), (1, 2))
        y = dense(4 * width, name="fc1")(norm(name="norm2")(x))
        return x + dense(width, name="fc2")(nn.gelu(y, approximate=False))


class TextbookSwin(nn.Module):
    """Encoder of square images whose grids divide into windows."""

    patch_size: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    dtype: Any

    @property
    def stride(self) -> tuple[int, int]:
        """Height and width of a cell of the last grid [pixels]."""
        return (self.patch_size * 2 ** (len(self.depths) - 1),) * 2

    @nn.compact
    def __call__(self, images: jax.Array, mask: jax.Array, train: bool = False):
        """Encode images, [b h w c]; mask: bool[b h/p w/p], True = masked."""
        p = self.patch_size
        norm = functools.partial(nn.LayerNorm, 1e-5, dtype=self.dtype)
        conv = nn.Conv(self.width, (p, p), (p, p), dtype=self.dtype, name="patch_embed")
        x = norm(name="patch_norm")(conv(images))
        mask_token = self.param("mask_token", INIT, (1, 1, self.width))
        x = jnp.where(mask[..., None], mask_token.astype(self.dtype), x)
        for stage, (depth, heads) in enumerate(
            zip(self.depths, self.heads, strict=True)
        ):
            for i in range(depth):
                x = Block(
                    heads,
                    self.window,
                    i % 2 == 1,
                    self.dtype,
                    name=f"layers_{stage}_blocks_{i}",
                )(x)
            if stage + 1 < len(self.depths):
                x = rearrange(x, "b (h p) (w q) d -> b h w (q p d)", p=2, q=2)
                x = nn.Dense(
                    x.shape[-1] // 2,
                    use_bias=False,
                    kernel_init=INIT,
                    dtype=self.dtype,
                    name=f"layers_{stage}_reduction",
                )(norm(name=f"layers_{stage}_norm")(x))
        return Encoded(norm(name="norm")(x), None)
