#!/bin/sh
# Importing JAX beside libtpu sets TPU_LIBRARY_PATH, even on a machine without a TPU.
#
# libtpu 0.0.42.1, which jax[tpu] 0.10.2 requires, runs configure_library_path() when it
# is imported, and JAX 0.10.2 imports it wherever it is installed, also with
# JAX_PLATFORMS=cpu. The variable therefore shows that libtpu is installed, not that the
# user set it or that there is a TPU, and child processes inherit it.
#
# Output on 2026-11-28, Linux x86-64 without a TPU, Python 3.11:
#
#     jax 0.10.2, libtpu 0.0.42.1
#     before the import: None
#     after the import: libtpu/libtpu.so
#     devices: cpu
#
# Exits with 1 if this changes. Needs Python 3.11 or newer, and downloads about 300 MB.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1

cd "$folder"
env -u TPU_LIBRARY_PATH JAX_PLATFORMS=cpu venv/bin/python - <<'EOF'
import importlib.metadata
import os
import sys
from pathlib import Path

before = os.environ.get("TPU_LIBRARY_PATH")
import jax

after = os.environ.get("TPU_LIBRARY_PATH")
print(f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}")
print(f"before the import: {before}")
print(f"after the import: {after and '/'.join(Path(after).parts[-2:])}")
print(f"devices: {jax.default_backend()}")
sys.exit(not (before is None and after and after.endswith("libtpu/libtpu.so")))
EOF
