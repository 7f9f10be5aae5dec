#!/bin/sh
# torch.load does not check the CRC-32 that torch.save writes.
#
# A file of torch.save is a zip archive, and each tensor a stored member. torch 2.13.0
# writes the CRC-32 of every member, but torch.load(weights_only=True) does not compare
# it: a tensor with one changed bit loads without an error or a warning. Python's
# zipfile.testzip() names the member. With torch.serialization.set_crc32_options(False),
# torch.save writes zeros as CRC-32, and testzip() names the first member of a file that
# is intact.
#
# Output on 2026-11-28, Linux x86-64, CPU, Python 3.11:
#
#     torch 2.13.0+cpu
#     CRC-32 by default: 7 members, 0 zeros; testzip() of it: None
#     one bit changed: torch.load read 1 of 1000 values wrong (10 became 2.93874e-38)
#     one bit changed: testzip() says archive/data/0
#     CRC-32 switched off: 7 members, 7 zeros; testzip() of it: archive/data.pkl
#
# Exits with 1 if this changes. Needs Python 3.11 or newer, and downloads about 210 MB
# where pip finds a CPU build of PyTorch, and several GB where it finds that for CUDA.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.4.6

cd "$folder"
venv/bin/python - <<'EOF'
import io
import sys
import zipfile

import torch

print(f"torch {torch.__version__}")
weight = torch.arange(1000.0)


def saved(crc):
    """Return the bytes of a file of torch.save."""
    torch.serialization.set_crc32_options(crc)
    file = io.BytesIO()
    torch.save({"weight": weight}, file)
    return file.getvalue()


def members(data):
    """Return the number of members, of those with a CRC-32 of zero, and the bad one."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    codes = [member.CRC for member in archive.infolist()]
    return len(codes), codes.count(0), archive.testzip()


default = torch.serialization.get_crc32_options()
good = saved(default)
count, zeros, named = members(good)
print(f"CRC-32 by default: {count} members, {zeros} zeros; testzip() of it: {named}")
as_found = default and zeros == 0 and named is None

damaged = bytearray(good)
damaged[good.index(weight.numpy().tobytes()) + 4 * 10 + 3] ^= 0x40
loaded = torch.load(io.BytesIO(damaged), weights_only=True)["weight"]
wrong = int((loaded != weight).sum())
print(
    f"one bit changed: torch.load read {wrong} of {len(weight)} values wrong "
    f"({weight[10]:g} became {loaded[10]:g})"
)
*_, named = members(damaged)
print(f"one bit changed: testzip() says {named}")
as_found &= wrong == 1 and named == "archive/data/0"

count, zeros, named = members(saved(False))
print(f"CRC-32 switched off: {count} members, {zeros} zeros; testzip() of it: {named}")
sys.exit(not (as_found and zeros == count))
EOF
