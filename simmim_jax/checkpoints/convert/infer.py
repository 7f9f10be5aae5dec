"""Inference of config.model from the shapes of an official state dict."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from simmim_jax.errors import UserError

_TABLE = "relative_position_bias_table"
# What flags may be, where their names alone do not tell.
_HINTS = {
    "pretrained_window_sizes": (
        ". It is '()' if positions were learned with the same windows, and "
        "'(12, 12, 12, 6)' for models with 12to16 or 12to24 in their names"
    )
}


def model_fields(
    state: Mapping[str, np.ndarray], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return fields of config.model, from shapes and from `known` fields.

    state: official names and layouts, with or without the prefix `encoder.`.
    known: fields of config.model, which take precedence.

    Raises UserError that lists the fields which neither determines, such as num_heads
    of a ViT without relative positions.
    """
    state = {name.removeprefix("encoder."): value for name, value in state.items()}
    if "patch_embed.proj.weight" not in state:
        raise UserError(
            f"the tensors {', '.join(sorted(state)[:5])}, … are no ViT, Swin or Swin "
            "V2 with names of the official code or timm. Expected one called "
            f"patch_embed.proj.weight. {_origin(state)}"
        )
    patches = state["patch_embed.proj.weight"]
    if patches.ndim != 4 or 0 in patches.shape:
        raise UserError(
            f"patch_embed.proj.weight has shape {patches.shape}. Expected width, "
            "channels, height and width of a patch, as in the official code and timm."
        )
    width, _, *patch_size = patches.shape
    fields: dict[str, Any] = {"patch_size": tuple(patch_size), "embed_dim": width}
    try:
        fields |= _swin(state) if _depths(state) else _vit(state)
    except KeyError as error:
        raise UserError(
            f"the tensor {error.args[0]} is missing. Expected a complete state dict: "
            "download or save it again."
        ) from error
    except (IndexError, TypeError) as error:
        raise UserError(
            "a tensor of the first block has too few axes. Expected the shapes of the "
            "official code or timm: download or save the file again."
        ) from error
    if "head.weight" in state:
        # Official ViT: mean of tokens, then a norm; or the class token. Swin: mean.
        fields["pool_norm"] = "fc_norm.weight" in state
        swin = fields["name"] != "vit"
        fields["pool"] = "mean" if swin or fields["pool_norm"] else "cls"
        fields["head_scale"] = 1.0 if swin else 0.001  # for initial weights only
    fields |= {name: value for name, value in known.items() if value is not None}
    unknown = [name for name, value in fields.items() if value is None]
    if unknown:
        flags = " ".join(f"--model.{name}=…" for name in unknown)
        hints = "".join(_HINTS.get(name, "") for name in unknown)
        raise UserError(f"the file does not determine {unknown}: add {flags}{hints}.")
    return fields


def _origin(state: Mapping[str, np.ndarray]) -> str:
    """What to do with tensors in the names of another library."""
    if any("patch_embeddings.projection" in name for name in state):
        return "These are of transformers: pass the folder with their config.json."
    if any("patch_embed.projection" in name for name in state):
        return (
            "These are of mmpretrain, which is not supported: convert the weights "
            "that it was given, in official names."
        )
    return "For a model of transformers, pass its folder."


def grid_side(state: Mapping[str, np.ndarray]) -> int | None:
    """Return patches per side of a square image; None if no parameter depends on it."""
    for name, value in state.items():
        if value.ndim < 2:
            continue
        if name.endswith("absolute_pos_embed"):
            return _root(value.shape[1])
        if name.endswith("pos_embed"):
            return _root(value.shape[1] - 1)
        if name.endswith(_TABLE) and "layers." not in name:
            side = _root(value.shape[0] - 3)
            return side and (side + 1) // 2
    return None


def _vit(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tables = [v for name, v in state.items() if name.endswith(_TABLE)]
    width = state["patch_embed.proj.weight"].shape[0]
    blocks = {int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "name": "vit",
        "depth": len(blocks),
        "num_heads": tables[0].shape[1] if tables else None,
        "mlp_ratio": _mlp_ratio(state, "blocks.0", width),
        "qkv_bias": "blocks.0.attn.q_bias" in state,
        "use_abs_pos_emb": "pos_embed" in state,
        "use_rel_pos_bias": f"blocks.0.attn.{_TABLE}" in state,
        "use_shared_rel_pos_bias": f"rel_pos_bias.{_TABLE}" in state,
        # The value matters only for initial weights.
        "layer_scale": 0.1 if "blocks.0.gamma_1" in state else 0.0,
        "final_norm": "norm.weight" in state,
    }


def _swin(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    depths = _depths(state)
    attn = "layers.{}.blocks.0.attn."
    width = state["patch_embed.proj.weight"].shape[0]
    version_2 = f"{attn}logit_scale".format(0) in state
    fields = {
        "name": "swin_v2" if version_2 else "swin",
        "depths": depths,
        "mlp_ratio": _mlp_ratio(state, "layers.0.blocks.0", width),
        "qkv_bias": bool(
            {f"{attn}{b}".format(0) for b in ("q_bias", "qkv.bias")} & state.keys()
        ),
        "patch_norm": "patch_embed.norm.weight" in state,
        "use_abs_pos_emb": "absolute_pos_embed" in state,
    }
    if version_2:
        scales = [state[f"{attn}logit_scale".format(s)] for s in range(len(depths))]
        return fields | {
            "num_heads": tuple(scale.shape[0] for scale in scales),
            "window_size": None,
            "pretrained_window_sizes": None,
        }
    tables = [state[f"{attn}{_TABLE}".format(s)] for s in range(len(depths))]
    # The last stages may have smaller windows, limited by their grid.
    rows = max(table.shape[0] for table in tables)
    return fields | {
        "num_heads": tuple(table.shape[1] for table in tables),
        "window_size": ((_root(rows) or 0) + 1) // 2,
    }


def _depths(state: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    found = [
        (int(m[1]), int(m[2]))
        for name in state
        if (m := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight", name))
    ]
    stages = len({stage for stage, _ in found})
    return tuple(sum(stage == s for s, _ in found) for stage in range(stages))


def _mlp_ratio(state: Mapping[str, np.ndarray], block: str, width: int) -> float:
    return len(state[f"{block}.mlp.fc1.weight"]) / width


def _root(n: int) -> int | None:
    root = math.isqrt(max(n, 0))
    return root if root**2 == n else None
