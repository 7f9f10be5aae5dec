"""Satellite images and their climate: the comparison in colour, on a CPU.

    simmim train --config=climate

Pre-trains a ViT with 1M parameters on 5,150 patches of NASA's Blue Marble without their
labels, then fine-tunes it on 240 with their climate zone (Köppen), and the same model
from scratch beside it. Tested on 618 patches of other regions. Bundled; sources stand
in simmim_jax/data/bundled/README.md. The colour of a patch gives much of its climate
away: one run gave 71.0 % top-1 with SimMIM and 69.7 % from scratch, a margin within
the noise of 618 images.

":smoke" does the same in seconds.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The comparison on 64x64 colour images in patches of 16x16."""
    config = common.comparison(
        dataset="bundled:climate",
        eval_split="validation",
        image_size=(64, 64),
        mean=(0.567, 0.565, 0.499),
        std=(0.364, 0.355, 0.405),
        patch_size=(16, 16),
    )
    config.pretrain.data.train_split = "unlabelled"
    config.pretrain.duration = "150000 examples"
    config.pretrain.eval_every = "25088 examples"  # six times
    config.finetune.data.num_labels = 240
    config.finetune.duration = "400 steps"
    config.finetune.optim.warmup = "40 steps"
    config.finetune.eval_every = "100 steps"
    return common.smoke_comparison(config) if common.is_smoke(arg) else config
