"""Fine-tuning of a SimMIM Swin V2-B at 224 pixels: the official recipe.

    simmim train --config=swin_v2_base_finetune \
        --config.init_from=runs/swin_v2_base --workdir=runs/swin_v2_base_finetune

Images: ImageNet-1k through TFDS. Hardware: none is named for its batch of 2048.
Expected: 85.04 % top-1 after 500k steps, the official 800 epochs of pre-training (data
scaling study, MODELHUB of github.com/microsoft/Swin-Transformer).

":smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The official recipe, or a "smoke" test of the same model."""
    config = common.finetune(
        "swin_v2_base", window_size=14, pretrained_window_sizes=(12, 12, 12, 6)
    )
    config.optim.layer_decay = 0.75
    config.optim.schedule = "official_prefix"
    return common.smoke(config) if common.is_smoke(arg) else config
