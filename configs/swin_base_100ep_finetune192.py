"""Fine-tuning of a SimMIM Swin-B at 192 pixels: the official recipe for 100 epochs.

    simmim train --config=swin_base_100ep_finetune192 \
        --config.init_from=runs/swin_base_100ep \
        --workdir=runs/swin_base_100ep_finetune192

Images: ImageNet-1k through TFDS. Hardware: the official code names one DGX-2, 16 V100
with 128 images each, for its batch of 2048. Expected: 82.8 % top-1 after the official
100 epochs of pre-training (README of github.com/microsoft/SimMIM).

":smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The official recipe, or a "smoke" test of the same model."""
    config = common.finetune("swin_base", window_size=6)
    config.data.image_size = (192, 192)
    config.optim.layer_decay = 0.9
    return common.smoke(config) if common.is_smoke(arg) else config
