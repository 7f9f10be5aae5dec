#!/bin/sh
# The gradient of optax.ctc_loss is wrong for long sequences in float32, the loss is not.
#
# It is made of sums of log-probabilities over all frames, tens of thousands at 20,000
# frames, whose digits after the point float32 does not hold. Each element of a right
# gradient by the logits is between -1 and 1. The loss itself is right to five digits, so
# that nothing tells. With jax_enable_x64 and float64 logits the gradient is right.
#
# Output on 2026-11-29, Linux x86-64, CPU, Python 3.11, for random logits of 30 classes
# and a text of 40:
#
#     optax 0.2.8, jax 0.10.2
#     100 frames: loss 262.1, off by 6e-08; gradient up to 0.72, off by 1e-05
#     1000 frames: loss 3355.8, off by 9e-07; gradient up to 1.00, off by 0.001
#     20000 frames: loss 75213.4, off by 3e-06; gradient up to 1.00, off by 0.4
#
# Exits with 1 if this changes. Needs Python 3.11 or newer.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

cd "$folder"
JAX_PLATFORMS=cpu venv/bin/python - <<'EOF'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

print(f"optax {optax.__version__}, jax {jax.__version__}")
CLASSES, LABELS = 30, 40


@jax.jit
def loss_and_gradient(logits, labels):
    """Return optax's loss of one sequence, and its gradient by the logits."""

    def loss(logits):
        frames = jnp.zeros((1, len(logits)), logits.dtype)
        text = jnp.zeros((1, len(labels)), logits.dtype)
        return optax.ctc_loss(logits[None], frames, labels[None], text)[0]

    return jax.value_and_grad(loss)(logits)


LENGTHS = (100, 1000, 20_000)
rng = np.random.default_rng(0)
labels = 1 + np.cumsum(rng.integers(1, 28, LABELS)) % 29  # no repeats
sequences = [rng.normal(size=(n, CLASSES)).astype(np.float32) for n in LENGTHS]
found = []
for dtype in ("float32", "float64"):
    jax.config.update("jax_enable_x64", dtype == "float64")
    found.append(
        [
            jax.device_get(loss_and_gradient(jnp.asarray(x, dtype), labels))
            for x in sequences
        ]
    )
errors = {}
for frames, single, double in zip(LENGTHS, *found, strict=True):
    off = abs(single[0] / double[0] - 1)
    errors[frames] = np.abs(single[1] - double[1]).max()
    print(
        f"{frames} frames: loss {double[0]:.1f}, off by {off:.0e}; gradient up to "
        f"{np.abs(double[1]).max():.2f}, off by {errors[frames]:.1g}"
    )
sys.exit(not (errors[100] < 0.01 and errors[20_000] > 0.01))
EOF
