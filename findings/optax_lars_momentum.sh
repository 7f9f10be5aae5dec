#!/bin/sh
# optax.lars accumulates updates that the learning rate has scaled; optax.sgd does not.
#
# optax.sgd multiplies by the learning rate after the momentum, as PyTorch does.
# optax.lars does so before it (its chain ends with `trace`), so that steps of earlier,
# larger rates go on: after a rate of 0, parameters still move. While the rate stays the
# same both are equal. LARS as PyTorch code writes it, such as MAE's for linear probes,
# needs a chain of scale_by_trust_ratio, trace and scale_by_learning_rate.
#
# Output on 2026-11-29, Linux x86-64, CPU, Python 3.11, for a gradient of 1, a momentum
# of 0.9 and no trust ratio:
#
#     optax 0.2.8, jax 0.10.2
#     rates [0.1, 0.1, 0.1]: lars [-0.1, -0.19, -0.271], sgd [-0.1, -0.19, -0.271]
#     rates [1.0, 0.1, 0.0]: lars [-1.0, -1.0, -0.9], sgd [-1.0, -0.19, 0.0]
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
import optax

print(f"optax {optax.__version__}, jax {jax.__version__}")


def updates(make, rates):
    """Return the updates of a scalar, at these learning rates one after another."""
    optimizer = make(lambda step: jnp.array(rates)[step])
    state, found = optimizer.init(jnp.ones(1)), []
    for _ in rates:
        update, state = optimizer.update(jnp.ones(1), state, jnp.ones(1))
        found.append(round(float(update[0]), 4) + 0.0)  # no minus of a zero
    return found


def lars(rate):
    return optax.lars(rate, trust_ratio_mask=False, momentum=0.9)


def sgd(rate):
    return optax.sgd(rate, momentum=0.9)


as_found = True
for rates in ([0.1, 0.1, 0.1], [1.0, 0.1, 0.0]):
    found = updates(lars, rates), updates(sgd, rates)
    print(f"rates {rates}: lars {found[0]}, sgd {found[1]}")
    as_found &= (found[0] == found[1]) == (len(set(rates)) == 1)
sys.exit(not (as_found and found == ([-1.0, -1.0, -0.9], [-1.0, -0.19, 0.0])))
EOF
