#!/bin/sh
# jax2onnx 0.17.1 excludes orbax-checkpoint 0.11.37 and newer, and works beside 0.12.8.
#
# Its metadata asks for orbax-checkpoint>=0.11.6,<0.11.37, so that pip refuses to install
# it beside a current Orbax. Installed without its requirements, it exports a Flax model
# with a batch of any size, and ONNX Runtime gives the same results.
#
# Output on 2026-11-29, Linux x86-64, CPU, Python 3.11:
#
#     together: refused
#     jax2onnx 0.17.1, orbax-checkpoint 0.12.8, jax 0.10.2, onnxruntime 1.32.0
#     batch 1: equal to 1e-5
#     batch 3: equal to 1e-5
#
# Exits with 1 if this changes. Needs Python 3.11 or newer, and downloads about 200 MB.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip --quiet --disable-pip-version-check"
if $pip install --dry-run jax2onnx==0.17.1 orbax-checkpoint==0.12.8 2>"$folder/log"; then
  echo "together: installed"
  exit 1
fi
grep -q "ResolutionImpossible\|conflicting" "$folder/log"
echo "together: refused"
$pip install jax==0.10.2 flax==0.12.8 optax==0.2.8 orbax-checkpoint==0.12.8 \
  dm-pix==0.4.4 equinox==0.13.8 onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0
$pip install --no-deps jax2onnx==0.17.1

cd "$folder"
JAX_PLATFORMS=cpu venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import flax.linen as nn
import jax
import jax2onnx
import numpy as np
import onnxruntime

names = ("jax2onnx", "orbax-checkpoint", "jax", "onnxruntime")
print(", ".join(f"{name} {version(name)}" for name in names))
model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.gelu, nn.Dense(3), nn.softmax])
params = model.init(jax.random.key(0), np.zeros((1, 5), np.float32))
apply = lambda x: model.apply(params, x)
proto = jax2onnx.to_onnx(apply, inputs=[("b", 5)], input_names=["x"])
session = onnxruntime.InferenceSession(
    proto.SerializeToString(), providers=["CPUExecutionProvider"]
)
for batch in (1, 3):
    x = np.random.default_rng(0).normal(size=(batch, 5)).astype(np.float32)
    (found,) = session.run(None, {"x": x})
    same = found.shape == (batch, 3) and np.abs(found - apply(x)).max() < 1e-5
    print(f"batch {batch}:", "equal to 1e-5" if same else "differs")
    if not same:
        sys.exit(1)
PYTHON
