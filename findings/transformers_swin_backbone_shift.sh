#!/bin/sh
# The Swin backbone of transformers differs from its Swin where one window is the grid.
#
# SwinModel, as the official code, does not shift a grid that is a single window.
# SwinBackbone of transformers 5.24.0 shifts windows at every resolution (its forward
# passes always_partition=True), so that the quarters of a single window do not see each
# other: the last map of an image of the size of pre-training is another one, from the
# same weights. On larger images both give the same maps.
#
# Output on 2026-11-29, Linux x86-64, CPU, Python 3.11 (window_size=2, patch_size=4):
#
#     transformers 5.24.0, torch 2.13.0+cpu
#     32 px, grids of 8, 4, 2: maps differ by up to 0, 0, 7.2
#     64 px, grids of 16, 8, 4: maps differ by up to 0, 0, 0
#
# Exits with 1 if this changes. Needs Python 3.11 or newer, and downloads about 240 MB
# where pip finds a CPU build of PyTorch, and several GB where it finds that for CUDA.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.24.0 torch==2.13.0 numpy==2.4.6

cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys

import torch
import transformers
from transformers import SwinBackbone, SwinConfig

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
config = SwinConfig(
    image_size=32,
    patch_size=4,
    embed_dim=8,
    depths=(2, 2, 2),
    num_heads=(2, 4, 4),
    window_size=2,
    initializer_range=0.3,
)
weights = SwinBackbone(config).state_dict()


def differences(size):
    """Return the largest difference of each stage, before it is normalised."""
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    backbone = SwinBackbone(config).eval()  # a new one: a small image changes it
    backbone.load_state_dict(weights)
    with torch.no_grad():
        maps = backbone(images, output_hidden_states=True).hidden_states
        model = backbone.swin(  # the SwinModel that it contains
            images,
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
        )
    return [
        float((one - other).abs().max())
        for one, other in zip(maps[1:], model.reshaped_hidden_states[1:], strict=True)
    ]


small, large = differences(32), differences(64)
for size, found in ((32, small), (64, large)):
    grids = ", ".join(str(size // 4 // 2**stage) for stage in range(3))
    shown = ", ".join(f"{value:.2g}" for value in found)
    print(f"{size} px, grids of {grids}: maps differ by up to {shown}")
sys.exit(not (max(small[:2]) < 1e-5 and small[2] > 0.01 and max(large) < 1e-5))
PYTHON
