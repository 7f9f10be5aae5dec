#!/bin/sh
# Swin V2 of transformers fits its windows to smaller grids than it computes on.
#
# A stage's window is reduced to its grid where the grid is smaller. transformers 5.24.0
# halves grids rounding down when it builds the model (Swinv2Encoder), and pads odd ones
# when it runs (Swinv2PatchMerging), so that they round up. With an odd grid of patches
# a later stage then gets a window that is smaller than both its grid and the configured
# window, and splits a grid that one window covers. Window and output follow from
# config.image_size, not from the picture: the same weights built for 32 px give another
# result for the same 28 px picture.
#
# Output on 2026-11-28, Linux x86-64, CPU, Python 3.11 (window_size=4, patch_size=4):
#
#     transformers 5.24.0, torch 2.13.0+cpu
#     image_size=28, stage 1: built for 7x7, runs on 7x7, 4 windows of 4x4
#     image_size=28, stage 2: built for 3x3, runs on 4x4, 4 windows of 3x3
#     image_size=32, stage 1: built for 8x8, runs on 7x7, 4 windows of 4x4
#     image_size=32, stage 2: built for 4x4, runs on 4x4, 1 window of 4x4
#     outputs of equal weights for one 28 px picture differ by up to 3.08
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
HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import sys

import torch
import transformers
from transformers import Swinv2Config, Swinv2Model

print(f"transformers {transformers.__version__}, torch {torch.__version__}")


def build(image_size):
    """Return a model of two stages with random weights."""
    torch.manual_seed(0)
    config = Swinv2Config(
        image_size=image_size,
        patch_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        attn_implementation="eager",
    )
    return Swinv2Model(config).eval()


def run(model, images):
    """Return the output, and of each stage (built for, runs on, window, windows)."""
    grids = []
    hooks = [
        stage.register_forward_pre_hook(lambda _, args: grids.append(args[1]))
        for stage in model.encoder.layers
    ]
    with torch.no_grad():
        output = model(images, output_attentions=True)
    for hook in hooks:
        hook.remove()
    stages = []
    for stage, grid, attention in zip(
        model.encoder.layers, grids, output.attentions, strict=True
    ):
        block = stage.blocks[0]
        windows = len(attention)
        stages.append((block.input_resolution, grid, block.window_size, windows))
    return output.last_hidden_state, stages


small, large = build(28), build(32)
large.load_state_dict(small.state_dict())
images = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
small_output, small_stages = run(small, images)
large_output, large_stages = run(large, images)
for size, stages in ((28, small_stages), (32, large_stages)):
    for number, (built, grid, window, windows) in enumerate(stages, 1):
        print(
            f"image_size={size}, stage {number}: built for {built[0]}x{built[1]}, runs "
            f"on {grid[0]}x{grid[1]}, {windows} window{'s' * (windows > 1)} of "
            f"{window}x{window}"
        )
difference = float((small_output - large_output).abs().max())
print(
    f"outputs of equal weights for one 28 px picture differ by up to {difference:.2f}"
)
as_found = small_stages[1] == ((3, 3), (4, 4), 3, 4)
as_found &= large_stages[1] == ((4, 4), (4, 4), 4, 1)
sys.exit(not (as_found and difference > 0.1))
EOF
