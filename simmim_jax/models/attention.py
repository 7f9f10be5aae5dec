"""Multi-head attention: query, key and value weights, and the attention itself."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.errors import UserError
from simmim_jax.models.layers import Initializer, on_cpu, on_tpu, product
from simmim_jax.models.pallas_attention import fused_attention

# XLA runs everywhere; "pallas" is our own kernel for TPUs.
IMPLEMENTATIONS = ("xla", "pallas")


def chosen(module: nn.Module) -> str:
    """Return the validated `attention` field of an encoder.

    Parameters are initialised with "xla", which runs on any device.
    """
    if module.attention not in IMPLEMENTATIONS:
        raise UserError(
            f"config.model.attention={module.attention!r}: expected one of "
            f"{IMPLEMENTATIONS}."
        )
    return "xla" if module.is_initializing() else module.attention


def attention(
    qkv: jax.Array,
    qkv_bias: jax.Array | None,
    bias: jax.Array | None,
    mask: np.ndarray | jax.Array | None = None,
    *,
    batch: int,
    num_heads: int,
    tokens: int,
    implementation: str = "xla",
) -> jax.Array:
    """Return softmax(q kᵀ + bias + mask) v; q is already scaled.

    qkv: float[b*rows 3*heads*d], queries, keys and values side by side, each
    head-major; qkv_bias: float[3*heads*d], still to be added to them, or None;
    tokens: number n of tokens of a sample, its first rows; the other rows are padding;
    bias: float[heads n n], added to the logits of every sample, or None;
    mask: float[w n n] or, but with "pallas", float[w 1 n], mask[i] added to those of
    samples i, i + w, i + 2w, …, or None;
    returns: float[b*rows heads*d] in the dtype of qkv. The softmax is float32.
    Raises UserError if the implementation does not support such sizes.
    """
    if implementation == "pallas":
        if isinstance(mask, jax.Array):
            raise UserError(
                "config.model.attention='pallas' has no mask of padding: expected "
                "'xla' for examples of different lengths."
            )
        return fused_attention(
            qkv, qkv_bias, bias, mask, batch=batch, num_heads=num_heads, tokens=tokens
        )
    if qkv_bias is not None:
        qkv += qkv_bias.astype(qkv.dtype)
    q, k, v = _split(qkv, batch, num_heads)
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = _softmax(_biased(logits, bias, mask)).astype(v.dtype)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, v)
    return rearrange(out, "b heads n d -> (b n) (heads d)")


def mean_weights(
    x: jax.Array,
    kernel: jax.Array,
    qkv_bias: jax.Array | None,
    bias: jax.Array | None,
    mask: np.ndarray | jax.Array | None = None,
    *,
    batch: int,
    num_heads: int,
) -> jax.Array:
    """Return the weights of `self_attention`, the mean over heads, float32[b n n].

    A row is a token that attends, and sums to 1. Other arguments as there; there is no
    padding.
    """
    qkv = x @ kernel
    if qkv_bias is not None:
        qkv += qkv_bias.astype(qkv.dtype)
    q, k, _ = rearrange(
        qkv, "(b n) (three h d) -> three b h n d", b=batch, three=3, h=num_heads
    )
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(_biased(logits, bias, mask)).mean(1)


def _softmax(logits: jax.Array) -> jax.Array:
    """Return the softmax of float32[b heads n n] over the last axis."""
    if _is_small(logits) or not on_cpu():
        return jax.nn.softmax(logits)
    return _kept_softmax(logits)


def _is_small(logits: jax.Array) -> bool:
    """Whether there are many small samples, where memory is not scarce.

    Exports, for any number of samples, count as such.
    """
    samples = logits.shape[0]
    return not isinstance(samples, int) or (samples >= 64 and logits.size < 2**20)


@jax.custom_vjp
def _kept_softmax(logits: jax.Array) -> jax.Array:
    """Return the softmax, which alone is kept for the gradient.

    As an exponential, which XLA for CPUs computes once. The usual quotient it computes
    again from exponentials and sums, and keeps these as well.
    """
    shifted = logits - logits.max(-1, keepdims=True)
    return jnp.exp(shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True)))


def _kept_softmax_forward(logits):
    weights = _kept_softmax(logits)
    return weights, weights


def _kept_softmax_backward(weights, gradient):
    inner = weights * gradient
    return (inner - weights * inner.sum(-1, keepdims=True),)


_kept_softmax.defvjp(_kept_softmax_forward, _kept_softmax_backward)


def _biased(logits, bias, mask):
    if bias is not None:
        logits = _add_bias(logits, bias)
    if mask is not None:
        windows = rearrange(logits, "(b w) heads q k -> b w heads q k", w=len(mask))
        # blocks.py passes it where gradients are taken; it needs none.
        mask = jax.lax.stop_gradient(mask)
        logits = (windows + mask[:, None]).reshape(logits.shape)
    return logits


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _split(qkv: jax.Array, batch: int, num_heads: int) -> tuple[jax.Array, ...]:
    """Split float[b*n 3*heads*d] into queries, keys and values, float[b heads n d].

    Autodiff would pad the gradient of each with zeros and add the three.
    """
    parts = rearrange(
        qkv,
        "(b n) (three heads d) -> three b heads n d",
        b=batch,
        three=3,
        heads=num_heads,
    )
    return tuple(parts)


def _split_forward(qkv, batch, num_heads):
    return _split(qkv, batch, num_heads), None


def _split_backward(batch, num_heads, _, gradients):
    rows = [rearrange(g, "b heads n d -> (b n) (heads d)") for g in gradients]
    return (jnp.concatenate(rows, axis=1),)


_split.defvjp(_split_forward, _split_backward)


@jax.custom_vjp
def _add_bias(logits: jax.Array, bias: jax.Array) -> jax.Array:
    """Add float32[heads n n] to float32[b heads n n].

    The gradient sums over samples as a product with ones. Where jaxlib 0.10 has a
    reduction over a short leading axis, CPUs take 50 times as long: 67 ms for 15 MB, a
    fifth of a ViT-B step of eight images.
    """
    return logits + bias


def _add_bias_forward(logits, bias):
    return logits + bias, None


def _add_bias_backward(_, gradient):
    if _is_small(gradient):
        return gradient, gradient.sum(0)
    ones = jnp.ones(len(gradient), gradient.dtype)
    exact = jax.lax.Precision.HIGHEST
    return gradient, jnp.tensordot(ones, gradient, 1, precision=exact)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def qkv_weights(
    module: nn.Module,
    width: int,
    *,
    bias: str,
    kernel_init: Initializer,
    query_scale: float = 1.0,
) -> tuple[jax.Array, jax.Array | None]:
    """Return kernel and bias of queries, keys and values, parameters of `module`.

    bias: "qkv", "qv" without keys (a key bias shifts all logits of a query equally,
    which the softmax ignores), or ""; query_scale is folded into kernel and bias;
    returns: float32[d 3*d], and float32[3*d] or None, for a width d.
    """
    zeros = nn.initializers.zeros
    scale = jnp.ones(3 * width).at[:width].set(query_scale)
    kernel = module.param("qkv_kernel", kernel_init, (width, 3 * width))
    kernel = kernel * scale
    if not bias:
        return kernel, None
    if bias == "qkv":
        qkv_bias = module.param("qkv_bias", zeros, (3 * width,))
    else:
        q_bias = module.param("q_bias", zeros, (width,))
        v_bias = module.param("v_bias", zeros, (width,))
        qkv_bias = jnp.concatenate([q_bias, jnp.zeros(width), v_bias])
    return kernel, qkv_bias * scale


def self_attention(
    x: jax.Array,
    kernel: jax.Array,
    qkv_bias: jax.Array | None,
    bias: jax.Array | None,
    mask: np.ndarray | jax.Array | None = None,
    *,
    batch: int,
    num_heads: int,
    tokens: int,
    implementation: str,
    dtype: jnp.dtype,
) -> jax.Array:
    """Return `attention` of `product(x, kernel, dtype)`.

    x: float[b*rows c]; kernel: float32[c 3*heads*d].
    """
    if implementation == "pallas" or not on_tpu():
        return attention(
            product(x, kernel, dtype),
            qkv_bias,
            bias,
            mask,
            batch=batch,
            num_heads=num_heads,
            tokens=tokens,
            implementation=implementation,
        )
    # Project straight into the layout of attention's products: from [b*n 3*d] it takes
    # several copies. A CPU is as fast with the copies, and faster at one large product.
    x = rearrange(x.astype(dtype), "(b n) c -> b n c", b=batch)
    parts = rearrange(
        kernel.astype(dtype),
        "c (three heads d) -> three c heads d",
        three=3,
        heads=num_heads,
    )
    q, k, v = (jnp.einsum("bnc,chd->bhdn", x, part) for part in parts)
    if qkv_bias is not None:
        qkv_bias = rearrange(
            qkv_bias.astype(x.dtype),
            "(three heads d) -> three heads d 1",
            three=3,
            heads=num_heads,
        )
        q, k, v = q + qkv_bias[0], k + qkv_bias[1], v + qkv_bias[2]
    out = _softmax_product(q, k, v, bias, mask)
    return rearrange(out, "b heads d n -> (b n) (heads d)")


@jax.custom_vjp
def _softmax_product(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
) -> jax.Array:
    """Attention in the layout [b heads d n].

    Autodiff would pass over the n x n weights three more times: to divide them by their
    sums, and for the sums in the softmax's gradient. Here the exponentials stay
    unnormalised, and per-row factors apply to the outputs and their gradients.
    """
    return _softmax_product_forward(q, k, v, bias, mask)[0]


def _softmax_product_forward(q, k, v, bias, mask):
    logits = _logits(q, k, bias, mask)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    total, weights = weights.sum(-1)[:, :, None], weights.astype(v.dtype)
    out = jnp.einsum("bhqk,bhdk->bhdq", weights, v, preferred_element_type=jnp.float32)
    out = (out / total).astype(v.dtype)
    return out, (q, k, v, bias, mask, weights, total, out)


def _softmax_product_backward(residuals, dout):
    q, k, v, bias, _, weights, total, out = residuals
    wide = dout.astype(jnp.float32) / total
    inner = (wide * out).sum(2)
    dout = wide.astype(q.dtype)
    dweights = jnp.einsum(
        "bhdq,bhdk->bhqk", dout, v, preferred_element_type=jnp.float32
    )
    dlogits = weights * (dweights - inner[..., None])
    dbias = None if bias is None else dlogits.sum(0)
    dlogits = dlogits.astype(q.dtype)
    return (
        jnp.einsum("bhqk,bhdk->bhdq", dlogits, k),
        jnp.einsum("bhqk,bhdq->bhdk", dlogits, q),
        jnp.einsum("bhqk,bhdq->bhdk", weights, dout),
        dbias,
        None,
    )


_softmax_product.defvjp(_softmax_product_forward, _softmax_product_backward)


def _logits(q, k, bias, mask):
    """Return logits, float32[b heads n n], of q and k, float[b heads d n]."""
    logits = jnp.einsum("bhdq,bhdk->bhqk", q, k, preferred_element_type=jnp.float32)
    return _biased(logits, bias, mask)
