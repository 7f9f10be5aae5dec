#!/bin/sh
# Orbax restores other numbers, without an error, after one bit of a checkpoint changed.
#
# orbax-checkpoint 0.12.8 stores arrays as Zarr chunks, compressed by zstd without its
# checksum, in an OCDBT store. The manifest of the store has a checksum (CRC-32C), its
# values have none, and values are almost all bytes of a checkpoint. A bit that changes
# there, in storage or in transfer, changes parameters without an error.
#
# Output on 2026-11-28, Linux x86-64, CPU, Python 3.11:
#
#     orbax-checkpoint 0.12.8, jax 0.10.2, tensorstore 0.1.86
#     a checkpoint of 65924 bytes in 10 files, intact: restored equal
#     100 single-bit flips at random places of it:
#       92 restored other numbers
#       7 restored equal
#       1 raised an error
#
# Exits with 1 if this changes, that is, unless more than half of the flips restore
# other numbers. Orbax names its files at random, so the figures may differ by a few.
# Needs Python 3.11 or newer, and downloads about 160 MB.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 tensorstore==0.1.86 numpy==2.4.6

cd "$folder"
JAX_PLATFORMS=cpu venv/bin/python - <<'EOF'
import collections
import importlib.metadata
import logging
import random
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

FLIPS = 100

logging.disable(logging.WARNING)
versions = {
    name: importlib.metadata.version(name)
    for name in ("orbax-checkpoint", "jax", "tensorstore")
}
print(", ".join(f"{name} {version}" for name, version in versions.items()))

rng = np.random.default_rng(0)
tree = {
    "kernel": rng.standard_normal((64, 256), np.float32),
    "bias": rng.standard_normal(256, np.float32),
}
good, bad = Path("good").resolve(), Path("bad").resolve()
draw = random.Random(0)


def flip():
    """Copy the checkpoint, and change one bit of the copy."""
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(good, bad)
    (path,) = draw.choices(list(sizes), sizes.values())
    place, bit = draw.randrange(sizes[path]), draw.randrange(8)
    data = bytearray((bad / path).read_bytes())
    data[place] ^= 1 << bit
    (bad / path).write_bytes(data)


def restored(folder):
    """Return what restoring the checkpoint led to."""
    try:
        values = checkpointer.restore(folder, tree)
    except Exception:
        return "raised an error"
    equal = jax.tree.all(jax.tree.map(np.array_equal, values, tree))
    return "restored equal" if equal else "restored other numbers"


with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(good, tree)
    checkpointer.wait_until_finished()
    sizes = {
        path.relative_to(good): path.stat().st_size
        for path in sorted(good.rglob("*"), key=lambda path: path.stat().st_size)
        if path.is_file()
    }
    total = sum(sizes.values())
    intact = restored(good)
    print(f"a checkpoint of {total} bytes in {len(sizes)} files, intact: {intact}")
    counts = collections.Counter()
    for _ in range(FLIPS):
        flip()
        counts[restored(bad)] += 1
print(f"{FLIPS} single-bit flips at random places of it:")
for outcome in ("restored other numbers", "restored equal", "raised an error"):
    print(f"  {counts[outcome]} {outcome}")
most = counts["restored other numbers"] > FLIPS / 2
sys.exit(not (intact == "restored equal" and most))
EOF
