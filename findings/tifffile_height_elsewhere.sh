#!/bin/sh
# tifffile reads an image whose height is not where the file says as one of no rows.
#
# A tag whose values take more than four bytes holds their place in the file instead. One
# damaged byte, the number of values of ImageLength, turns a height of 2 into the place
# 2, where no values can be. tifffile 2026.3.3 logs that, leaves its default of 0, and
# imread returns an empty array without an error; a place that exists is a TypeError
# while it opens the file.
#
# Output on 2026-11-29, Linux x86-64, Python 3.11:
#
#     tifffile 2026.3.3
#     1 value, here: (2, 3)
#     2 values, at 2: (0, 3)
#     2 values, at 128: TypeError
#
# Exits with 1 if this changes. Needs Python 3.11 or newer.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tifffile==2026.3.3 numpy==2.4.6

cd "$folder"
venv/bin/python - <<'EOF'
import io
import logging
import struct
import sys

import numpy as np
import tifffile

logging.disable()
print(f"tifffile {tifffile.__version__}")


def picture(count, height):
    """Return a TIFF of 2x3 pixels; count, height: what its tag ImageLength has."""
    pixels = np.arange(6, dtype=np.uint8).tobytes()
    long, short = 4, 3
    tags = [
        (256, short, 1, 3), (257, long, count, height), (258, short, 1, 8),
        (259, short, 1, 1), (262, short, 1, 1), (273, short, 1, 8), (277, short, 1, 1),
        (278, short, 1, 2), (279, short, 1, 6),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    start = struct.pack("<L", 8 + len(pixels))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    head = b"II*\0" + start + pixels + directory
    return head + struct.pack("<LL", 2, 2)


def read(data):
    """Return the shape that imread gives, or its error."""
    try:
        return tifffile.imread(io.BytesIO(data)).shape
    except TypeError:
        return "TypeError"


end = len(picture(1, 2)) - 8
found = {
    "1 value, here": read(picture(1, 2)),
    "2 values, at 2": read(picture(2, 2)),
    f"2 values, at {end}": read(picture(2, end)),
}
for name, shape in found.items():
    print(f"{name}: {shape}")
sys.exit([*found.values()] != [(2, 3), (0, 3), "TypeError"])
EOF
