"""Fine-tuning of a SimMIM Swin-L at 224 pixels: the official recipe for 800 epochs.

    simmim train --config=swin_large_finetune \
        --config.init_from=runs/swin_large --workdir=runs/swin_large_finetune

Images: ImageNet-1k through TFDS. Hardware: the official code names one DGX-2, 16 V100
with 128 images each, for its batch of 2048. Expected: 85.4 % top-1 after the official
800 epochs of pre-training (README of github.com/microsoft/SimMIM).

":smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The official recipe, or a "smoke" test of the same model."""
    config = common.finetune("swin_large", window_size=14, drop_path_rate=0.2)
    config.optim.layer_decay = 0.7
    return common.smoke(config) if common.is_smoke(arg) else config
