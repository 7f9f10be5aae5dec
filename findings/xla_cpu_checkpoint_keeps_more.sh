#!/usr/bin/env bash
# jaxlib 0.10.2, CPU: jax.checkpoint around each of eight blocks, to recompute them in
# the backward pass, needs more memory than keeping everything.
#
# XLA's scheduler for CPUs orders operations for concurrency, and computes the blocks
# again before it needs them. The one that orders for memory is a compiler option. It,
# too, leaves gradients of weights for last, with all that they are made of. In a loop
# (jax.lax.scan) the memory is that of one block, as on other devices.
#
# Output seen on 2026-11-30 (temporary arrays of the gradient, planned by the compiler):
#   all kept            73.7 MB, ordered for memory 71.8 MB
#   checkpoint          88.6 MB, ordered for memory 38.3 MB
#   checkpoint, scan    16.0 MB, ordered for memory 16.5 MB
#   OK: checkpoint needs more than nothing, and twice as much as in a loop at best
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

ROWS, WIDTH, HIDDEN, DEPTH = 1024, 128, 512, 8
ORDERS = {}, {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def block(x, p):
    return x + jax.nn.gelu(x @ p["a"] + p["b"], approximate=False) @ p["c"]


def unrolled(block):
    def loss(params, x):
        for i in range(DEPTH):
            x = block(x, jax.tree.map(lambda leaf: leaf[i], params))
        return jnp.square(x).mean()

    return loss


def in_a_loop(block):
    def loss(params, x):
        x, _ = jax.lax.scan(lambda x, p: (block(x, p), None), x, params)
        return jnp.square(x).mean()

    return loss


shapes = {"a": (DEPTH, WIDTH, HIDDEN), "b": (DEPTH, HIDDEN), "c": (DEPTH, HIDDEN, WIDTH)}
params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
losses = {
    "all kept": unrolled(block),
    "checkpoint": unrolled(jax.checkpoint(block)),
    "checkpoint, scan": in_a_loop(jax.checkpoint(block)),
}
planned = {}
for name, loss in losses.items():
    lowered = jax.jit(jax.grad(loss)).lower(params, x)
    planned[name] = [
        lowered.compile(order).memory_analysis().temp_size_in_bytes / 1e6
        for order in ORDERS
    ]
    usual, for_memory = planned[name]
    print(f"{name:18} {usual:5.1f} MB, ordered for memory {for_memory:.1f} MB")
kept, again, loop = planned.values()
if again[0] < kept[0] or min(again) < 2 * min(loop):
    sys.exit("changed: checkpoint saves memory")
print("OK: checkpoint needs more than nothing, and twice as much as in a loop at best")
PYTHON
