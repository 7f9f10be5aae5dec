"""SimMIM pre-training of Swin V2-B at 192 pixels for 800 epochs: the official recipe.

    simmim train --config=swin_v2_base \
        --workdir=runs/swin_v2_base

Images: ImageNet-1k through TFDS, labels unused. Hardware: none is named for its batch
of 2048. The target is normalised within a window of 47 pixels. Expected after fine-
tuning with configs/swin_v2_base_finetune.py: 85.04 % top-1 after 500k steps, the 800
epochs (data scaling study, MODELHUB of github.com/microsoft/Swin-Transformer).

":smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The official recipe, or a "smoke" test of the same model."""
    config = common.pretrain("swin_v2_base", window_size=12, drop_path_rate=0.1)
    config.data.image_size = (192, 192)
    config.target.kind = "normalized"
    config.duration = "800 epochs"
    config.optim.decay = "multistep"
    config.optim.milestones = ("700 epochs",)
    return common.smoke(config) if common.is_smoke(arg) else config
