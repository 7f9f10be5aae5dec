"""Encoders as published.

`pretraining("swin_base", window_size=6)` and `finetuning(...)` return config.model of
either mode. Its fields are explained in simmim_jax/config/schema.py.
"""

from typing import Any

from ml_collections import ConfigDict

from simmim_jax.config import schema

# What sets the sizes apart. Sources: ViT-S, Touvron et al. (ICML 2021); ViT-B, L and
# H, Dosovitskiy et al. (ICLR 2021), table 1; Swin, Liu et al. (ICCV 2021), section 3.3;
# Swin V2, Liu et al. (CVPR 2022), section 4.1.
_VIT = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": (14, 14)},
}
_SWIN = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
    "huge": {"embed_dim": 352, "depths": (2, 2, 18, 2), "num_heads": (11, 22, 44, 88)},
}
VARIANTS = {
    f"{family}_{size}": fields
    for family, sizes in (
        ("vit", _VIT),
        ("swin", {size: _SWIN[size] for size in ("tiny", "small", "base", "large")}),
        ("swin_v2", _SWIN),
    )
    for size, fields in sizes.items()
}


def _family(variant: str) -> str:
    if variant not in VARIANTS:
        raise ValueError(f"model {variant!r}: expected one of {sorted(VARIANTS)}.")
    return variant.rsplit("_", 1)[0]


def pretraining(variant: str, **changes: Any) -> ConfigDict:
    """Return the encoder as SimMIM pre-trains it, with `changes`."""
    model = schema.config_dict(schema.ENCODERS[_family(variant)]())
    model.update(VARIANTS[variant] | changes)
    return model


def segmenting(variant: str, **changes: Any) -> ConfigDict:
    """Return the encoder and UperNet's head for segmentation, with `changes`."""
    family = _family(variant)
    model = schema.config_dict(schema.segmenter(schema.ENCODERS[family])())
    model.update(VARIANTS[variant])
    model.drop_path_rate = 0.1
    if family == "vit":
        model.use_rel_pos_bias = True
        model.use_shared_rel_pos_bias = False
        model.final_norm = False
        model.init_cut = 0.0
    model.update(changes)
    return model


def finetuning(variant: str, **changes: Any) -> ConfigDict:
    """Return the encoder and its head as SimMIM fine-tunes them, with `changes`."""
    family = _family(variant)
    model = schema.config_dict(schema.classifier(schema.ENCODERS[family])())
    model.update(VARIANTS[variant])
    model.drop_path_rate = 0.1
    if family == "vit":
        model.use_rel_pos_bias = True
        model.use_shared_rel_pos_bias = False
        model.final_norm = False
        model.init_cut = 0.0
    else:  # it normalises before pooling
        model.pool_norm = False
        model.head_scale = 1.0
    model.update(changes)
    return model
