#!/bin/sh
# jax2onnx 0.17.1 leaves jnp.cumsum replaced after an export, by one that refuses an axis
# in second place.
#
# Importing it changes nothing. After one to_onnx, of a function that has no cumsum,
# jnp.cumsum(x, 1) is a TypeError in the whole process, which any later code meets;
# jnp.cumsum(x, axis=1) works. So name the axis.
#
# Output on 2026-11-29, Linux x86-64, CPU, Python 3.11:
#
#     jax2onnx 0.17.1, jax 0.10.2
#     after import: jnp.cumsum(x, 1) works
#     after to_onnx: TypeError: jnp.cumsum expects a single positional argument
#     after to_onnx: jnp.cumsum(x, axis=1) works
#
# Exits with 1 if this changes. Needs Python 3.11 or newer, and downloads about 200 MB.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip --quiet --disable-pip-version-check"
$pip install jax==0.10.2 flax==0.12.8 optax==0.2.8 orbax-checkpoint==0.12.8 \
  dm-pix==0.4.4 equinox==0.13.8 onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0
$pip install --no-deps jax2onnx==0.17.1

cd "$folder"
JAX_PLATFORMS=cpu venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import jax.numpy as jnp
import jax2onnx

print(", ".join(f"{name} {version(name)}" for name in ("jax2onnx", "jax")))
x = jnp.ones((2, 2))
jnp.cumsum(x, 1)
print("after import: jnp.cumsum(x, 1) works")
jax2onnx.to_onnx(lambda x: x + 1, inputs=[(2, 2)])
try:
    jnp.cumsum(x, 1)
    found = "works"
except TypeError as error:
    found = f"TypeError: {error}"
print(f"after to_onnx: {found}")
jnp.cumsum(x, axis=1)
print("after to_onnx: jnp.cumsum(x, axis=1) works")
sys.exit(found != "TypeError: jnp.cumsum expects a single positional argument")
PYTHON
