"""Multi-head attention as one function: the place where a fused kernel can go."""

import jax
import jax.numpy as jnp
from einops import rearrange


def attention(
    qkv: jax.Array, bias: jax.Array | None, *, batch: int, num_heads: int
) -> jax.Array:
    """Softmax(q kᵀ + bias) v, with q already scaled.

    qkv: float[b*n 3*heads*d], queries, keys and values side by side, each head-major;
    bias: float[heads n n], added to the logits of every sample, or None;
    returns: float[b*n heads*d] in the type of qkv. The softmax is float32.
    """
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
    weights = jax.nn.softmax(logits).astype(v.dtype)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, v)
    return rearrange(out, "b heads n d -> (b n) (heads d)")
