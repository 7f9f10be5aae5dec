#!/bin/sh
# The torchvision and Pillow image processors of transformers give different pixels, and
# both centre-crop one pixel away from torchvision.
#
# transformers 5.24.0 reads one preprocessor configuration with either of two classes,
# for example ViTImageProcessor (torchvision) and ViTImageProcessorPil. Pillow's is
# exactly that of PIL.Image.resize. torchvision's differs by 1 of 255 in about 0.5 % of
# the values of noise, and with bicubic interpolation by up to 2 of 255 in smooth waves.
#
# Both round the offset of a centre crop down, where torchvision's CenterCrop rounds it
# half to even: 3 or 7 excess pixels give offset 1 or 3 instead of 2 or 4.
#
# Output on 2026-11-28, Linux x86-64, CPU, Python 3.11:
#
#     transformers 5.24.0, torch 2.13.0+cpu, torchvision 0.28.0+cu130, Pillow 13.0.0
#     400x300 to 224x224, values that differ between the processors:
#       noise, bilinear: 0.43 %, at most by 1 of 255; Pillow's is PIL's: True
#       noise, bicubic: 0.53 %, at most by 1 of 255; Pillow's is PIL's: True
#       waves, bilinear: 0.00 %, at most by 0 of 255; Pillow's is PIL's: True
#       waves, bicubic: 0.23 %, at most by 2 of 255; Pillow's is PIL's: True
#     offset of a centre crop, by excess pixels:
#       excess                         0 1 2 3 4 5 6 7
#       DeiT, torchvision              0 0 1 1 2 2 3 3
#       DeiT, Pillow                   0 0 1 1 2 2 3 3
#       torchvision's CenterCrop       0 0 1 2 2 2 3 4
#
# Exits with 1 if this changes; the shares may differ a little between processors. Needs
# Python 3.11 or newer, and downloads about 250 MB where pip finds a CPU build of
# PyTorch, and several GB where it finds that for CUDA.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.24.0 torch==2.13.0 torchvision==0.28.0 pillow==13.0.0 numpy==2.4.6

cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import sys

import numpy as np
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
import transformers
from PIL import Image
from torchvision.transforms import CenterCrop
from transformers import (
    DeiTImageProcessor,
    DeiTImageProcessorPil,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

print(
    f"transformers {transformers.__version__}, torch {torch.__version__}, "
    f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
)


def process(processor, image, **options):
    """Return the pixels [h, w, c] uint8 before rescaling and normalisation."""
    processor = processor(do_rescale=False, do_normalize=False, **options)
    pixels = processor(images=image, return_tensors="np")["pixel_values"][0]
    return np.asarray(pixels).transpose(1, 2, 0)


noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
y, x, c = np.mgrid[:300, :400, :3]
waves = 127 + 80 * np.sin(x / 20 + c) + 40 * np.cos(y / 13)
pictures = {"noise": noise, "waves": waves.round().astype(np.uint8)}
filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

print("400x300 to 224x224, values that differ between the processors:")
as_found = True
shares = []
for name, picture in pictures.items():
    image = Image.fromarray(picture)
    for filter_name, resample in filters.items():
        options = {"resample": resample, "size": {"height": 224, "width": 224}}
        theirs = process(ViTImageProcessor, image, **options)
        pil = process(ViTImageProcessorPil, image, **options)
        exact = np.array_equal(pil, image.resize((224, 224), resample))
        difference = np.abs(theirs.astype(int) - pil)
        shares.append((difference > 0).mean())
        as_found &= exact and difference.max() <= 2
        print(
            f"  {name}, {filter_name}: {shares[-1]:.2%}, at most by "
            f"{difference.max()} of 255; Pillow's is PIL's: {exact}".replace("%", " %")
        )
as_found &= 0.001 < max(shares) < 0.02

crops = {
    "DeiT, torchvision": [],
    "DeiT, Pillow": [],
    "torchvision's CenterCrop": [],
}
options = {"do_resize": False, "crop_size": {"height": 224, "width": 224}}
for excess in range(8):
    image = Image.fromarray(noise[:224, : 224 + excess])
    cropped = [
        process(DeiTImageProcessor, image, **options),
        process(DeiTImageProcessorPil, image, **options),
        np.asarray(CenterCrop(224)(image)),
    ]
    for offsets, pixels in zip(crops.values(), cropped, strict=True):
        (offset,) = (
            offset
            for offset in range(excess + 1)
            if np.array_equal(pixels, noise[:224, offset : offset + 224])
        )
        offsets.append(offset)
print("offset of a centre crop, by excess pixels:")
for name, offsets in {"excess": range(8), **crops}.items():
    print(f"  {name:30}", *offsets)
down, also_down, nearest = crops.values()
as_found &= down == also_down == [excess // 2 for excess in range(8)]
as_found &= nearest == [round(excess / 2) for excess in range(8)]
sys.exit(not as_found)
EOF
