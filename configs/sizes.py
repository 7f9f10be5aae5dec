"""SimMIM pre-training of any encoder of configs/models.py by name: ViT-S to ViT-H, too.

    simmim train --config=sizes:vit_huge --workdir=runs/vit_huge

The official 800-epoch recipe, whose settings were found with base and large sizes; ViTs
at 224 pixels, Swins at 192. ViT-H has patches of 14 pixels, and hides 28 together. What
a size needs on TPUs, `python -m simmim_jax.aot` says; the backward pass computes huge
ones' blocks again, or a chip would hold few images. The paper's Swin V2-H reached
85.7 % top-1 after fine-tuning at 224 pixels; config and weights were not released.

":swin_tiny,smoke" takes ten steps on a bundled set, to see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common, models

# Windows at 192 pixels: those of the configs of the base and large sizes.
WINDOWS = {"swin": 6, "swin_large": 12, "swin_v2": 12}
ARGUMENTS = (*models.VARIANTS,)


def get_config(arg: str = "") -> ConfigDict:
    """The recipe with the encoder of that name, or vit_base; ",smoke" for a test."""
    name, smoke = common.name_and_smoke(arg, ARGUMENTS)
    name = name or "vit_base"
    family = name.rpartition("_")[0]
    if family == "vit":
        config = common.pretrain(name)
    else:
        window = WINDOWS.get(name, WINDOWS[family])
        config = common.pretrain(name, window_size=window)
        config.data.image_size = (192, 192)
    if family == "swin_v2":
        config.model.drop_path_rate = 0.1
        config.target.kind = "normalized"
    if config.model.patch_size == (14, 14):
        config.mask.unit_size = (28, 28)
    if name.endswith("_huge"):
        config.model.remat = "full"
    config.duration = "800 epochs"
    config.optim.decay = "multistep"
    config.optim.milestones = ("700 epochs",)
    if smoke:
        config = common.smoke(config)
        config.data.image_size = tuple(64 // u * u for u in config.mask.unit_size)
    return config
