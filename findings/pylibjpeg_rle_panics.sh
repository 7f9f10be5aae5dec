#!/bin/sh
# A damaged RLE image makes pylibjpeg-rle raise what `except Exception` does not catch.
#
# pylibjpeg-rle 2.2.0 is written in Rust. Where a segment decodes to more bytes than the
# image has, it panics, and PyO3 turns that into PanicException, which derives
# from BaseException. pydicom 3.0.2 tries the next decoder after an Exception alone, so
# the panic passes through its pixel_array, too, and ends programs that mean to skip
# damaged files. pydicom's own decoder drops the surplus bytes, with a warning.
#
# Output on 2026-11-29, Linux x86-64, Python 3.11:
#
#     pydicom 3.0.2, pylibjpeg 2.1.0, pylibjpeg-rle 2.2.0
#     pylibjpeg: PanicException < BaseException
#     any plugin: PanicException < BaseException
#     pydicom: (64, 64)
#
# Exits with 1 if this changes. Needs Python 3.11 or newer, and downloads about 25 MB.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pydicom==3.0.2 pylibjpeg==2.1.0 pylibjpeg-rle==2.2.0 numpy==2.4.6

cd "$folder"
# The panic also prints its place in the source, and a stack.
venv/bin/python -W ignore - 2>/dev/null <<'EOF'
import importlib.metadata
import io
import struct
import sys

import pydicom
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame

packages = ("pydicom", "pylibjpeg", "pylibjpeg-rle")
print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))

dataset = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm"))
frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
# Number of segments, where each begins, padding; then the segments. Two more bytes in
# front of the first one repeat a zero 128 times.
count, first, second, *rest = struct.unpack_from("<16L", frame)
header = struct.pack("<16L", count, first, second + 2, *rest)
dataset.PixelData = encapsulate([header + b"\x81\x00" + frame[64:]])
file = io.BytesIO()
dataset.save_as(file)


def result(plugin):
    """Return the shape of the pixels, or the error and what it derives from."""
    try:
        return pydicom.pixels.pixel_array(
            io.BytesIO(file.getvalue()), decoding_plugin=plugin
        ).shape
    except BaseException as error:
        names = [base.__name__ for base in type(error).__mro__[:-1]]
        return " < ".join(names)


found = {plugin: result(plugin) for plugin in ("pylibjpeg", "", "pydicom")}
for plugin, what in found.items():
    print(f"{plugin or 'any plugin'}: {what}")
panic = "PanicException < BaseException"
sys.exit(found != {"pylibjpeg": panic, "": panic, "pydicom": (64, 64)})
EOF
