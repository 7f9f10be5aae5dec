"""x"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The comparison on 64x64 satellite images in patches of 8x8."""
    config = common.comparison(
        dataset="bundled:climate",
        eval_split="validation",
        image_size=(64, 64),
        mean=(0.42, 0.42, 0.40),
        std=(0.25, 0.22, 0.22),
        patch_size=(8, 8),
    )
    return config
