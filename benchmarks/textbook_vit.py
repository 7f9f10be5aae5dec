"""Textbook ViT with SimMIM's semantics, the baseline of ours.

Activations [b n d], scores by einsum, LayerScale and drop path on the branches, the
bias table gathered and added: the official semantics, without any optimisation for a
compiler. Parameters have our names where the optimizer selects by name.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.models.layers import Encoded

INIT = nn.initializers.truncated_normal(0.02)


class Attention(nn.Module):
    """Multi-head self-attention with a position bias and no key bias."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Apply attention to x, [b n d]; bias: [heads n n]."""
        size = x.shape[-1] // self.heads

        def project(name: str, use_bias: bool) -> jax.Array:
            return nn.DenseGeneral(
                (self.heads, size),
                use_bias=use_bias,
                kernel_init=INIT,
                dtype=self.dtype,
                name=name,
            )(x)

        q, k, v = project("q", True), project("k", False), project("v", True)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * size**-0.5, k)
        weights = jax.nn.softmax(scores.astype(jnp.float32) + bias).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return nn.DenseGeneral(
            x.shape[-1], axis=(-2, -1), kernel_init=INIT, dtype=self.dtype, name="proj"
        )(y)


class Block(nn.Module):
    """Attention and an MLP with an exact GELU."""

    heads: int
    drop_path_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, train: bool) -> jax.Array:
        """Apply the block to x, [b n d]; bias: [heads n n]."""
        width = x.shape[-1]

        def branch(y: jax.Array, name: str) -> jax.Array:
            y = y * self.param(name, nn.initializers.constant(0.1), (width,)).astype(
                self.dtype
            )
            keep = 1 - self.drop_path_rate
            if not train or keep == 1:
                return y
            kept = jax.random.bernoulli(
                self.make_rng("drop_path"), keep, (len(x), 1, 1)
            )
            return jnp.where(kept, y / keep, 0)

        y = nn.LayerNorm(1e-6, dtype=self.dtype)(x)
        x = x + branch(Attention(self.heads, self.dtype)(y, bias), "gamma_1")
        y = nn.LayerNorm(1e-6, dtype=self.dtype)(x)
        y = nn.Dense(4 * width, kernel_init=INIT, dtype=self.dtype)(y)
        y = nn.gelu(y, approximate=False)
        y = nn.Dense(width, kernel_init=INIT, dtype=self.dtype)(y)
        return x + branch(y, "gamma_2")


def bias_index(side: int) -> np.ndarray:
    """Return the row of the bias table per query and key, the class token first."""
    y, x = np.divmod(np.arange(side * side), side)
    dy, dx = (c[:, None] - c[None] + side - 1 for c in (y, x))
    last = (2 * side - 1) ** 2
    index = np.full((side * side + 1,) * 2, last + 2)
    index[1:, 1:] = dy * (2 * side - 1) + dx
    index[0, 1:], index[1:, 0] = last, last + 1
    return index


class TextbookViT(nn.Module):
    """Encoder of square images."""

    patch_size: int
    width: int
    depth: int
    heads: int
    drop_path_rate: float
    dtype: Any

    @property
    def stride(self) -> tuple[int, int]:
        """Height and width of a token [pixels]."""
        return (self.patch_size, self.patch_size)

    @nn.compact
    def __call__(self, images: jax.Array, mask: jax.Array, train: bool = False):
        """Encode images, [b h w c]; mask: bool[b h/p w/p], True = masked."""
        p, batch = self.patch_size, len(images)
        patches = nn.Conv(
            self.width, (p, p), (p, p), kernel_init=INIT, dtype=self.dtype
        )(images)
        side = patches.shape[1]
        mask_token = self.param("mask_token", INIT, (1, 1, 1, self.width))
        patches = jnp.where(mask[..., None], mask_token.astype(self.dtype), patches)
        cls = self.param("cls_token", INIT, (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate(
            [
                jnp.broadcast_to(cls, (batch, 1, self.width)),
                patches.reshape(batch, side * side, self.width),
            ],
            axis=1,
        )
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.zeros,
            ((2 * side - 1) ** 2 + 3, self.heads),
        )
        bias = table[bias_index(side)].transpose(2, 0, 1)
        for rate in np.linspace(0, self.drop_path_rate, self.depth).tolist():
            x = Block(self.heads, rate, self.dtype)(x, bias, train)
        x = nn.LayerNorm(1e-6, dtype=self.dtype)(x)
        return Encoded(x[:, 1:].reshape(batch, side, side, self.width), x[:, 0])
