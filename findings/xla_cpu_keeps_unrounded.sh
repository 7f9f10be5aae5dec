#!/usr/bin/env bash
# jaxlib 0.10.2, CPU: rounding what is kept for later saves no memory, since XLA keeps
# the float32 array and rounds it where it is read.
#
# Eight results of products, float32[2048, 1024] of 8 MiB each, are kept as bfloat16 until
# they are read elementwise, in reverse order, as the backward pass of a network does.
# Temporary memory is the same as if they were kept as float32, also with an
# optimization_barrier around the rounded array: conversions are fused into readers.
#
# Output seen on 2026-11-29:
#   float32              64 MiB
#   bfloat16             64 MiB
#   bfloat16, barrier    64 MiB
#   OK: kept as bfloat16, arrays take as much memory as in float32
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp


def temporary(dtype, barrier):
    """Return the temporary memory of the program [MiB]."""

    def program(x, w):
        kept = []
        for _ in range(8):
            product = x @ w
            rounded = product.astype(dtype)
            kept.append(jax.lax.optimization_barrier(rounded) if barrier else rounded)
            x = jnp.tanh(product)
        for rounded in reversed(kept):
            x = (x * rounded.astype(jnp.float32)) @ w
        return x

    x = jax.ShapeDtypeStruct((2048, 1024), jnp.float32)
    w = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    compiled = jax.jit(program).lower(x, w).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


ways = {
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "bfloat16, barrier": ("bfloat16", True),
}
found = {name: temporary(*way) for name, way in ways.items()}
for name, size in found.items():
    print(f"{name:<20}{size:>3.0f} MiB")
if len(set(found.values())) > 1:
    sys.exit("CHANGED: the rounded arrays take another amount of memory")
print("OK: kept as bfloat16, arrays take as much memory as in float32")
PYTHON
