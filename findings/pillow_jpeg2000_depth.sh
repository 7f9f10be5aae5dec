#!/bin/sh
# Pillow multiplies grey JPEG 2000 pixels of 9 to 15 bits, so that they fill 16.
#
# A grey image of 12 bits opens in mode I;16 with 4095 as 65520: the values of a camera or
# a scanner come out 16 times too large, those of 10 bits 64 times, without a word. OpenCV
# and imagecodecs return what was written.
#
# Output on 2026-11-29, Linux x86-64, Python 3.11:
#
#     Pillow 13.0.0, OpenCV 5.0.0, imagecodecs 2026.3.6
#     10 bits, 1023: Pillow I;16 65472, OpenCV 1023, imagecodecs 1023
#     12 bits, 4095: Pillow I;16 65520, OpenCV 4095, imagecodecs 4095
#     16 bits, 65535: Pillow I;16 65535, OpenCV 65535, imagecodecs 65535
#
# Exits with 1 if this changes. Needs Python 3.11 or newer.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pillow==13.0.0 opencv-python-headless==5.0.0.93 imagecodecs==2026.3.6 numpy==2.4.6

cd "$folder"
venv/bin/python - <<'EOF'
import io
import sys

import cv2
import imagecodecs
import numpy as np
import PIL
from PIL import Image

print(
    f"Pillow {PIL.__version__}, OpenCV {cv2.__version__}, "
    f"imagecodecs {imagecodecs.__version__}"
)
as_found = True
for bits, seen in ((10, 65472), (12, 65520), (16, 65535)):
    largest = 2**bits - 1
    image = np.full((16, 16), largest, np.uint16)
    data = imagecodecs.jpeg2k_encode(
        image, level=0, reversible=True, bitspersample=bits
    )
    opened = Image.open(io.BytesIO(data))
    by_pillow = int(np.asarray(opened).max())
    by_opencv = int(cv2.imdecode(np.frombuffer(data, np.uint8), -1).max())
    by_imagecodecs = int(imagecodecs.jpeg2k_decode(data).max())
    print(
        f"{bits} bits, {largest}: Pillow {opened.mode} {by_pillow}, OpenCV {by_opencv}, "
        f"imagecodecs {by_imagecodecs}"
    )
    as_found &= (by_pillow, by_opencv, by_imagecodecs) == (seen, largest, largest)
sys.exit(not as_found)
EOF
