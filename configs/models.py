"""Encoders as published, with what each of their fields means.

`pretraining("swin_base", window_size=6)` and `finetuning(...)` give the model of either
mode; the fields are those of the encoder's class in simmim_jax/models/, and those of
its classifier.
"""

from typing import Any

from ml_collections import ConfigDict

# What tells the sizes apart. Sources: ViT-S, Touvron et al. (ICML 2021); ViT-B, L and
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


def vit() -> ConfigDict:
    """Fields of the ViT that both modes have: ViT-B/16, 86M parameters."""
    model = ConfigDict()
    # Which encoder; the fields are those of its class.
    model.name = "vit"
    # Height and width of a patch, in pixels.
    model.patch_size = (16, 16)
    # Width of the residual stream.
    model.embed_dim = 768
    # Number of blocks.
    model.depth = 12
    # Attention heads; embed_dim must be a multiple.
    model.num_heads = 12
    # Width of the MLP, in embed_dim.
    model.mlp_ratio = 4.0
    # Biases of queries and values.
    model.qkv_bias = True
    # Learned absolute positions, added to the tokens.
    model.use_abs_pos_emb = False
    # Initial value of LayerScale; 0: no LayerScale.
    model.layer_scale = 0.1
    # Chance that the last block's residual branches are dropped; earlier ones less.
    model.drop_path_rate = 0.1
    # Added to the variance in layer norms.
    model.norm_eps = 1e-6
    # Standard deviation of initial weights; narrower models want more.
    model.init_std = 0.02
    # How attention is computed: "xla", or "pallas" for a kernel of our own on TPUs, for
    # at most 256 tokens. No chip has run it yet: compare both before a long run.
    model.attention = "xla"
    # What the backward pass computes again, for less memory: "none", "full" (whole
    # blocks) or "dots" (all but the matrix products of projections and MLPs).
    model.remat = "none"
    # Compile one block and run it in a loop, instead of all of them: compiles sooner.
    # It needs `remat`, without which a loop keeps more than unrolled blocks do.
    model.scan_layers = False
    return model


def swin() -> ConfigDict:
    """Fields of Swin: Swin-B, 88M parameters."""
    model = ConfigDict()
    # Which encoder; the fields are those of its class.
    model.name = "swin"
    # Height and width of a patch, in pixels.
    model.patch_size = (4, 4)
    # Width of the first stage's residual stream; it doubles from stage to stage.
    model.embed_dim = 128
    # Number of blocks in each stage.
    model.depths = (2, 2, 18, 2)
    # Attention heads in each stage.
    model.num_heads = (4, 8, 16, 32)
    # Side of an attention window, in tokens; a smaller grid is one window.
    model.window_size = 7
    # Width of the MLP, in the stage's width.
    model.mlp_ratio = 4.0
    # Biases of queries, keys (Swin alone) and values.
    model.qkv_bias = True
    # Normalise patches after their embedding.
    model.patch_norm = True
    # Learned absolute positions, added to the tokens.
    model.use_abs_pos_emb = False
    # Chance that the last block's residual branches are dropped; earlier ones less.
    model.drop_path_rate = 0.0
    # Added to the variance in layer norms.
    model.norm_eps = 1e-5
    # Standard deviation of initial weights.
    model.init_std = 0.02
    # How attention is computed, as for the ViT; the tokens are those of a window.
    model.attention = "xla"
    # What the backward pass computes again, as for the ViT.
    model.remat = "none"
    # Compile two blocks of a stage and run them in a loop, as for the ViT.
    model.scan_layers = False
    return model


def swin_v2() -> ConfigDict:
    """Fields of Swin V2: those of Swin, and one more."""
    model = swin()
    model.name = "swin_v2"
    # Windows of the stages when positions were learned, if another size; (): the same.
    model.pretrained_window_sizes = ()
    return model


def encoder(variant: str, **changes: Any) -> ConfigDict:
    """The encoder of that name in VARIANTS, with some fields changed."""
    if variant not in VARIANTS:
        raise ValueError(f"model {variant!r}: expected one of {sorted(VARIANTS)}.")
    family = variant.rsplit("_", 1)[0]
    model = {"vit": vit, "swin": swin, "swin_v2": swin_v2}[family]()
    model.update(VARIANTS[variant] | changes)
    return model


def pretraining(variant: str, **changes: Any) -> ConfigDict:
    """The encoder as SimMIM pre-trains it."""
    model = encoder(variant)
    if model.name == "vit":
        # Relative position bias with a table for each block.
        model.use_rel_pos_bias = False
        # With one table that all blocks share.
        model.use_shared_rel_pos_bias = True
        # Normalise the encoder's output.
        model.final_norm = True
        # Initial weights are cut at this many standard deviations; 0: nowhere.
        model.init_cut = 1.0
    model.update(changes)
    return model


def finetuning(variant: str, **changes: Any) -> ConfigDict:
    """The encoder and its head as SimMIM fine-tunes them."""
    model = encoder(variant)
    if model.name == "vit":
        # As in `pretraining`, with the values of the official classifier.
        model.use_rel_pos_bias = True
        model.use_shared_rel_pos_bias = False
        model.final_norm = False
        model.init_cut = 0.0
    # Classify the "mean" of the patch tokens or, with a ViT, the "cls" token.
    model.pool = "mean"
    # Normalise what was pooled; Swin normalises before.
    model.pool_norm = model.name == "vit"
    # The head's initial weights are multiplied by it.
    model.head_scale = 0.001 if model.name == "vit" else 1.0
    # Chance that the last block's residual branches are dropped; earlier ones less.
    model.drop_path_rate = 0.1
    model.update(changes)
    return model
