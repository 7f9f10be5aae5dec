"""The ablations of the SimMIM paper (section 4.1): one change each to its setting.

    simmim train --config=ablations:l2 --workdir=runs/l2

The setting is configs/swin_base_100ep.py, to be fine-tuned with
configs/swin_base_100ep_finetune192.py: 82.8 % top-1 (README of
github.com/microsoft/SimMIM). `ABLATIONS` has the names, and what each changes. Masks
are named after kind, unit in pixels and ratio: random_32_0.6 is the setting.

bins_256 predicts 48 x 48 pixels: at full size its decoder would have 806M parameters.
Of what the paper compares, the inverse Swin decoders are missing, which were never
released, and targets that another network makes: colour clusters and BEiT's tokens.

":l2,smoke" takes ten steps with a tiny Swin on a bundled set, and ":smoke" does so with
the setting. benchmarks/ablations.py tries all of them.
"""

from typing import Any

from ml_collections import ConfigDict

from simmim_jax.configs import common, swin_base_100ep


def _mask(kind: str, unit: int, ratio: float) -> dict[str, Any]:
    return {"mask.kind": kind, "mask.unit_size": (unit, unit), "mask.ratio": ratio}


# Fields that an ablation changes, by its name.
ABLATIONS: dict[str, dict[str, Any]] = {
    f"{kind}_{unit}_{ratio}": _mask(kind, unit, ratio)
    for kind, unit, ratios in (
        ("random", 4, (0.2, 0.4, 0.6, 0.8)),
        ("random", 8, (0.4, 0.6, 0.8)),
        ("random", 16, (0.4, 0.6, 0.8)),
        ("random", 32, (0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8)),
        ("random", 64, (0.2, 0.4, 0.6, 0.8)),
        ("block", 16, (0.4, 0.6, 0.8)),
        ("block", 32, (0.4, 0.6, 0.8)),
        # Squares of 2 to 5 units.
        ("square", 32, (0.11, 0.25, 0.44, 0.69)),
        ("center", 32, (0.11, 0.25, 0.44, 0.69)),
    )
    for ratio in ratios
} | {
    "all_pixels": {"loss.area": "all"},
    "mlp": {"decoder.kind": "mlp"},
    "resolution_6": {"target.downsample": 32},
    "resolution_12": {"target.downsample": 16},
    "resolution_24": {"target.downsample": 8},
    "resolution_48": {"target.downsample": 4},
    "resolution_96": {"target.downsample": 2},
    "l2": {"loss.kind": "l2"},
    "smooth_l1": {"loss.kind": "smooth_l1"},
    "bins_8": {"loss.kind": "bins", "loss.bins": 8},
    "bins_256": {"loss.kind": "bins", "loss.bins": 256, "target.downsample": 4},
    # Not of the paper: what Swin V2 is pre-trained with.
    "normalized": {"target.kind": "normalized"},
}
ARGUMENTS = (*ABLATIONS,)


def get_config(arg: str = "") -> ConfigDict:
    """The setting, or an ablation of that name; ",smoke" for a test in seconds."""
    name, smoke = common.name_and_smoke(arg, ARGUMENTS)
    config = swin_base_100ep.get_config()
    config.update_from_flattened_dict(ABLATIONS.get(name, {}))
    return tiny(config) if smoke else config


def tiny(config: ConfigDict) -> ConfigDict:
    """Ten steps of eight bundled images at 192 pixels, with a Swin of width 16."""
    config = common.smoke(config)
    config.data.image_size = (192, 192)
    config.dtype = "float32"
    config.model.embed_dim = 16
    config.model.depths = (1, 1, 2, 1)
    config.model.num_heads = (1, 2, 4, 8)
    config.optim.lr = 0.1  # 1.6e-3 at this batch size
    return config
