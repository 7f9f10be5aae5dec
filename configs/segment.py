"""Semantic segmentation: a class for every pixel, by UperNet on a pre-trained encoder.

    simmim train --config=segment:swin_base --config.init_from=runs/swin_base \
        --config.data.dataset=/data/scenes --workdir=runs/scenes

Images: a folder with images/ and masks/, of equal names (docs/how-to/segmentation.md).
":vit_base" is the default; every encoder of `simmim configs sizes` has its own name.
Settings: BEiT's for ADE20K, 160,000 steps of 16 crops at 512 pixels, AdamW, linear
decay, 0.9 of the learning rate a layer (its upernet_beit_base configs); a Swin takes
those of its paper (section 4.3): 6e-5, weight decay 0.01, the same rate for all layers.
SimMIM has published none. Hardware: BEiT names 8 GPUs with 2 images each.

":smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common, models

# What `simmim configs segment` lists.
ARGUMENTS = tuple(models.VARIANTS)


def get_config(arg: str = "") -> ConfigDict:
    """The encoder of that name, or a "smoke" test of it."""
    name, smoke = common.name_and_smoke(arg, ARGUMENTS)
    variant = name or "vit_base"
    config = common.segment(variant)
    if variant.startswith("swin"):
        config.optim.lr = 1.92e-3  # 6e-5 at this batch size
        config.optim.weight_decay = 0.01
        config.optim.layer_decay = 1.0
    if smoke:
        config = common.smoke(config)
        config.data.dataset = "bundled:fashion_masks"
        config.data.channels = 1
        config.model.head_dim = 32
    return config
