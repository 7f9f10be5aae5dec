"""Folders of Hugging Face transformers: Swin, Swin V2, ViT and BEiT.

The ViT of transformers has absolute positions only. The official ViT, with relative
positions or LayerScale, is their BEiT, which has no pixel decoder: a pre-training model
becomes a `BeitModel`, and the file also holds the decoder's tensors.

Their Swin V2 adds the mask of shifted windows twice: -200 instead of the official -100,
which matters only if logits are that large.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.checkpoints.convert import files
from simmim_jax.checkpoints.convert.huggingface_names import (
    TABLE,
    from_official,
    to_official,
)
from simmim_jax.checkpoints.convert.model import Model, Overrides
from simmim_jax.errors import NotFoundError, UserError

# `model_type` in config.json -> prefix of class names.
MODEL_TYPES = {"swin": "Swin", "swinv2": "Swinv2", "vit": "ViT", "beit": "Beit"}
_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# Swin's patch embedding and merging ignore config.json's layer_norm_eps.
_SWIN_NORM_EPS = 1e-5


def is_folder(path: Path) -> bool:
    """Return whether a folder has a config.json of transformers."""
    return "model_type" in files.read_json(path / "config.json")


def read(path: Path, overrides: Overrides) -> Model:
    """Read a folder written by `save_pretrained`; raise UserError for other models.

    The biases of a ViT's keys, which have no effect, are left out.
    """
    config = files.read_json(path / "config.json")
    with files.parsing_settings(path):
        _check_config(config, path)
        fields = _model_fields(config)
        data = _data_fields(config, files.read_json(path / "preprocessor_config.json"))
        if names := config.get("id2label", {}):
            names = [name for _, name in sorted(names.items(), key=lambda x: int(x[0]))]
    state = to_official(_read_tensors(path), config["model_type"])
    return Model.from_state(
        state,
        overrides,
        model=fields,
        data=data,
        class_names=names if "head.weight" in state else (),
    )


def write(model: Model, path: Path) -> None:
    """Write a folder for `from_pretrained`, with class names and an image processor.

    Raises UserError if transformers has no such model.
    """
    model_type = _model_type(model)
    if reason := _unsupported(model, model_type):
        raise UserError(
            f"transformers has no such model: {reason}. Write --to=official or "
            "--to=timm."
        )
    # A class for a task has its encoder under a name; an encoder's own class does not.
    prefix = "" if _architecture(model, model_type).endswith("Model") else model_type
    state = from_official(model.bare_state(), model_type, prefix)
    files.write_folder(
        path,
        state,
        config=_config(model, model_type),
        preprocessor_config=_processor(model.data),
    )


# ---- config.json ---------------------------------------------------------------------


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    kind = config["model_type"]
    if kind not in MODEL_TYPES:
        raise UserError(
            f"'{path}' has model_type={kind!r}. Expected one of {sorted(MODEL_TYPES)}."
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(
            f"'{path}' has hidden_act={config['hidden_act']!r}. Expected 'gelu', the "
            "exact one."
        )
    eps = config.get("layer_norm_eps", _SWIN_NORM_EPS)
    if kind in ("swin", "swinv2") and eps != _SWIN_NORM_EPS:
        raise UserError(
            f"'{path}' has layer_norm_eps={eps} in its blocks, and {_SWIN_NORM_EPS} "
            f"elsewhere. Expected layer_norm_eps={_SWIN_NORM_EPS}."
        )


def _model_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.model that shapes do not determine."""
    rate = config.get("drop_path_rate", 0.0)
    fields: dict[str, Any] = {"drop_path_rate": float(rate)}
    if config["model_type"] in ("vit", "beit"):
        fields["num_heads"] = config.get("num_attention_heads")
        fields["norm_eps"] = config.get("layer_norm_eps", 1e-12)
        if scale := config.get("layer_scale_init_value"):
            fields["layer_scale"] = scale
        return fields
    fields["window_size"] = config.get("window_size")
    windows = config.get("pretrained_window_sizes", ())
    if config["model_type"] == "swinv2":
        fields["pretrained_window_sizes"] = tuple(windows) if any(windows) else ()
    return fields


def _model_type(model: Model) -> str:
    fields = model.model
    if fields["name"] != "vit":
        return {"swin": "swin", "swin_v2": "swinv2"}[fields["name"]]
    tables = fields["use_rel_pos_bias"] or fields["use_shared_rel_pos_bias"]
    plain = fields["use_abs_pos_emb"] and not tables and not fields["layer_scale"]
    # Their ViT always has a final norm, and classifies by its class token.
    return "vit" if plain and fields["final_norm"] else "beit"


def _unsupported(model: Model, kind: str) -> str:
    """Reason why transformers does not have the model, or ""."""
    fields, image_size = model.model, model.data["image_size"]
    for name, size in (("images", image_size), ("patches", fields["patch_size"])):
        if size[0] != size[1]:
            return f"it expects square {name}, not {size[0]}x{size[1]}"
    if kind in ("vit", "beit"):
        pooled = (fields.get("pool"), fields.get("pool_norm"), fields["final_norm"])
        if model.kind == "classifier" and pooled not in (
            ("mean", True, False),
            ("cls", False, True),
        ):
            return (
                "its classifiers average patches and then normalise, or normalise and "
                "take the class token; here (pool, pool_norm, final_norm) = "
                f"{pooled}"
            )
        return ""
    if not fields["patch_norm"]:
        return "its Swin has patch_norm=True, not False"
    if fields["norm_eps"] != _SWIN_NORM_EPS:
        return f"its Swin has norm_eps={_SWIN_NORM_EPS}, not {fields['norm_eps']}"
    rows = (2 * fields["window_size"] - 1) ** 2
    for name, value in model.state.items():
        if name.endswith(TABLE) and len(value) != rows:
            return (
                f"its Swin has windows of {fields['window_size']} in all stages, but "
                f"{name} is for a smaller one, because the image is small"
            )
    return ""


def _architecture(model: Model, kind: str) -> str:
    if model.kind == "classifier":
        return f"{MODEL_TYPES[kind]}ForImageClassification"
    if model.kind == "pre-training model" and kind != "beit":
        return f"{MODEL_TYPES[kind]}ForMaskedImageModeling"
    return f"{MODEL_TYPES[kind]}Model"


def _config(model: Model, kind: str) -> dict[str, Any]:
    fields, data = model.model, model.data
    config: dict[str, Any] = {
        "model_type": kind,
        "architectures": [_architecture(model, kind)],
        "dtype": "float32",
        "image_size": data["image_size"][0],
        "patch_size": fields["patch_size"][0],
        "num_channels": model.channels,
        "hidden_act": "gelu",
        "layer_norm_eps": fields["norm_eps"],
        "qkv_bias": fields["qkv_bias"],
    }
    config |= (_vit_config if kind in ("vit", "beit") else _swin_config)(model, kind)
    if model.class_names:
        config["id2label"] = dict(enumerate(model.class_names))
        config["label2id"] = {name: i for i, name in enumerate(model.class_names)}
    return config


def _vit_config(model: Model, kind: str) -> dict[str, Any]:
    fields = model.model
    config = {
        "hidden_size": fields["embed_dim"],
        "num_hidden_layers": fields["depth"],
        "num_attention_heads": fields["num_heads"],
        "intermediate_size": int(fields["embed_dim"] * fields["mlp_ratio"]),
        "encoder_stride": fields["patch_size"][0],
    }
    if kind == "beit":
        config |= {
            "use_mask_token": "mask_token" in model.bare_state(),
            "use_absolute_position_embeddings": fields["use_abs_pos_emb"],
            "use_relative_position_bias": fields["use_rel_pos_bias"],
            "use_shared_relative_position_bias": fields["use_shared_rel_pos_bias"],
            "layer_scale_init_value": fields["layer_scale"],
            "drop_path_rate": fields["drop_path_rate"],
            "use_mean_pooling": not fields["final_norm"],
        }
    return config


def _swin_config(model: Model, kind: str) -> dict[str, Any]:
    fields, stages = model.model, len(model.model["depths"])
    config = {
        "embed_dim": fields["embed_dim"],
        "depths": fields["depths"],
        "num_heads": fields["num_heads"],
        "window_size": fields["window_size"],
        "mlp_ratio": fields["mlp_ratio"],
        "drop_path_rate": fields["drop_path_rate"],
        "use_absolute_embeddings": fields["use_abs_pos_emb"],
        "encoder_stride": fields["patch_size"][0] * 2 ** (stages - 1),
    }
    if kind == "swinv2":
        windows = fields["pretrained_window_sizes"] or [0] * stages
        config["pretrained_window_sizes"] = windows
    return config


# ---- preprocessor_config.json --------------------------------------------------------


def _data_fields(
    config: Mapping[str, Any], processor: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of config.data that the folder determines."""
    data: dict[str, Any] = {}
    if "image_size" in config:
        data["image_size"] = _pair(config["image_size"])
    if "image_mean" in processor:
        data["mean"] = tuple(processor["image_mean"])
        data["std"] = tuple(processor["image_std"])
    if processor.get("resample") in _FILTERS:
        data["interpolation"] = _FILTERS[processor["resample"]]
    short_side = processor.get("size", {})
    if isinstance(short_side, Mapping):
        short_side = short_side.get("shortest_edge")
    if "crop_pct" in processor:
        data["eval_crop"] = processor["crop_pct"]
    elif processor.get("do_center_crop") and short_side:
        data["eval_crop"] = _crop_fraction(_pair(processor["crop_size"])[0], short_side)
    elif processor:
        data["eval_crop"] = 1.0
    return data


def _crop_fraction(size: int, short_side: int) -> float:
    """Return size / short_side, such that int(size / fraction) is the short side."""
    fraction = size / short_side
    return fraction if int(size / fraction) == short_side else size / (short_side + 0.5)


def _processor(data: Mapping[str, Any]) -> dict[str, Any]:
    height, width = data["image_size"]
    size = {"height": height, "width": width}
    crops = data["eval_crop"] < 1
    processor = {
        "image_processor_type": "BitImageProcessor" if crops else "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(height / data["eval_crop"])} if crops else size,
        "resample": next(k for k, v in _FILTERS.items() if v == data["interpolation"]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": data["mean"],
        "image_std": data["std"],
        "do_convert_rgb": data["channels"] == 3,
    }
    if crops:
        # crop_pct is for our reader: the two sizes are rounded.
        processor |= {"do_center_crop": True, "crop_size": size}
        processor["crop_pct"] = data["eval_crop"]
    return processor


# ---- Files ---------------------------------------------------------------------------


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a folder, from one file or the shards listed in an index."""
    for name in (files.WEIGHTS, "pytorch_model.bin"):
        index = files.read_json(path / f"{name}.index.json").get("weight_map")
        parts = sorted(set(index.values())) if index else [name]
        if (path / parts[0]).is_file():
            tensors: dict[str, np.ndarray] = {}
            for part in parts:
                tensors |= files.read(path / part)[0]
            return tensors
    raise NotFoundError(
        f"'{path}' has a config.json, but no weights. Expected model.safetensors or "
        "pytorch_model.bin: complete the download."
    )


def _pair(size: Any) -> tuple[int, int]:
    """Height and width of 224, (192, 256) or {"height": 192, "width": 256}."""
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    return (size, size) if isinstance(size, int) else tuple(size)
