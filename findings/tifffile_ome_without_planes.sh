#!/bin/sh
# tifffile returns zeros for planes of an OME-TIFF that are in a file it does not find.
#
# OME-TIFF may spread the planes of one image over files, which its XML names; microscopes
# write one a channel. Where one was not copied, or the file is read from memory, imread
# logs a warning and returns zeros of the right shape. Only `TiffFile.series[0].pages`
# tells: the plane is None.
#
# Output on 2026-11-29, Linux x86-64, Python 3.11:
#
#     tifffile 2026.3.3
#     both files: [1, 2]
#     second file missing: [1, 0]
#     from memory: [1, 0], pages [True, False]
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
import os
import sys

import numpy as np
import tifffile

logging.disable()
print(f"tifffile {tifffile.__version__}")

NAMES = ("red.ome.tif", "green.ome.tif")
PLANES = "".join(
    f'<TiffData FirstC="{channel}" IFD="0" PlaneCount="1">'
    f'<UUID FileName="{name}">urn:uuid:{channel}</UUID></TiffData>'
    for channel, name in enumerate(NAMES)
)
for channel, name in enumerate(NAMES):
    description = (
        '<?xml version="1.0"?><OME xmlns='
        '"http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="urn:uuid:{channel}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint16" SizeX="8" SizeY="6" SizeC="2" SizeZ="1" '
        'SizeT="1"><Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/>'
        f"{PLANES}</Pixels></Image></OME>"
    )
    plane = np.full((6, 8), channel + 1, np.uint16)
    tifffile.imwrite(name, plane, description=description, metadata=None)


def levels(image):
    """Return the value of each channel."""
    return [int(plane.max()) for plane in image]


both = levels(tifffile.imread(NAMES[0]))
print(f"both files: {both}")
os.remove(NAMES[1])
one = levels(tifffile.imread(NAMES[0]))
print(f"second file missing: {one}")
with open(NAMES[0], "rb") as file, tifffile.TiffFile(io.BytesIO(file.read())) as tiff:
    series = tiff.series[0]
    there = [page is not None for page in series.pages]
    memory = levels(series.asarray())
print(f"from memory: {memory}, pages {there}")
sys.exit((both, one, memory, there) != ([1, 2], [1, 0], [1, 0], [True, False]))
EOF
