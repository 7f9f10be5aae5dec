#!/bin/sh
# timm's crop_mode="border" refuses long narrow pictures that its other modes accept.
#
# With crop_mode="border", create_transform of timm 1.0.31 resizes the long side to the
# input size and rounds the short one (ResizeKeepRatio.get_params). If that gives 0,
# Pillow raises ValueError: 300x3 at 32 px, or 2x1000 at 224 px.
#
# Output on 2026-11-28, Linux x86-64, CPU, Python 3.11:
#
#     timm 1.0.31, torchvision 0.28.0+cu130, Pillow 13.0.0
#     300x3 at 32 px, center: (3, 32, 32)
#     300x3 at 32 px, squash: (3, 32, 32)
#     300x3 at 32 px, border: ValueError: height and width must be > 0
#     2x1000 at 224 px, center: (3, 224, 224)
#     2x1000 at 224 px, squash: (3, 224, 224)
#     2x1000 at 224 px, border: ValueError: height and width must be > 0
#
# Exits with 1 if this changes. Needs Python 3.11 or newer, and downloads about 230 MB
# where pip finds a CPU build of PyTorch, and several GB where it finds that for CUDA.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  timm==1.0.31 torch==2.13.0 torchvision==0.28.0 pillow==13.0.0 numpy==2.4.6

cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import sys

import PIL
import torch

try:
    import torchvision
except RuntimeError:
    # A CPU build of PyTorch beside a torchvision built for CUDA, whose compiled
    # operators do not load. Importing it needs these two declared; nothing calls them.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(
            f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor"
        )
    import torchvision
import timm
from PIL import Image
from timm.data import create_transform

print(
    f"timm {timm.__version__}, torchvision {torchvision.__version__}, "
    f"Pillow {PIL.__version__}"
)


def transformed(size, pixels, mode):
    """Return the shape of what the transform gives, or its error."""
    transform = create_transform((3, pixels, pixels), crop_pct=1.0, crop_mode=mode)
    try:
        return tuple(transform(Image.new("RGB", size)).shape)
    except ValueError as error:
        return f"ValueError: {error}"


as_found = True
for size, pixels in (((300, 3), 32), ((2, 1000), 224)):
    for mode in ("center", "squash", "border"):
        result = transformed(size, pixels, mode)
        print(f"{size[0]}x{size[1]} at {pixels} px, {mode}: {result}")
        expected = (3, pixels, pixels)
        if mode == "border":
            expected = "ValueError: height and width must be > 0"
        as_found &= result == expected
sys.exit(not as_found)
EOF
