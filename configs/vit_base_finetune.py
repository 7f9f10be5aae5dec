"""Fine-tuning of a SimMIM ViT-B/16 on ImageNet-1k: the official 100-epoch recipe.

    simmim train --config=vit_base_finetune \
        --config.init_from=runs/vit_base --workdir=runs/vit_base_finetune

Images: ImageNet-1k through TFDS. Hardware: the official code names one DGX-2, 16 V100
with 128 images each, for its batch of 2048. Expected: 83.8 % top-1 after the official
800 epochs of pre-training (README of github.com/microsoft/SimMIM).

":smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The official recipe, or a "smoke" test of the same model."""
    config = common.finetune()
    return common.smoke(config) if common.is_smoke(arg) else config
