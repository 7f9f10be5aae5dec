"""SimMIM pre-training of ViT-B/16 on ImageNet-1k: the official 800-epoch recipe.

    simmim train --config=vit_base --workdir=runs/vit_base

Images: ImageNet-1k through TFDS, labels unused. Hardware: the official code names one
DGX-2, 16 V100 with 128 images each, for its batch of 2048. Cost, estimated from the
shapes and not measured: 105 GFLOP an image, about 1.1e20 in 800 epochs. Expected after
fine-tuning with configs/vit_base_finetune.py: 83.8 % top-1 (README of
github.com/microsoft/SimMIM).

":smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The official recipe, or a "smoke" test of the same model."""
    config = common.pretrain()
    config.duration = "800 epochs"
    config.optim.decay = "multistep"
    config.optim.milestones = ("700 epochs",)
    return common.smoke(config) if common.is_smoke(arg) else config
