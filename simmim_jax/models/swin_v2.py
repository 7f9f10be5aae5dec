"""Swin Transformer V2 for SimMIM (official `SwinTransformerV2ForSimMIM`)."""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.errors import UserError
from simmim_jax.models.attention import attention, qkv_weights
from simmim_jax.models.layers import (
    Initializer,
    Linear,
    product,
    relative_offsets,
    truncated_normal,
)
from simmim_jax.models.swin import Swin
from simmim_jax.models.windows import bias_at

# Upper limit of the learned scale of cosine logits (official `logit_scale`).
MAX_LOGIT_SCALE = 100.0
# Hidden width of the position bias MLP, and the scale of its sigmoid.
POSITION_WIDTH, MAX_BIAS = 512, 16


def log_spaced_offsets(window: int, pretrained_window: int = 0) -> np.ndarray:
    """Return log-spaced offsets between the tokens of a window.

    returns: float32[(2*window-1)² 2]; ±1 is the edge of the window, or of the
    pre-training window (official `relative_coords_table`; Swin V2 eq. 4).
    """
    offsets = np.arange(1 - window, window) / max((pretrained_window or window) - 1, 1)
    offsets = np.sign(offsets) * np.log2(np.abs(8 * offsets) + 1) / 3
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    return np.stack([y.ravel(), x.ravel()], axis=1).astype(np.float32)


class CosineAttention(nn.Module):
    """Scaled cosine attention, with position biases from a small MLP."""

    num_heads: int
    qkv_bias: bool
    pretrained_window: int
    kernel_init: Initializer
    implementation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        window: int,
        mask: np.ndarray | None,
        places: np.ndarray | None = None,
    ) -> jax.Array:
        """Apply attention to x, float[b*w*n d], n = window²; mask: float[w n n].

        places: int[n], positions of the tokens in their windows, if x is in bands.
        """
        width = x.shape[-1]
        kernel, qkv_bias = qkv_weights(
            self,
            width,
            bias="qv" if self.qkv_bias else "",
            kernel_init=self.kernel_init,
        )
        qkv = product(x, kernel, self.dtype)
        if qkv_bias is not None:
            qkv += qkv_bias.astype(qkv.dtype)
        logit_scale = self.param(
            "logit_scale",
            nn.initializers.constant(math.log(10)),
            (self.num_heads, 1, 1),
        )
        scale = jnp.exp(jnp.minimum(logit_scale, math.log(MAX_LOGIT_SCALE)))
        q, k, v = rearrange(
            qkv, "n (three heads d) -> three n heads d", three=3, heads=self.num_heads
        )
        q, k = unit(q) * scale[:, :, 0], unit(k)
        qkv = jnp.stack([q.astype(v.dtype), k.astype(v.dtype), v], axis=1)
        qkv = rearrange(qkv, "n three heads d -> n (three heads d)")
        bias = self.position_bias(window)
        if places is not None:
            bias = bias_at(bias, places)
        x = attention(
            qkv,
            None,
            bias,
            mask,
            batch=x.shape[0] // bias.shape[1],
            num_heads=self.num_heads,
            tokens=bias.shape[1],
            implementation=self.implementation,
        )
        return Linear(width, self.kernel_init, dtype=self.dtype, name="proj")(x)

    def position_bias(self, window: int) -> jax.Array:
        """Return the bias, float32[heads n n] in 0..MAX_BIAS (official `cpb_mlp`)."""
        offsets = log_spaced_offsets(window, self.pretrained_window)
        hidden = nn.relu(
            Linear(POSITION_WIDTH, self.kernel_init, name="cpb_mlp_0")(offsets)
        )
        out = nn.Dense(
            self.num_heads,
            use_bias=False,
            kernel_init=self.kernel_init,
            name="cpb_mlp_2",
        )
        table = MAX_BIAS * nn.sigmoid(out(hidden))
        return rearrange(
            table[relative_offsets(window, window)], "q k heads -> heads q k"
        )


def unit(x: jax.Array) -> jax.Array:
    """Normalise x, float[... d], to length 1 along d, in float32."""
    x = x.astype(jnp.float32)
    # x / max(|x|, 1e-12), with a finite gradient at 0.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


class SwinV2(Swin):
    """Swin V2: norms after the branches, cosine attention, continuous position bias.

    pretrained_window_sizes: window per stage that the position bias was trained with; 0
    or (): the current one.
    """

    window_size: int = 12
    pretrained_window_sizes: tuple[int, ...] = ()

    post_norm: ClassVar[bool] = True

    def window_attention(
        self, stage: int, implementation: str
    ) -> Callable[..., nn.Module]:
        """Return a constructor of the attention of a stage's blocks."""
        windows = self.pretrained_window_sizes or (0,) * len(self.depths)
        if len(windows) != len(self.depths):
            raise UserError(
                f"config.model.pretrained_window_sizes={windows} and "
                f"config.model.depths={self.depths}: expected one value per stage in "
                "both, or ()."
            )
        return functools.partial(
            CosineAttention,
            num_heads=self.num_heads[stage],
            qkv_bias=self.qkv_bias,
            pretrained_window=windows[stage],
            kernel_init=truncated_normal(self.init_std),
            implementation=implementation,
            dtype=self.dtype,
        )
