#!/usr/bin/env bash
# jaxlib 0.10.2, CPU: a sum over a short leading axis takes tens of times as long as
# adding the slices, since XLA hands it to a kernel that is made for long axes.
#
# x is float32[8, 12, 197, 197], 15 MB: the gradient of an attention bias that a batch
# shares. x.sum(0) becomes a custom fusion ("__ynn_fusion"); x[0] + ... + x[7] and
# ones @ x are compiled as other code. Twelve such sums that are added, as in a ViT-B,
# are one fusion that keeps all twelve operands, 180 MB, until the last is there.
#
# Output seen on 2026-11-29 (2 cores of an Intel Xeon with AMX; rates differ between machines):
#   sum(0)             66.7 ms, ynn_fusion
#   slices added        0.6 ms
#   ones @ x            1.3 ms
#   OK: the sum takes over 10 times as long as adding slices, with equal results
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12, 197, 197)), jnp.float32)
ways = {
    "sum(0)": lambda x: x.sum(0),
    "slices added": lambda x: sum(x[i] for i in range(8)),
    "ones @ x": lambda x: jnp.tensordot(jnp.ones(8), x, 1),
}
times, results = {}, {}
for name, way in ways.items():
    program = jax.jit(way).lower(x).compile()
    results[name] = np.asarray(program(x))
    turns = []
    for _ in range(9):
        start = time.perf_counter()
        program(x).block_until_ready()
        turns.append(1e3 * (time.perf_counter() - start))
    times[name] = statistics.median(turns)
    fused = ", ynn_fusion" if "ynn_fusion" in program.as_text() else ""
    print(f"{name:16} {times[name]:6.1f} ms{fused}")
for other in results.values():
    np.testing.assert_allclose(results["sum(0)"], other, atol=1e-5)
if times["sum(0)"] < 10 * times["slices added"]:
    sys.exit("changed: the sum is no longer slow")
print("OK: the sum takes over 10 times as long as adding slices, with equal results")
PYTHON
