"""Files of the official code (SimMIM and Swin-Transformer), and similar files.

A checkpoint holds tensors under "model" and a yacs config under "config". Both official
repositories use the same setting names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.checkpoints.convert import files, settings, timm
from simmim_jax.checkpoints.convert.model import Model, unwrap
from simmim_jax.checkpoints.convert.overrides import (
    DATA_FIELDS,
    PROBABILITIES,
    Overrides,
    own_preparation,
)
from simmim_jax.checkpoints.convert.settings import Settings
from simmim_jax.errors import UserError
from simmim_jax.models.layers import relative_offsets
from simmim_jax.models.swin_v2 import log_spaced_offsets
from simmim_jax.models.vit import relative_position_index
from simmim_jax.models.windows import shift_mask

_TYPES = {"vit": "VIT", "swin": "SWIN", "swin_v2": "SWINV2"}
_SECTIONS = {section.lower(): section for section in _TYPES.values()}
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
# Settings that tensors determine, or that only affect training and speed.
_IGNORED_DATA = (
    "BATCH_SIZE", "DATA_PATH", "DATASET", "PIN_MEMORY", "NUM_WORKERS", "ZIP_MODE",
    "CACHE_MODE",
)  # fmt: skip
_IGNORED_MODEL = (
    "NAME", "PRETRAINED", "RESUME", "NUM_CLASSES", "DROP_RATE", "LABEL_SMOOTHING",
    "SWIN", "SWINV2", "VIT", "SWIN_MOE", "SWIN_MLP",
)  # fmt: skip
_IGNORED_SECTION = (
    "PATCH_SIZE", "IN_CHANS", "EMBED_DIM", "DEPTH", "DEPTHS", "MLP_RATIO", "QKV_BIAS",
    "APE", "PATCH_NORM", "USE_APE", "USE_RPB", "USE_SHARED_RPB", "USE_MEAN_POOLING",
)  # fmt: skip
# Our settings in files that we wrote, and their fields of config.data.
_OURS = {
    "MEAN": "mean",
    "STD": "std",
    "EVAL_CROP": "eval_crop",
    "EVAL_FIT": "eval_fit",
    "EVAL_CENTER": "eval_center",
}
# `_pil_interp`: other names, such as "nearest", mean bilinear.
_FILTERS = ("bicubic", "lanczos", "hamming")
# The official evaluation takes images up to this size as they are.
_MAX_UNRESIZED = 32


def read(path: Path, overrides: Overrides) -> Model:
    """Read a file with names of the official code or timm.

    Buffers, which are computed from sizes, are left out, as are other groups of
    tensors, such as averages under "model_ema". Raises UserError if the file does not
    determine the model.
    """
    tensors, rest = files.read(path)
    # The first files of Swin V2 have another name for the position MLP.
    state = files.rename(tensors, lambda name: name.replace(".rpe_mlp.", ".cpb_mlp."))
    state, left_out, notes = unwrap(state, overrides.leave_out)
    config = Settings(_parsed(rest.get("config", {}), path), f"the config of '{path}'")
    named = {"class_names": _parsed(rest.get("class_names"), path)}
    names = Settings(named, f"'{path}'").take("class_names", settings.texts, ())
    fields: dict[str, Any] = {}
    data: dict[str, Any] = {}
    objective: dict[str, Any] = {}
    loss = "softmax"
    if "MODEL" in config:
        section = config.section("MODEL")
        loss = section.take("PROBABILITIES", PROBABILITIES, "softmax")
        objective["target"] = _target_fields(section.section("SIMMIM"))
        fields = _model_fields(section)
    if "DATA" in config:
        section = config.section("DATA")
        objective["mask"] = _mask_fields(section)
        data = _data_fields(section, config.section("TEST"))
    if not data:
        notes.append(
            "the file does not say how images are prepared: assumed ImageNet's mean "
            "and standard deviation, and the official crop; --data.FIELD=VALUE changes "
            "it"
        )
    if is_timm_swin := timm.is_swin(state):
        fields.setdefault("pad_after_shift", True)
    model = Model.from_state(
        timm.to_official(state),
        overrides,
        model=fields,
        data=data,
        class_names=names,
        loss=loss,
        objective=objective,
        unread=(*left_out, *files.tensor_groups(rest)),
        notes=notes,
    )
    if is_timm_swin:
        timm.check_windows(model)
    return model


def write(model: Model, path: Path) -> None:
    """Write a file like the official code: .pth, or the same as .safetensors.

    It includes buffers, so that official models load it strictly. Raises UserError if
    the official code has no such model.
    """
    if reason := _unsupported(model):
        raise UserError(
            f"the official code has no such model: {reason}. Write another format, "
            "--to=huggingface or --to=timm."
        )
    rest = {"config": _config(model), "class_names": list(model.class_names)}
    if path.suffix == ".safetensors":
        rest = {key: json.dumps(value) for key, value in rest.items()}
    files.write(path, {**model.state, **_buffers(model)}, **rest)


def notes(model: Model) -> list[str]:
    """Return what the file cannot hold."""
    lost = []
    if own := own_preparation(model.data):
        lost.append(f"the official code reads photographs: prepare {own} yourself")
    mask = model.objective.get("mask")
    if model.kind == "pre-training model" and mask and not _is_official(mask):
        lost.append(
            "the official code hides random squares: config.mask.kind="
            f"{mask.get('kind')!r} in units of {mask['unit_size']} is not kept"
        )
    return lost


def _unsupported(model: Model) -> str:
    """Reason why the official code does not have the model, or ""."""
    fields, data = model.model, model.data
    name = fields["name"]
    if fields["norm_eps"] != _NORM_EPS[name]:
        return f"its model.norm_eps is {_NORM_EPS[name]}, not {fields['norm_eps']}"
    if model.kind == "pre-training model":
        for part, size in (
            ("images", data["image_size"]),
            ("patches", fields["patch_size"]),
        ):
            if size[0] != size[1]:
                return f"it pre-trains on square {part}, not {size[0]}x{size[1]}"
        if model.channels != 3:
            return f"its decoder predicts 3 channels, not {model.channels}"
    if model.kind == "classifier":
        order = (fields["pool"], fields["pool_norm"], fields.get("final_norm", True))
        if order not in (
            (("mean", True, False), ("cls", False, True))
            if name == "vit"
            else (("mean", False, True),)
        ):
            return (
                f"its {name} does not pool as (pool, pool_norm, final_norm) = {order}"
            )
    elif not fields.get("final_norm", True):
        return "its encoders have final_norm=True, not False"
    if data["interpolation"] not in ("bilinear", *_FILTERS):
        return f"it does not resize with data.interpolation={data['interpolation']!r}"
    return "" if name == "vit" else _unsupported_windows(model)


def _unsupported_windows(model: Model) -> str:
    """Reason why official windows do not fit the images, or ""."""
    image = "x".join(map(str, model.data["image_size"]))
    last = len(model.model["depths"]) - 1
    for number, stage in enumerate(model.stages()):
        grid = "x".join(map(str, stage.grid))
        if stage.pads:
            return (
                f"it does not pad, and windows of {stage.window} do not divide the "
                f"grid of {grid} that images of {image} have in stage {number}"
            )
        if number < last and (stage.grid[0] % 2 or stage.grid[1] % 2):
            return (
                f"it merges 2x2 patches without padding, and images of {image} have "
                f"an odd grid of {grid} in stage {number}"
            )
    return ""


# ---- The config ----------------------------------------------------------------------


def _parsed(value: Any, path: Path) -> Any:
    """Return a value that .safetensors files hold as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"'{path}' has a setting that is not JSON ({error}). Expected 'config' and "
            "'class_names' as JSON text; correct or remove them."
        ) from error


def _model_fields(model: Settings) -> dict[str, Any]:
    """Fields of config.model that shapes do not determine."""
    kind = model.take("TYPE", settings.one_of(_SECTIONS))
    if kind not in model:
        model.take(kind, settings.text)  # raises
    section = model.section(kind)
    fields = {"drop_path_rate": model.take("DROP_PATH_RATE", settings.rate, 0.0)}
    model.ignore(_IGNORED_MODEL)
    model.finish()
    if kind == "VIT":
        fields["num_heads"] = section.take("NUM_HEADS", settings.size, None)
        if scale := section.take("INIT_VALUES", settings.number, 0.0):
            fields["layer_scale"] = scale
    else:
        section.ignore(["NUM_HEADS"])
        fields["window_size"] = section.take("WINDOW_SIZE", settings.size, None)
        windows = section.take("PRETRAINED_WINDOW_SIZES", settings.sizes_or_zeros, ())
        if kind == "SWINV2":
            fields["pretrained_window_sizes"] = windows if any(windows) else ()
    section.expect("QK_SCALE", reason="our attention scales with 1 / sqrt(head width)")
    section.ignore(_IGNORED_SECTION)
    section.finish()
    return fields


def _target_fields(simmim: Settings) -> dict[str, Any]:
    """Fields of config.target."""
    norm = simmim.section("NORM_TARGET")
    simmim.finish()
    is_normalized = norm.take("ENABLE", settings.flag, False)
    window = norm.take("PATCH_SIZE", settings.size, 47)
    norm.finish()
    return {"kind": "normalized", "window": window} if is_normalized else {}


def _mask_fields(data: Settings) -> dict[str, Any]:
    """Fields of config.mask, which SimMIM's files have; defaults are SimMIM's."""
    if not ("MASK_PATCH_SIZE" in data or "MASK_RATIO" in data):
        return {}
    return {
        "unit_size": data.take("MASK_PATCH_SIZE", settings.pair, (32, 32)),
        "ratio": data.take("MASK_RATIO", settings.rate, 0.6),
    }


def _is_official(mask: Mapping[str, Any]) -> bool:
    """Whether the official code hides so, too: squares at random places."""
    height, width = mask["unit_size"]
    return mask.get("kind", "random") == "random" and height == width


def _data_fields(config: Settings, test: Settings) -> dict[str, Any]:
    data: dict[str, Any] = {"image_size": config.take("IMG_SIZE", settings.pair)}
    name = config.take("INTERPOLATION", settings.text, "bicubic")
    if name == "random":
        raise config.refusal("INTERPOLATION", name, "we resize in one way")
    data["interpolation"] = name if name in _FILTERS else "bilinear"
    crops = test.take("CROP", settings.flag, True)
    if not crops or max(data["image_size"]) <= _MAX_UNRESIZED:
        data["eval_crop"] = 1.0
    for official, ours in _OURS.items():
        if official in config:
            data[ours] = config.take(official, DATA_FIELDS[ours])
    config.ignore(_IGNORED_DATA)
    config.finish()
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
    mask, target = (model.objective.get(name, {}) for name in ("mask", "target"))
    masks = {}  # SimMIM's own
    if mask and _is_official(mask):
        masks = {"MASK_PATCH_SIZE": mask["unit_size"][0], "MASK_RATIO": mask["ratio"]}
    normalized = {
        "ENABLE": target.get("kind") == "normalized",
        "PATCH_SIZE": target.get("window", 47),
    }
    return {
        "DATA": {
            "IMG_SIZE": _single(data["image_size"]),
            "INTERPOLATION": data["interpolation"],
        }
        | masks
        | {
            official: list(value) if isinstance(value, tuple) else value
            for official, ours in _OURS.items()
            if (value := data.get(ours)) is not None
        },
        "MODEL": {
            "TYPE": kind.lower(),
            "NUM_CLASSES": len(model.class_names),
            "DROP_PATH_RATE": fields["drop_path_rate"],
            "PROBABILITIES": model.loss,
            "SIMMIM": {"NORM_TARGET": normalized},
            kind: section,
        },
        "TEST": {"CROP": data["eval_crop"] < 1},
    }


def _single(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


# ---- Buffers -------------------------------------------------------------------------


def _buffers(model: Model) -> dict[str, np.ndarray]:
    """Buffers that official models compute from sizes, and save nevertheless."""
    fields = model.model
    prefix = "encoder." if model.kind == "pre-training model" else ""
    buffers: dict[str, np.ndarray] = {}
    if fields["name"] == "vit":
        index = relative_position_index(*model.grid).astype(np.int64)
        names = [f"blocks.{i}.attn" for i in range(fields["depth"])]
        names = names if fields["use_rel_pos_bias"] else []
        names += ["rel_pos_bias"] if fields["use_shared_rel_pos_bias"] else []
        return {f"{prefix}{n}.relative_position_index": index for n in names}
    windows = fields.get("pretrained_window_sizes") or (0,) * len(fields["depths"])
    for number, (grid, window, shift, depth) in enumerate(model.stages()):
        index = relative_offsets(window, window).astype(np.int64)
        mask = shift_mask(grid, window, shift)
        for block in range(depth):
            name = f"{prefix}layers.{number}.blocks.{block}"
            buffers[f"{name}.attn.relative_position_index"] = index
            if mask is not None and block % 2:
                buffers[f"{name}.attn_mask"] = mask
            if fields["name"] == "swin_v2":
                side = 2 * window - 1
                table = log_spaced_offsets(window, windows[number])
                buffers[f"{name}.attn.relative_coords_table"] = table.reshape(
                    1, side, side, 2
                )
    return buffers
