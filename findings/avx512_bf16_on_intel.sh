#!/usr/bin/env bash
# An Intel CPU with AVX512-BF16 but no AMX, as virtual machines show it that hide AMX: its
# products of bfloat16 are slower than those of float32, in oneDNN (torch 2.14.1) and in
# XLA (jaxlib 0.10.2), though /proc/cpuinfo has avx512_bf16 and both libraries use it. An
# AMD EPYC with the same flag multiplies bfloat16 faster than float32.
#
# torch.autocast makes a ViT-B step 0.62 times as fast there as it is without.
#
# Output seen on 2026-11-30 (2 cores of an Intel Xeon, avx512_bf16 without amx_bf16):
#   torch  float32  284, bfloat16  152 GFLOP/s: 0.54
#   jax    float32  260, bfloat16  159 GFLOP/s: 0.62
#   OK: products of bfloat16 are slower than those of float32
set -euo pipefail

if ! grep -q GenuineIntel /proc/cpuinfo || ! grep -qw avx512_bf16 /proc/cpuinfo ||
  grep -qw amx_bf16 /proc/cpuinfo; then
  echo "needs an Intel CPU with avx512_bf16 and without amx_bf16" >&2
  exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import torch

M, K, N = 1576, 768, 3072  # ViT-B's MLP, 8 images


def rates(*products):
    """Return the rate [GFLOP/s] of each product in turns that they take."""
    turns = []
    for _ in range(40):
        turn = []
        for product in products:
            start = time.perf_counter()
            product()
            turn.append(2e-9 * M * K * N / (time.perf_counter() - start))
        turns.append(turn)
    return turns[10:]  # the first ones compile, and wake the threads


x, w = torch.randn(M, K), torch.randn(K, N)
x16, w16 = x.bfloat16(), w.bfloat16()
a, b = jnp.asarray(x.numpy()), jnp.asarray(w.numpy())
a16, b16 = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
dot = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
measured = {
    "torch": rates(lambda: x @ w, lambda: x16 @ w16),
    "jax": rates(
        lambda: dot(a, b).block_until_ready(), lambda: dot(a16, b16).block_until_ready()
    ),
}
for name, turns in measured.items():
    float32, bfloat16 = (statistics.median(column) for column in zip(*turns))
    ratio = statistics.median(half / full for full, half in turns)
    print(f"{name:6} float32 {float32:4.0f}, bfloat16 {bfloat16:4.0f} GFLOP/s: {ratio:.2f}")
    if ratio > 0.85:
        sys.exit(f"changed: {name}'s bfloat16 is no longer slower than float32")
print("OK: products of bfloat16 are slower than those of float32")
PYTHON
