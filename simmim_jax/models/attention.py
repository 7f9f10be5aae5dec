"""Multi-head attention: queries, keys and values, and one function that joins them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.models.layers import Initializer
from simmim_jax.models.pallas_attention import fused_attention

# How attention is computed: by XLA anywhere, or by a kernel of our own on TPUs.
IMPLEMENTATIONS = ("xla", "pallas")


def chosen(module: nn.Module) -> str:
    """What computes the attention of an encoder: its field `attention`, checked.

    Parameters are initialised without a kernel, which any device can do.
    """
    if module.attention not in IMPLEMENTATIONS:
        raise ValueError(
            f"config.model.attention={module.attention!r}: expected one of "
            f"{IMPLEMENTATIONS}."
        )
    return "xla" if module.is_initializing() else module.attention


def attention(
    qkv: jax.Array,
    added: jax.Array | None,
    bias: jax.Array | None,
    mask: np.ndarray | None = None,
    *,
    batch: int,
    num_heads: int,
    tokens: int,
    implementation: str = "xla",
) -> jax.Array:
    """Softmax(q kᵀ + bias + mask) v, with q already scaled.

    qkv: float[b*rows 3*heads*d], queries, keys and values side by side, each
    head-major, before their bias `added`: float[3*heads*d] or None;
    tokens: the first n of the rows of a sample; the others are seen by no token;
    bias: float[heads n n], added to the logits of every sample, or None;
    mask: float[w n n], added to those of samples i, i + w, i + 2w, …, or None;
    returns: float[b*rows heads*d] in the type of qkv. The softmax is float32.
    ValueError where the implementation is not made for such sizes.
    """
    if implementation == "pallas":
        return fused_attention(
            qkv, added, bias, mask, batch=batch, num_heads=num_heads, tokens=tokens
        )
    if added is not None:
        qkv += added.astype(qkv.dtype)
    q, k, v = rearrange(
        qkv,
        "(b n) (three heads d) -> three b heads n d",
        b=batch,
        three=3,
        heads=num_heads,
    )
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias
    if mask is not None:
        windows = rearrange(logits, "(b w) heads q k -> b w heads q k", w=len(mask))
        logits = (windows + mask[:, None]).reshape(logits.shape)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, v)
    return rearrange(out, "b heads n d -> (b n) (heads d)")


def queries_keys_values(
    module: nn.Module,
    x: jax.Array,
    *,
    bias: str,
    kernel_init: Initializer,
    query_scale: float = 1.0,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array | None]:
    """The input of `attention`, and its bias; parameters of `module`.

    x: float[b*n d]; bias: "qkv", or "qv" for none on the keys (their bias shifts all
    logits of a query alike, which the softmax ignores), or ""; query_scale is folded
    into the weights; returns: dtype[b*n 3*d], float32[3*d] or None.
    """
    width = x.shape[-1]
    zeros = nn.initializers.zeros
    scale = jnp.ones(3 * width).at[:width].set(query_scale)
    kernel = module.param("qkv_kernel", kernel_init, (width, 3 * width))
    qkv = x.astype(dtype) @ (kernel * scale).astype(dtype)
    if not bias:
        return qkv, None
    if bias == "qkv":
        qkv_bias = module.param("qkv_bias", zeros, (3 * width,))
    else:
        q_bias = module.param("q_bias", zeros, (width,))
        v_bias = module.param("v_bias", zeros, (width,))
        qkv_bias = jnp.concatenate([q_bias, jnp.zeros(width), v_bias])
    return qkv, qkv_bias * scale
