#!/bin/sh
# jax.jit subtracts two constants as one, which gives back the rounding that the second
# one was to undo.
#
# A mean of 29000.00120 is 29000.00195 in float32. (x - 29000.00195) + 0.00075 is right
# to 1e-7 where x is near the mean, operation by operation. XLA adds the two constants
# first, in float32, where the second one vanishes. Dividing in between keeps them apart:
# (x - high) / std - low / std.
#
# Output on 2026-11-29, Linux x86-64, CPU, Python 3.11:
#
#     jax 0.10.2
#     (29001 - high) - low     0.99880 exactly
#     operation by operation   0.99880
#     jitted                   0.99805
#     jitted, / std between    0.99880
#
# Exits with 1 if this changes. Needs Python 3.11 or newer, and downloads about 100 MB.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

cd "$folder"
JAX_PLATFORMS=cpu venv/bin/python - <<'EOF'
import sys

import jax
import jax.numpy as jnp
import numpy as np

MEAN, STD = 29000.0012, np.float32(3.0)
high = np.float32(MEAN)
low = np.float32(MEAN - float(high))
x = jnp.float32(29001)


def difference(x):
    return (x - high) - low


def divided(x):
    return (x - high) / STD - low / STD


found = {
    "(29001 - high) - low": 29001 - MEAN,
    "operation by operation": float(difference(x)),
    "jitted": float(jax.jit(difference)(x)),
    "jitted, / std between": float(jax.jit(divided)(x) * STD),
}
print(f"jax {jax.__version__}")
for name, value in found.items():
    print(f"{name:<24} {value:.5f}" + " exactly" * name.startswith("("))
exact, stepwise, jitted, apart = found.values()
same = abs(stepwise - exact) < 1e-5 and abs(apart - exact) < 1e-5
sys.exit(not (same and abs(jitted - exact) > 5e-4))
EOF
