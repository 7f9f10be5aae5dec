#!/usr/bin/env bash
# jaxlib 0.10.2, CPU: which product of bfloat16 matrices with a float32 result is fast,
# runs in float32 or does not run at all depends on which axes it contracts, and on a
# transpose of the result.
#
# On a CPU with AVX512-BF16 or AMX:
#   x @ w and g @ w.T    stay bfloat16 in the compiled program
#   x.T @ g              both operands are widened to float32 first; a transpose of x
#                        before the product, behind an optimization barrier or bitcasts
#                        too, is folded into it
#   two halves of x transposed and joined, then @ g: stays bfloat16
#   (x @ w).T            compiles; running it raises UNIMPLEMENTED, "Unsupported element
#                        type for DotThunk::Execute: BF16 x BF16 = F32", unless a barrier
#                        stands between product and transpose
# A CPU without them widens the first five.
#
# Output seen on 2026-11-29 (Intel Xeon with AMX, AVX512-BF16):
#   x @ w               bfloat16
#   g @ w.T             bfloat16
#   x.T @ g             float32
#   barrier(x.T) @ g    float32
#   joined halves @ g   bfloat16
#   (x @ w).T           UNIMPLEMENTED: Unsupported element type for DotThunk::Execute
#   barrier(x @ w).T    runs
#   OK
set -euo pipefail

if ! grep -q -e avx512_bf16 -e amx_bf16 /proc/cpuinfo; then
  echo "This CPU has neither AVX512-BF16 nor AMX: nothing to see here."
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re
import sys

import jax
import jax.numpy as jnp

x, w, g = (
    jnp.ones(shape, jnp.bfloat16) for shape in [(512, 256), (256, 384), (512, 384)]
)


def dot(a, b, axes):
    contracted = tuple((axis,) for axis in axes)
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), preferred_element_type=jnp.float32
    )


def joined(x):
    half = len(x) // 2
    return jnp.concatenate([x[:half].T, x[half:].T], axis=1)


barrier = jax.lax.optimization_barrier
ways = {
    "x @ w": (lambda x, w: dot(x, w, (1, 0)), (x, w), "bfloat16"),
    "g @ w.T": (lambda g, w: dot(g, w, (1, 1)), (g, w), "bfloat16"),
    "x.T @ g": (lambda x, g: dot(x, g, (0, 0)), (x, g), "float32"),
    "barrier(x.T) @ g": (lambda x, g: dot(barrier(x.T), g, (1, 0)), (x, g), "float32"),
    "joined halves @ g": (lambda x, g: dot(joined(x), g, (1, 0)), (x, g), "bfloat16"),
}
for name, (way, args, expected) in ways.items():
    text = jax.jit(way).lower(*args).compile().as_text()
    (operand,) = re.findall(r" dot\(%([\w.\-]+),", text)
    (kind,) = set(re.findall(rf"%{re.escape(operand)} = (\w+)\[", text))
    found = {"bf16": "bfloat16", "f32": "float32"}[kind]
    print(f"{name:19} {found}")
    if found != expected:
        sys.exit(f"changed: expected {expected}")
try:
    jax.jit(lambda x, w: dot(x, w, (1, 0)).T)(x, w).block_until_ready()
    sys.exit("changed: (x @ w).T runs")
except jax.errors.JaxRuntimeError as error:
    print(f"(x @ w).T           {str(error).rpartition(':')[0]}")
    if "Unsupported element type" not in str(error):
        sys.exit("changed: expected another error")
jax.jit(lambda x, w: barrier(dot(x, w, (1, 0))).T)(x, w).block_until_ready()
print("barrier(x @ w).T    runs")
print("OK")
PYTHON
