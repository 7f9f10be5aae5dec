"""Files and folders of timm: Swin, Swin V2, BEiT and ViT.

timm has no masked image modelling: a pre-training model is written as its encoder,
without mask token and decoder. The official ViT is timm's BEiT; a ViT with absolute
positions only is timm's ViT.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.checkpoints.convert import files
from simmim_jax.checkpoints.convert.model import Model, Overrides
from simmim_jax.errors import UserError

# A model of each class for `create_model`; all of its sizes are replaced.
ARCHITECTURES = {
    "swin": "swin_base_patch4_window7_224",
    "swin_v2": "swinv2_base_window8_256",
    "beit": "beit_base_patch16_224",
    "vit": "vit_base_patch16_224",
}
_NORM_EPS = {"swin": 1e-5, "swin_v2": 1e-5, "beit": 1e-6, "vit": 1e-6}
# Arguments of timm's models that tensors determine, or that only affect training.
_IGNORED = {
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "depths",
    "head_dim", "mlp_ratio", "qkv_bias", "qk_norm", "proj_bias", "class_token",
    "no_embed_class", "reg_tokens", "pos_embed", "pre_norm", "final_norm", "fc_norm",
    "use_fc_norm", "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias",
    "strict_img_size", "dynamic_img_size", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "weight_init", "fix_init",
    "head_init_scale",
}  # fmt: skip
# Arguments that are fields of ours with the same name.
_FIELDS = ("num_heads", "window_size", "drop_path_rate", "pretrained_window_sizes")
_POOLS = {"avg": "mean", "token": "cls"}


def is_folder(path: Path) -> bool:
    """Return whether a folder has a config.json of timm."""
    return "architecture" in files.read_json(path / "config.json")


def read(path: Path, overrides: Overrides) -> Model:
    """Read a folder written by `timm.models.save_for_hf`.

    The biases of a ViT's keys, which have no effect, are left out.
    """
    config = json.loads((path / "config.json").read_text())
    weights = next(
        (
            path / name
            for name in (files.WEIGHTS, "pytorch_model.bin")
            if (path / name).is_file()
        ),
        path / files.WEIGHTS,
    )
    state = to_official(files.read(weights)[0])
    classifies = "head.weight" in state
    with files.parsing_settings(path):
        # Old files have image settings at the top level.
        images = config.get("pretrained_cfg", config)
        names = config.get("label_names") or images.get("label_names") or ()
        fields = _model_fields(config.get("model_args", {}), classifies)
        data = _data_fields(images)
    return Model.from_state(
        state,
        overrides,
        model=fields,
        data=data,
        class_names=names if classifies else (),
    )


def write(model: Model, path: Path) -> list[str]:
    """Write a file, or a folder for `timm.create_model("local-dir:…")`.

    A path with a suffix is a file of tensors only. Returns the official names of
    tensors that timm's model lacks. Raises UserError if timm has no such model.
    """
    kind = _kind(model)
    if reason := _unsupported(model, kind):
        raise UserError(
            f"timm has no such model: {reason}. Write --to=official or "
            "--to=huggingface."
        )
    state = from_official(model.bare_state(), kind)
    config = _config(model, kind)
    if path.suffix in files.SUFFIXES:
        files.write(path, state)
    else:
        files.write_folder(path, state, config=config)
    return [name for name in model.state if _is_for_masking(name)]


# ---- Tensors -------------------------------------------------------------------------


def to_official(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return timm's tensors in official names and layouts; official ones are kept.

    Biases of a ViT's keys become `attn.k_bias`, which official models lack.
    """
    # timm merges patches before a stage, the official code after it.
    merges_first = not any("layers.0.downsample." in name for name in state)

    def official_name(name: str) -> str:
        if merges_first:
            name = re.sub(r"(?<=layers\.)\d+(?=\.downsample)", _previous, name)
        name = re.sub(r"^head\.fc\.", "head.", name)
        return re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)

    official = {}
    for name, value in files.rename(state, official_name).items():
        if re.fullmatch(r"(encoder\.)?blocks\.\d+\.attn\.qkv\.bias", name):
            attn = name.removesuffix("qkv.bias")
            for which, part in zip("qkv", np.split(value, 3), strict=True):
                official[f"{attn}{which}_bias"] = part
        else:
            official[name] = value
    return official


def from_official(state: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Return official tensors, without `encoder.`, in timm's names.

    kind: key of ARCHITECTURES.
    """
    theirs = {}
    for name, value in state.items():
        if _is_for_masking(name):
            continue
        if kind in ("swin", "swin_v2"):
            name = re.sub(r"(?<=layers\.)\d+(?=\.downsample)", _next, name)
            name = re.sub(r"^head\.", "head.fc.", name)
        elif kind == "vit":
            name = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)
            if name.endswith("attn.q_bias"):
                v_bias = state[name.replace("q_bias", "v_bias")]
                value = np.concatenate([value, np.zeros_like(value), v_bias])
                name = name.replace("q_bias", "qkv.bias")
            elif name.endswith("attn.v_bias"):
                continue
        theirs[name] = value
    return theirs


def _previous(number: re.Match[str]) -> str:
    return str(int(number[0]) - 1)


def _next(number: re.Match[str]) -> str:
    return str(int(number[0]) + 1)


def _is_for_masking(name: str) -> bool:
    return name.startswith("decoder.") or name.endswith("mask_token")


# ---- config.json ---------------------------------------------------------------------


def _model_fields(args: Mapping[str, Any], classifies: bool) -> dict[str, Any]:
    """Fields of config.model that shapes do not determine, from timm's arguments.

    Raises UserError if the arguments make a model that we do not have.
    """
    unsupported = {
        name: value
        for name, value in args.items()
        if value
        and name not in {*_IGNORED, *_FIELDS, "init_values", "global_pool"}
        and (name, value) != ("act_layer", "gelu")
    }
    pool = args.get("global_pool")
    if classifies and pool and pool not in _POOLS:
        unsupported["global_pool"] = pool
    if unsupported:
        raise UserError(
            f"model_args in timm's config.json has {unsupported}, which our models do "
            "not support. Expected defaults: remove arguments that have no effect."
        )
    fields = {name: args[name] for name in _FIELDS if name in args}
    if classifies and pool:
        fields["pool"] = _POOLS[pool]
    if args.get("init_values"):
        fields["layer_scale"] = args["init_values"]
    match fields.get("window_size"):
        case [height, width] if height == width:
            fields["window_size"] = height
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    if not any(fields.get("pretrained_window_sizes", ())):
        fields.pop("pretrained_window_sizes", None)
    return fields


def _data_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if "input_size" in config:
        data["image_size"] = tuple(config["input_size"][1:])
    for ours, theirs in (("mean", "mean"), ("std", "std"), ("eval_crop", "crop_pct")):
        if theirs in config:
            value = config[theirs]
            data[ours] = tuple(value) if isinstance(value, list) else value
    if config.get("interpolation") in ("bilinear", "bicubic"):
        data["interpolation"] = config["interpolation"]
    return data


def _kind(model: Model) -> str:
    fields = model.model
    if fields["name"] != "vit":
        return fields["name"]
    tables = fields["use_rel_pos_bias"] or fields["use_shared_rel_pos_bias"]
    return "vit" if fields["use_abs_pos_emb"] and not tables else "beit"


def _unsupported(model: Model, kind: str) -> str:
    """Reason why timm does not have the model, or ""."""
    fields = model.model
    if fields["norm_eps"] != _NORM_EPS[kind]:
        return f"its norms have eps={_NORM_EPS[kind]}, not {fields['norm_eps']}"
    if fields["name"] != "vit":
        height, width = model.data["image_size"]
        if height != width:
            return f"its Swin needs square images, not {height}x{width}"
        if fields["use_abs_pos_emb"] or not fields["patch_norm"]:
            return "its Swin has patch_norm=True and no absolute positions"
        return ""
    if model.kind == "classifier":
        order = (fields["pool"], fields["pool_norm"], fields["final_norm"])
        if order not in (("mean", True, False), ("cls", False, True)):
            return (
                "its classifiers average patches and then normalise, or normalise and "
                f"take the class token; here (pool, pool_norm, final_norm) = {order}"
            )
    elif not fields["final_norm"]:
        return "its encoders have final_norm=True, not False"
    return ""


def _config(model: Model, kind: str) -> dict[str, Any]:
    fields, data = model.model, model.data
    height, width = data["image_size"]
    args: dict[str, Any] = {
        "img_size": (height, width),
        "patch_size": fields["patch_size"],
        "in_chans": model.channels,
        "embed_dim": fields["embed_dim"],
        "num_heads": fields["num_heads"],
        "mlp_ratio": fields["mlp_ratio"],
        "qkv_bias": fields["qkv_bias"],
        "drop_path_rate": fields["drop_path_rate"],
    }
    if fields["name"] == "vit":
        pools = {"mean": "avg", "cls": "token"}
        args |= {
            "depth": fields["depth"],
            "init_values": fields["layer_scale"] or None,
            "global_pool": pools[fields["pool"]] if "pool" in fields else "token",
        }
    else:
        args |= {"depths": fields["depths"], "window_size": fields["window_size"]}
    if kind == "beit":
        names = ("use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias")
        args |= {name: fields[name] for name in names}
    if kind == "swin_v2" and fields["pretrained_window_sizes"]:
        args["pretrained_window_sizes"] = fields["pretrained_window_sizes"]
    config: dict[str, Any] = {
        "architecture": ARCHITECTURES[kind],
        "num_classes": len(model.class_names),
        "model_args": args,
        "pretrained_cfg": {
            "input_size": (model.channels, height, width),
            "fixed_input_size": True,
            "interpolation": data["interpolation"],
            "crop_pct": data["eval_crop"],
            "mean": data["mean"],
            "std": data["std"],
            "num_classes": len(model.class_names),
            "first_conv": "patch_embed.proj",
            "classifier": "head" if fields["name"] == "vit" else "head.fc",
        },
    }
    if model.class_names:
        config["label_names"] = model.class_names
    return config
