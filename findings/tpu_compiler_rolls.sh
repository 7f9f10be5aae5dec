#!/bin/sh
# jnp.roll along rows costs a TPU more than a matrix product with a permutation.
#
# jax 0.10.2 with libtpu 0.0.42.1 compiles for a v5e without having one. For bfloat16
# [128, 144, 512], rolled along its 144 rows, the compiler estimates 1.5 times the
# cycles of the product, and 3 times where the roll is no multiple of a register's 8
# rows. The product moves the same numbers exactly, with 1.4 billion multiplications.
#
# Output on 2026-11-30, Linux x86-64 without a TPU, Python 3.11:
#
#     jax 0.10.2, libtpu 0.0.42.1
#     rows   roll, cycles   product, cycles   ratio
#     16     210800         135237            1.56
#     32     206444         135237            1.53
#     36     411044         135237            3.04
#
# Exits with 1 if this changes. Needs Python 3.11 or newer, and downloads about 300 MB.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1

cd "$folder"
env JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost \
  TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_MIN_LOG_LEVEL=3 TF_CPP_MIN_LOG_LEVEL=3 \
  JAX_ENABLE_COMPILATION_CACHE=false venv/bin/python - <<'EOF'
import importlib.metadata
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

slice_ = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
on_chip = SingleDeviceSharding(slice_.devices[0])
shape = jax.ShapeDtypeStruct((128, 144, 512), jnp.bfloat16, sharding=on_chip)


def cycles(function):
    text = jax.jit(function).lower(shape).compile().as_text()
    entry = text[text.index("ENTRY") :]
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry)))


print(f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}")
print("rows   roll, cycles   product, cycles   ratio")
ratios = []
for rows in (16, 32, 36):
    permutation = np.roll(np.eye(144), rows, 1)
    roll = cycles(lambda x: jnp.roll(x, -rows, 1))
    product = cycles(
        lambda x: jnp.einsum("mn,bnd->bmd", jnp.asarray(permutation, x.dtype), x)
    )
    ratios.append(roll / product)
    print(f"{rows:<6} {roll:<14} {product:<17} {roll / product:.2f}")
aligned, unaligned = max(ratios[:2]), ratios[2]
sys.exit(not (1.3 < aligned < 1.8 and 2.5 < unaligned < 3.5))
EOF
