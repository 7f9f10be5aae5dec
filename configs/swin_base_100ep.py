"""SimMIM pre-training of Swin-B at 192 pixels for 100 epochs: the official recipe.

    simmim train --config=swin_base_100ep \
        --workdir=runs/swin_base_100ep

Images: ImageNet-1k through TFDS, labels unused. Hardware: the official code names one
DGX-2, 16 V100 with 128 images each, for its batch of 2048. Expected after fine-tuning
with configs/swin_base_100ep_finetune192.py: 82.8 % top-1, with
configs/swin_base_100ep_finetune224.py: 83.5 % (README of github.com/microsoft/SimMIM).

":smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The official recipe, or a "smoke" test of the same model."""
    config = common.pretrain("swin_base", window_size=6)
    config.data.image_size = (192, 192)
    config.duration = "100 epochs"
    config.optim.lr = 2e-4
    config.optim.warmup_lr = 1e-6
    config.optim.min_lr = 1e-5
    return common.smoke(config) if common.is_smoke(arg) else config
