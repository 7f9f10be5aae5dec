"""Files of the official code: SimMIM's and Swin-Transformer's, and others like them.

A checkpoint holds the tensors under "model" and a yacs config under "config". Both
official repositories name the same settings alike.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.checkpoints.convert import files, timm
from simmim_jax.checkpoints.convert.model import Given, Model
from simmim_jax.errors import UserError
from simmim_jax.models.layers import relative_offsets
from simmim_jax.models.swin_v2 import log_spaced_offsets
from simmim_jax.models.vit import relative_position_index
from simmim_jax.models.windows import fit_window, shift_mask

_TYPES = {"vit": "VIT", "swin": "SWIN", "swin_v2": "SWINV2"}
_NORM_EPS = {"vit": 1e-6, "swin": 1e-5, "swin_v2": 1e-5}
# Settings that the sections of all encoders have, of Swin's, of the ViT's.
_SECTION = {
    "PATCH_SIZE": "patch_size",
    "EMBED_DIM": "embed_dim",
    "NUM_HEADS": "num_heads",
    "MLP_RATIO": "mlp_ratio",
    "QKV_BIAS": "qkv_bias",
}
_SWIN = {
    "DEPTHS": "depths",
    "WINDOW_SIZE": "window_size",
    "APE": "use_abs_pos_emb",
    "PATCH_NORM": "patch_norm",
}
_VIT = {
    "DEPTH": "depth",
    "INIT_VALUES": "layer_scale",
    "USE_APE": "use_abs_pos_emb",
    "USE_RPB": "use_rel_pos_bias",
    "USE_SHARED_RPB": "use_shared_rel_pos_bias",
}


def read(path: Path, given: Given) -> Model:
    """From a file of official or timm's names.

    Index and mask buffers, which follow from the sizes, are left out, and so are other
    groups of tensors, such as the averages under "model_ema". ValueError where
    the file does not tell enough.
    """
    tensors, rest = files.read(path)
    # Swin V2's first files have another name for the MLP of positions.
    state = files.renamed(tensors, lambda name: name.replace(".rpe_mlp.", ".cpb_mlp."))
    config = rest.get("config", {})
    config = json.loads(config) if isinstance(config, str) else config
    with files.settings_of(path):
        fields, data = _known(config), _images(config)
    names = rest.get("class_names", ())
    return Model.describe(
        timm.to_official(state),
        given,
        model=fields,
        data=data,
        class_names=json.loads(names) if isinstance(names, str) else names,
        unread=files.tensor_groups(rest),
    )


def write(model: Model, path: Path) -> None:
    """Writes a file as the official code does: .pth, or the same as .safetensors.

    With the buffers of official models, so that they load it strictly. ValueError where
    the official code has no such model.
    """
    name, eps = model.model["name"], model.model["norm_eps"]
    if eps != _NORM_EPS[name]:
        raise UserError(
            f"the official code has no such model: its norms have eps="
            f"{_NORM_EPS[name]}, not {eps}."
        )
    rest = {"config": _config(model), "class_names": list(model.class_names)}
    if path.suffix == ".safetensors":
        rest = {key: json.dumps(value) for key, value in rest.items()}
    files.write(path, {**model.state, **_buffers(model)}, **rest)


# ---- The config ----------------------------------------------------------------------


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes do not tell."""
    if "MODEL" not in config:
        return {}
    kind = config["MODEL"]["TYPE"]
    section = config["MODEL"][kind.upper()]
    rate = config["MODEL"].get("DROP_PATH_RATE", 0.0)
    fields: dict[str, Any] = {"drop_path_rate": float(rate)}
    if kind == "vit":
        fields["num_heads"] = section.get("NUM_HEADS")
        if section.get("INIT_VALUES"):
            fields["layer_scale"] = section["INIT_VALUES"]
        return fields
    fields["window_size"] = section.get("WINDOW_SIZE")
    windows = section.get("PRETRAINED_WINDOW_SIZES") or ()
    if kind == "swinv2":
        fields["pretrained_window_sizes"] = tuple(windows) if any(windows) else ()
    return fields


def _images(config: Mapping[str, Any]) -> dict[str, Any]:
    if "DATA" not in config:
        return {}
    data: dict[str, Any] = {"image_size": _pair(config["DATA"]["IMG_SIZE"])}
    if config["DATA"].get("INTERPOLATION") in ("bilinear", "bicubic"):
        data["interpolation"] = config["DATA"]["INTERPOLATION"]
    if not config.get("TEST", {}).get("CROP", True):
        data["eval_crop"] = 1.0
    for name in ("mean", "std"):  # which our files alone have
        if name.upper() in config["DATA"]:
            data[name] = tuple(config["DATA"][name.upper()])
    return data


def _config(model: Model) -> dict[str, Any]:
    fields, data = model.model, model.data
    names = _SECTION | (_VIT if fields["name"] == "vit" else _SWIN)
    section = {official: fields[ours] for official, ours in names.items()}
    section = {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}
    section["PATCH_SIZE"] = _single(fields["patch_size"])
    section["IN_CHANS"] = model.channels
    if fields["name"] == "vit":
        section["USE_MEAN_POOLING"] = not fields["final_norm"]
    if fields["name"] == "swin_v2":
        windows = fields["pretrained_window_sizes"] or [0] * len(fields["depths"])
        section["PRETRAINED_WINDOW_SIZES"] = list(windows)
    kind = _TYPES[fields["name"]]
    return {
        "DATA": {
            "IMG_SIZE": _single(data["image_size"]),
            "INTERPOLATION": data["interpolation"],
            "MEAN": list(data["mean"]),
            "STD": list(data["std"]),
        },
        "MODEL": {
            "TYPE": kind.lower(),
            "NUM_CLASSES": len(model.class_names),
            "DROP_PATH_RATE": fields["drop_path_rate"],
            kind: section,
        },
        "TEST": {"CROP": data["eval_crop"] < 1},
    }


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _single(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


# ---- Buffers -------------------------------------------------------------------------


def _buffers(model: Model) -> dict[str, np.ndarray]:
    """What official models compute from their sizes and save all the same."""
    fields = model.model
    prefix = "encoder." if model.kind == "pre-training model" else ""
    grid = tuple(
        s // p
        for s, p in zip(model.data["image_size"], fields["patch_size"], strict=True)
    )
    buffers: dict[str, np.ndarray] = {}
    if fields["name"] == "vit":
        index = relative_position_index(*grid).astype(np.int64)
        names = [f"blocks.{i}.attn" for i in range(fields["depth"])]
        names = names if fields["use_rel_pos_bias"] else []
        names += ["rel_pos_bias"] if fields["use_shared_rel_pos_bias"] else []
        return {f"{prefix}{n}.relative_position_index": index for n in names}
    for stage, depth in enumerate(fields["depths"]):
        for block in range(depth):
            name = f"{prefix}layers.{stage}.blocks.{block}"
            shift = fields["window_size"] // 2 if block % 2 else 0
            window, shift = fit_window(grid, fields["window_size"], shift)
            index = relative_offsets(window, window).astype(np.int64)
            buffers[f"{name}.attn.relative_position_index"] = index
            mask = shift_mask(grid, window, shift)
            if mask is not None:
                buffers[f"{name}.attn_mask"] = mask
            if fields["name"] == "swin_v2":
                windows = fields["pretrained_window_sizes"] or (0,) * (stage + 1)
                table = log_spaced_offsets(window, windows[stage])
                side = 2 * window - 1
                table = table.reshape(1, side, side, 2)
                buffers[f"{name}.attn.relative_coords_table"] = table
        grid = tuple(-(-side // 2) for side in grid)
    return buffers
