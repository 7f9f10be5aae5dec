"""SimMIM pre-training of Swin-L at 192 pixels for 800 epochs: the official recipe.

    simmim train --config=swin_large --workdir=runs/swin_large

Images: ImageNet-1k through TFDS, labels unused. Hardware: the official code names one
DGX-2, 16 V100 with 128 images each, for its batch of 2048. Expected after fine-tuning
with configs/swin_large_finetune.py: 85.4 % top-1 (README of
github.com/microsoft/SimMIM).

":smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The official recipe, or a "smoke" test of the same model."""
    config = common.pretrain("swin_large", window_size=12)
    config.data.image_size = (192, 192)
    config.duration = "800 epochs"
    config.optim.decay = "multistep"
    config.optim.milestones = ("700 epochs",)
    return common.smoke(config) if common.is_smoke(arg) else config
