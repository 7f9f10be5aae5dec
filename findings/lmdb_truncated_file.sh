#!/bin/sh
# lmdb opens a truncated file, and reading it ends the process with SIGBUS.
#
# An interrupted copy of data.mdb opens without an error as long as its first two pages
# are there. Environment.info() and stat() are right, too; the first read of a page that
# is missing is a bus error, which no Python code can catch. last_pgno + 1 pages of psize
# bytes are what the file must have.
#
# Output on 2026-11-29, Linux x86-64, Python 3.11:
#
#     lmdb 3.0.0
#     opened: 122880 bytes expected, 20000 there
#     reading: ended by signal 7
#
# Exits with 1 if this changes. Needs Python 3.11 or newer.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lmdb==3.0.0

cd "$folder"
venv/bin/python - <<'EOF'
import os
import subprocess
import sys

import lmdb

print(f"lmdb {lmdb.__version__}")
with lmdb.open("set.mdb", subdir=False, map_size=2**24) as environment:
    with environment.begin(write=True) as transaction:
        for i in range(9):
            transaction.put(b"%d" % i, bytes(10_000))
os.truncate("set.mdb", 20_000)

READ = """
import lmdb
environment = lmdb.open("set.mdb", subdir=False, readonly=True, lock=False)
pages = environment.info()["last_pgno"] + 1
expected = pages * environment.stat()["psize"]
print(f"opened: {expected} bytes expected, 20000 there", flush=True)
with environment.begin() as transaction:
    for key, value in transaction.cursor():
        len(value)
"""
code = subprocess.run([sys.executable, "-c", READ]).returncode
print(f"reading: ended by signal {-code}" if code < 0 else f"reading: exit code {code}")
sys.exit(code != -7)
EOF
