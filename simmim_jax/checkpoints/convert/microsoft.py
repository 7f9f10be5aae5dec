"""Files of the official code (SimMIM and Swin-Transformer), and similar files.

A checkpoint holds tensors under "model" and a yacs config under "config". Both official
repositories use the same setting names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.checkpoints.convert import files, timm
from simmim_jax.checkpoints.convert.model import Model, Overrides
from simmim_jax.errors import UserError
from simmim_jax.models.layers import relative_offsets
from simmim_jax.models.swin_v2 import log_spaced_offsets
from simmim_jax.models.vit import relative_position_index
from simmim_jax.models.windows import fit_window, shift_mask

_TYPES = {"vit": "VIT", "swin": "SWIN", "swin_v2": "SWINV2"}
_NORM_EPS = {"vit": 1e-6, "swin": 1e-5, "swin_v2": 1e-5}
# Official setting -> field of config.model: all encoders, Swin only, ViT only.
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


def read(path: Path, overrides: Overrides) -> Model:
    """Read a file with names of the official code or timm.

    Buffers, which are computed from sizes, are left out, as are other groups of
    tensors, such as averages under "model_ema". Raises UserError if the file does not
    determine the model.
    """
    tensors, rest = files.read(path)
    # The first files of Swin V2 have another name for the position MLP.
    state = files.rename(tensors, lambda name: name.replace(".rpe_mlp.", ".cpb_mlp."))
    config, names = rest.get("config", {}), rest.get("class_names", ())
    with files.parsing_settings(path):
        config = json.loads(config) if isinstance(config, str) else config
        names = json.loads(names) if isinstance(names, str) else names
        fields, data = _model_fields(config), _data_fields(config)
    return Model.from_state(
        timm.to_official(state),
        overrides,
        model=fields,
        data=data,
        class_names=names,
        unread=files.tensor_groups(rest),
    )


def write(model: Model, path: Path) -> None:
    """Write a file like the official code: .pth, or the same as .safetensors.

    It includes buffers, so that official models load it strictly. Raises UserError if
    the official code has no such model.
    """
    name, eps = model.model["name"], model.model["norm_eps"]
    if eps != _NORM_EPS[name]:
        raise UserError(
            f"model.norm_eps={eps} does not exist in the official code. Expected "
            f"{_NORM_EPS[name]}; write another format, such as --to=huggingface."
        )
    rest = {"config": _config(model), "class_names": list(model.class_names)}
    if path.suffix == ".safetensors":
        rest = {key: json.dumps(value) for key, value in rest.items()}
    files.write(path, {**model.state, **_buffers(model)}, **rest)


# ---- The config ----------------------------------------------------------------------


def _model_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.model that shapes do not determine."""
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


def _data_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    if "DATA" not in config:
        return {}
    data: dict[str, Any] = {"image_size": _pair(config["DATA"]["IMG_SIZE"])}
    if config["DATA"].get("INTERPOLATION") in ("bilinear", "bicubic"):
        data["interpolation"] = config["DATA"]["INTERPOLATION"]
    if not config.get("TEST", {}).get("CROP", True):
        data["eval_crop"] = 1.0
    for name in ("mean", "std"):  # only in files that we wrote
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
    """Buffers that official models compute from sizes, and save nevertheless."""
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
