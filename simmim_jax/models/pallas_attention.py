"""Fused attention of up to 256 tokens with a learned bias: TPU kernels, with gradient.

XLA sends the scores of every head through HBM and copies between layouts, because a
head is only 32 or 64 wide. Here one program of a kernel holds a few samples (an image,
or several windows) and computes scores, bias, softmax and values.

Layout. A sample comes as the projection leaves it, [n 3*width]: queries, keys, values,
each head-major. The kernel takes 128 columns of each at a time: two heads of 64 or four
of 32, side by side on the 128 lanes. Lanes are never split: the scores of one head are
a product over all 128 lanes with the keys of the other heads set to zero. This costs
nothing, since a product over fewer lanes takes as long.

Scores are transposed, [keys queries]. The softmax then reduces over rows, which adds
whole registers, and only narrow matrices, [n 128], are ever transposed. The backward
kernel recomputes the scores and the softmax from the saved log-sum-exp. In the same
pass it accumulates, over all samples, the gradients of the bias on the scores and of
the projection's bias, which would otherwise take passes over large arrays.

Several small windows share a sample and are masked from each other. Tokens are padded
to a multiple of 8: padded keys have no weight, and the output of padded queries is
dropped.

The kernels are tested against float32 in interpret mode and compiled by the TPU
compiler; they have not run on a TPU yet.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from simmim_jax.errors import UserError
from simmim_jax.models.layers import on_tpu

LANES, SUBLANES = 128, 8
MAX_TOKENS = 256
# Logit of a key that a query must not attend to.
HIDDEN_LOGIT = -1e30
# Rows of qkv per program: at most this many, unless one sample has more.
PROGRAM_ROWS = 256
VMEM_BYTES = 64 * 2**20
# Suffix of the kernel's name if samples are of several kinds, a separate program.
_KINDS = "_kinds"


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Static sizes of the computation that array shapes do not imply."""

    heads: int
    width: int  # of all heads
    tokens: int  # in a window or image, without padding
    rows: int  # of qkv in a window or image: tokens and padding


def fused_attention(
    qkv: jax.Array,
    qkv_bias: jax.Array | None,
    bias: jax.Array | None,
    mask: np.ndarray | None = None,
    *,
    batch: int,
    num_heads: int,
    tokens: int,
) -> jax.Array:
    """Return `attention.attention`, computed by these kernels on a TPU.

    Under `jax.set_mesh` every device processes its shard of the batch. Raises UserError
    for more than 256 tokens, heads wider than 128, and devices other than TPUs.
    """
    width = qkv.shape[1] // 3 // num_heads
    if not on_tpu():
        raise UserError(
            'config.model.attention="pallas" is a kernel for TPUs, but the backend is '
            f'{jax.default_backend()}: set it to "xla".'
        )
    if tokens > MAX_TOKENS:
        raise UserError(
            f'config.model.attention="pallas" with {tokens} tokens: expected at most '
            f'{MAX_TOKENS}. Set it to "xla", or use larger patches, smaller images or '
            "smaller windows."
        )
    if width > LANES:
        raise UserError(
            f'config.model.attention="pallas" with heads of width {width}: expected at '
            f'most {LANES}. Set it to "xla", or raise config.model.num_heads.'
        )
    sizes = _Sizes(num_heads, qkv.shape[1] // 3, tokens, len(qkv) // batch)
    return _attention(sizes, qkv, qkv_bias, bias, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(sizes, qkv, qkv_bias, bias, mask):
    return _attention_forward(sizes, qkv, qkv_bias, bias, mask)[0]


def _attention_forward(sizes, qkv, qkv_bias, bias, mask):
    if qkv_bias is not None:
        qkv = qkv + qkv_bias.astype(qkv.dtype)
    axes = _batch_axes(len(qkv) // sizes.rows, mask)
    run = _on_each_device(
        functools.partial(_forward_on_device, sizes),
        in_specs=(jax.P(axes), jax.P(), jax.P()),
        out_specs=(jax.P(axes), jax.P(axes)),
    )
    out, lse = run(qkv, bias, mask)
    return out, (qkv, qkv_bias, bias, mask, lse)


def _attention_backward(sizes, residuals, dout):
    qkv, qkv_bias, bias, mask, lse = residuals
    axes = _batch_axes(len(qkv) // sizes.rows, mask)

    def summed(*args):
        dqkv, *sums = _backward_on_device(sizes, *args)
        return dqkv, *(jax.lax.psum(s, axes) if axes else s for s in sums)

    run = _on_each_device(
        summed,
        in_specs=(jax.P(axes), jax.P(), jax.P(), jax.P(axes), jax.P(axes)),
        out_specs=(jax.P(axes), jax.P(), jax.P()),
    )
    dqkv, dqkv_bias, dbias = run(qkv, bias, mask, lse, dout)
    dqkv_bias = None if qkv_bias is None else dqkv_bias.astype(qkv_bias.dtype)
    dbias = None if bias is None else dbias.astype(bias.dtype)
    return dqkv, dqkv_bias, dbias, None


_attention.defvjp(_attention_forward, _attention_backward)


def _batch_axes(batch: int, mask: np.ndarray | None) -> tuple[str, ...]:
    """Return the mesh axes that shard the batch; none if it does not divide.

    Every device starts with the first mask, so its shard must consist of whole images.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = mesh.size * (1 if mask is None else len(mask))
    return mesh.axis_names if mesh.size > 1 and batch % parts == 0 else ()


def _on_each_device(function, **specs):
    if jax.sharding.get_abstract_mesh().size <= 1:
        return function
    return jax.shard_map(function, check_vma=False, **specs)


# ---- On one device -------------------------------------------------------------------


def _forward_on_device(sizes, qkv, bias, mask):
    layout = _layout(sizes, qkv, mask)
    qkv, width = _to_samples(layout, qkv, 3), layout.width
    tables = _tables(layout, bias, mask)
    count, rows, _ = qkv.shape
    block = _divisor(count, PROGRAM_ROWS // rows)
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, layout.head_width),
        grid=(count // block,),
        in_specs=[
            pl.BlockSpec((block, rows, 3 * width), lambda i: (i, 0, 0)),
            *(pl.BlockSpec(x.shape, lambda i: (0, 0, 0)) for x in tables),
        ],
        out_specs=[
            pl.BlockSpec((block, rows, width), lambda i: (i, 0, 0)),
            pl.BlockSpec((block, layout.heads, rows), lambda i: (i, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((count, rows, width), qkv.dtype),
            jax.ShapeDtypeStruct((count, layout.heads, rows), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_BYTES
        ),
        name="attention_forward" + _KINDS * (len(tables) == 2),
    )(qkv, *tables)
    return _from_samples(layout, out, 1), lse


def _backward_on_device(sizes, qkv, bias, mask, lse, dout):
    layout = _layout(sizes, qkv, mask)
    qkv, dout = _to_samples(layout, qkv, 3), _to_samples(layout, dout, 1)
    tables = _tables(layout, bias, mask)
    count, rows, width = dout.shape
    block = _divisor(count, PROGRAM_ROWS // rows)
    programs = count // block
    # Two partial sums, in parallel on a chip with two cores.
    cores = 2 - programs % 2
    steps = programs // cores

    def batched(x):
        return pl.BlockSpec((block, *x.shape[1:]), lambda c, i: (c * steps + i, 0, 0))

    def fixed(x):
        return pl.BlockSpec(x.shape, lambda c, i: (0, 0, 0))

    heads = layout.heads
    dqkv, dqkv_bias, dtable = pl.pallas_call(
        functools.partial(_backward_kernel, layout.head_width),
        grid=(cores, steps),
        in_specs=[batched(qkv), batched(lse), batched(dout), *map(fixed, tables)],
        out_specs=[
            batched(qkv),
            pl.BlockSpec((1, 1, 3 * width), lambda c, i: (c, 0, 0)),
            pl.BlockSpec((1, heads, rows, rows), lambda c, i: (c, 0, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
            jax.ShapeDtypeStruct((cores, 1, 3 * width), jnp.float32),
            jax.ShapeDtypeStruct((cores, heads, rows, rows), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        name="attention_backward" + _KINDS * (len(tables) == 2),
    )(qkv, lse, dout, *tables)
    dqkv_bias = rearrange(dqkv_bias, "core one c -> (core one) c")
    return (
        _from_samples(layout, dqkv, 3),
        _without_padding(layout, dqkv_bias, 3).sum(0),
        _bias_gradient(layout, dtable.sum(0)),
    )


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Samples as the kernels see them: groups of windows with padded rows and heads."""

    sizes: _Sizes
    head_width: int  # a divisor of 128
    heads: int  # a multiple of the heads per 128 lanes
    windows: int  # in a sample
    rows: int  # of a window

    @property
    def width(self) -> int:
        return self.heads * self.head_width


def _layout(sizes, qkv, mask):
    """Return the largest unpadded samples of up to 128 rows, or else padded ones."""
    head_width = sizes.width // sizes.heads
    # Rounded up to a divisor of the lanes.
    head_width = 2 ** (head_width - 1).bit_length()
    heads = _round_up(sizes.heads, LANES // head_width)
    count, masks = len(qkv) // sizes.rows, 1 if mask is None else len(mask)
    for rows in (sizes.rows, _round_up(sizes.rows, SUBLANES)):
        for windows in range(max(LANES // rows, 1), 0, -1):
            divides = count % windows == 0 and (masks == 1 or masks % windows == 0)
            if divides and windows * rows % SUBLANES == 0:
                return _Layout(sizes, head_width, heads, windows, rows)
    raise AssertionError("padded rows always fit")


def _to_samples(layout, x, parts):
    """Group and pad: float[b*rows parts*c] -> float[samples windows*rows parts*c]."""
    sizes = layout.sizes
    x = rearrange(x, "(b n) (p h c) -> b n p h c", n=sizes.rows, p=parts, h=sizes.heads)
    rows, heads = layout.rows - sizes.rows, layout.heads - sizes.heads
    columns = layout.head_width - x.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, rows), (0, 0), (0, heads), (0, columns)))
    return rearrange(x, "(b w) n p h c -> b (w n) (p h c)", w=layout.windows)


def _from_samples(layout, x, parts):
    """Invert `_to_samples`."""
    x = rearrange(x, "b (w n) c -> (b w) n c", w=layout.windows)
    x = rearrange(x[:, : layout.sizes.rows], "b n c -> (b n) c")
    return _without_padding(layout, x, parts)


def _without_padding(layout, x, parts):
    """Drop the padding of heads, and padding heads, from float[n parts*c]."""
    sizes = layout.sizes
    x = rearrange(x, "n (p h c) -> n p h c", p=parts, h=layout.heads)
    x = x[:, :, : sizes.heads, : sizes.width // sizes.heads]
    return rearrange(x, "n p h c -> n (p h c)")


def _tables(layout, bias, mask):
    """Return what is added to the scores, per head and per kind of sample.

    returns: float32[heads k q] and, if there are several kinds, float32[kinds k q].
    """
    sizes, windows, rows = layout.sizes, layout.windows, layout.rows
    pad = rows - sizes.tokens
    if bias is None:
        table = jnp.zeros((layout.heads, rows, rows))
    else:
        table = rearrange(bias.astype(jnp.float32), "heads q k -> heads k q")
        table = jnp.pad(table, ((0, layout.heads - sizes.heads), (0, pad), (0, pad)))
    same = np.eye(windows, dtype=np.float32)
    table = jnp.einsum("hkq,vw->hvkwq", table, same).reshape(
        layout.heads, windows * rows, windows * rows
    )
    if mask is None:
        mask = jnp.zeros((windows, sizes.tokens, sizes.tokens))
    mask = jnp.tile(mask, (math.lcm(len(mask), windows) // len(mask), 1, 1))
    kinds = rearrange(mask, "(kinds w) q k -> kinds w k q", w=windows)
    kinds = jnp.pad(kinds, ((0, 0), (0, 0), (0, pad), (0, pad)))
    visible = (
        np.einsum("vw,k->vkw", same, np.arange(rows) < sizes.tokens)[..., None] > 0
    )
    masks = jnp.where(visible, kinds[:, :, :, None], HIDDEN_LOGIT)
    masks = rearrange(masks, "kinds v k w q -> kinds (v k) (w q)")
    return (table + masks,) if len(masks) == 1 else (table, masks)


def _bias_gradient(layout, dtable):
    """Return the gradient of the bias from that of `_tables`."""
    sizes, windows = layout.sizes, layout.windows
    blocks = rearrange(dtable, "h (v k) (w q) -> v w h q k", v=windows, w=windows)
    total = sum(blocks[w, w] for w in range(windows))
    return total[: sizes.heads, : sizes.tokens, : sizes.tokens]


def padding(tokens: int) -> int:
    """Return the rows that pad a sample so that kernels can take it without a copy."""
    return -tokens % SUBLANES


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of `number` up to `at_most`, at least 1."""
    return max(d for d in range(1, max(at_most, 1) + 1) if number % d == 0)


# ---- The kernels ---------------------------------------------------------------------


def _dot(a, b, over):
    dims = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _select_head(x, head, head_width):
    """Zero the lanes of other heads in x, [n 128]."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    own = (lane >= head * head_width) & (lane < (head + 1) * head_width)
    return jnp.where(own, x, jnp.zeros_like(x))


def _for_each_sample(block, body):
    if block == 1:
        body(0)
    else:
        jax.lax.fori_loop(0, block, lambda i, _: body(i), None)


def _columns(sample, group, width):
    """Return the indices of queries, keys and values of a sample and group of heads."""
    starts = (p * width + group * LANES for p in range(3))
    return [(sample, slice(None), pl.ds(start, LANES)) for start in starts]


def _scores(q, k, table, masks):
    """Return the scores of one head and sample, [keys queries]."""
    s = _dot(k, q, (1, 1)) + table
    return s + masks[0][...] if masks else s


def _kind_mask(mask_ref, index):
    """Return the mask of a sample's kind: a list of one array or none."""
    return [ref.at[jax.lax.rem(index, len(ref))] for ref in mask_ref]


def _forward_kernel(head_width, qkv_ref, table_ref, *refs):
    *mask_ref, out_ref, lse_ref = refs
    block, _, width = out_ref.shape
    start = pl.program_id(0) * block
    heads_per_group = LANES // head_width

    def sample(i):
        masks = _kind_mask(mask_ref, start + i)
        # Unrolled, so that the compiler overlaps several heads.
        for g in range(width // LANES):
            q, k, v = (qkv_ref[at] for at in _columns(i, g, width))
            values, outs = v.T, []
            for h in range(heads_per_group):
                head = g * heads_per_group + h
                s = _scores(q, _select_head(k, h, head_width), table_ref[head], masks)
                top = s.max(0, keepdims=True)
                e = jnp.exp(s - top)
                total = e.sum(0, keepdims=True)
                lse_ref[i, pl.ds(head, 1), :] = top + jnp.log(total)
                value = values[h * head_width : (h + 1) * head_width]
                outs.append(_dot(value, e.astype(v.dtype), (1, 0)) * (1 / total))
            out = jnp.concatenate(outs, 0).T
            out_ref[_columns(i, g, width)[0]] = out.astype(out_ref.dtype)

    _for_each_sample(block, sample)


def _backward_kernel(head_width, qkv_ref, lse_ref, dout_ref, table_ref, *refs):
    *mask_ref, dqkv_ref, dqkv_bias_ref, dtable_ref = refs
    block, _, width = dout_ref.shape
    step = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)
    heads_per_group = LANES // head_width

    @pl.when(pl.program_id(1) == 0)
    def start_sums():
        dqkv_bias_ref[...] = jnp.zeros_like(dqkv_bias_ref)
        dtable_ref[...] = jnp.zeros_like(dtable_ref)

    def sample(i):
        masks = _kind_mask(mask_ref, step * block + i)
        # Unrolled, so that the compiler overlaps several heads.
        for g in range(width // LANES):
            columns = _columns(i, g, width)
            q, k, v = (qkv_ref[at] for at in columns)
            dout = dout_ref[columns[0]]
            keys, dqs = k.T, []
            dk: Any = 0.0
            dv: Any = 0.0
            for h in range(heads_per_group):
                head = g * heads_per_group + h
                s = _scores(q, _select_head(k, h, head_width), table_ref[head], masks)
                p = jnp.exp(s - lse_ref[i, pl.ds(head, 1), :])
                dp = _dot(_select_head(v, h, head_width), dout, (1, 1))
                ds = p * dp
                ds -= p * ds.sum(0, keepdims=True)
                dtable_ref[0, head] += ds
                p, ds = p.astype(q.dtype), ds.astype(q.dtype)
                dv += _select_head(_dot(p, dout, (1, 0)), h, head_width)
                dk += _select_head(_dot(ds, q, (1, 0)), h, head_width)
                key = keys[h * head_width : (h + 1) * head_width]
                dqs.append(_dot(key, ds, (1, 0)))
            dq = jnp.concatenate(dqs, 0).T
            for at, d in zip(columns, (dq, dk, dv), strict=True):
                dqkv_ref[at] = d.astype(dqkv_ref.dtype)
                dqkv_bias_ref[0, :, at[2]] += d.sum(0, keepdims=True)

    _for_each_sample(block, sample)
