"""Sequence of an encoder's blocks: drop path, rematerialisation, loops over blocks."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.errors import UserError
from simmim_jax.models.layers import on_cpu

# What a block saves for its backward pass; the rest is recomputed.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    # Matrix products on [b*n, d], but not attention's, whose n x n logits are large.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def drop_path_scales(
    module: nn.Module, rate: float, depth: int, batch: int, train: bool
) -> jax.Array | None:
    """Return the stochastic-depth factors of both residual branches of each block.

    rate: drop rate of the last block; it increases linearly from 0. Draws from the rng
    stream `drop_path` of `module`.
    returns: float32[depth 2 batch], 0 for a dropped branch of a sample, else
    1 / (1 - rate of the block); None if nothing is dropped.
    """
    if not train or rate == 0:
        return None
    keep = 1 - np.linspace(0, rate, depth, dtype=np.float32)[:, None, None]
    key = module.make_rng("drop_path")
    return jax.random.bernoulli(key, keep, (depth, 2, batch)) / keep


def drop_path(branch: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Scale a branch, float[b*n d], by float32[b] of `drop_path_scales`."""
    if scale is None:
        return branch
    # Not as [b n d]: changing the layout is a copy on TPUs.
    rows = jnp.repeat(scale, len(branch) // len(scale))
    return (branch * rows[:, None]).astype(branch.dtype)


def run_blocks(
    blocks: Sequence[nn.Module],
    x: jax.Array,
    *args: Any,
    scales: jax.Array | None,
    remat: str,
    scan: bool,
    period: int = 1,
) -> jax.Array:
    """Apply all blocks to x in turn: block(x, *args, scale).

    scales: of `drop_path_scales`, one row per block. remat: "none" or a key of
    REMAT_POLICIES.
    scan: compile `period` blocks once and run them in a loop; block i and block
    i + period may differ in their parameters only. Parameters are stacked inside the
    program only, so checkpoints are those of unrolled blocks.
    Raises UserError for an unknown policy and for a loop without rematerialisation.
    """
    check(remat, scan)

    def run(block: nn.Module, x: jax.Array, scale: jax.Array | None) -> jax.Array:
        sows = block.is_mutable_collection("intermediates")
        if not on_cpu() or block.is_initializing() or sows:
            return block(x, *args, scale)
        arrays = {
            i: arg
            for i, arg in enumerate(args)
            if isinstance(arg, jax.Array) and jnp.issubdtype(arg.dtype, jnp.floating)
        }
        x, params, arrays = _in_order(x, block.variables["params"], arrays)
        ordered = [arrays.get(i, arg) for i, arg in enumerate(args)]
        # With its name, which profiles show.
        return block.clone(parent=None).apply({"params": params}, x, *ordered, scale)

    rounds = len(blocks) // period
    if scan and rounds > 1 and not blocks[0].is_initializing():
        in_loop = rounds * period
        x = _scan(blocks[:in_loop], x, args, scales, remat, period)
    else:
        in_loop = 0
    if remat != "none":
        run = nn.remat(run, policy=REMAT_POLICIES[remat])
    for i in range(in_loop, len(blocks)):
        x = run(blocks[i], x, None if scales is None else scales[i])
    return x


@jax.custom_vjp
def _in_order(x: jax.Array, *others: Any) -> tuple[Any, ...]:
    """Return all as they are. The gradient of x will come after those of the others.

    XLA for CPUs (jaxlib 0.10.2) leaves gradients of weights for last, and until then
    keeps what those of all blocks are made of. It does not drop `0 * done`, since
    `done` may not be finite; the gradient of x is then not finite either. Gradients of
    the others are computed even where that of x alone is wanted.
    """
    return x, *others


def _in_order_backward(_: None, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *others = gradients
    firsts = (leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(others))
    done = sum(firsts, jnp.float32(0))
    return x + (0 * done).astype(x.dtype), *others


_in_order.defvjp(lambda *args: (args, None), _in_order_backward)


def _scan(
    blocks: Sequence[nn.Module],
    x: jax.Array,
    args: tuple[Any, ...],
    scales: jax.Array | None,
    remat: str,
    period: int,
) -> jax.Array:
    params = [block.variables["params"] for block in blocks]
    # For each block of a period, its parameters of all rounds.
    stacked = [
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *params[i::period])
        for i in range(period)
    ]
    if scales is not None:
        scales = rearrange(scales[: len(blocks)], "(r p) two b -> r p two b", p=period)
    unbound = [block.clone(parent=None, name=None) for block in blocks[:period]]

    def run_period(x: jax.Array, xs: tuple[Any, Any]) -> tuple[jax.Array, None]:
        params, scales = xs
        for i, block in enumerate(unbound):
            scale = None if scales is None else scales[i]
            x = block.apply({"params": params[i]}, x, *args, scale)
        return x, None

    body: Callable[..., Any] = jax.checkpoint(
        run_period, policy=REMAT_POLICIES[remat], prevent_cse=False
    )
    return jax.lax.scan(body, x, (stacked, scales))[0]


def check(remat: str, scan: bool) -> None:
    """Raise UserError for an unknown policy or a loop without rematerialisation."""
    if remat != "none" and remat not in REMAT_POLICIES:
        raise UserError(
            f"config.model.remat={remat!r}: expected 'none' or one of "
            f"{sorted(REMAT_POLICIES)}."
        )
    if scan and remat == "none":
        raise UserError(
            "config.model.scan_layers=True with config.model.remat='none': a loop "
            "keeps everything that its blocks compute, several times the memory of "
            "unrolled blocks. Set config.model.remat to 'dots' or 'full'."
        )
