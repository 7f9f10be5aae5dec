"""Files and folders of timm: Swin, Swin V2, BEiT and ViT.

timm has no masked image modelling: a pre-training model is written as its encoder,
without mask token and decoder. The official ViT is timm's BEiT; a ViT with absolute
positions only is timm's ViT.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.checkpoints.convert import files, settings
from simmim_jax.checkpoints.convert.model import Model, Stage, unwrap
from simmim_jax.checkpoints.convert.overrides import (
    FILTERS,
    Overrides,
    own_preparation,
)
from simmim_jax.checkpoints.convert.settings import Settings
from simmim_jax.errors import UserError

# A model of each class for `create_model`; all of its sizes are replaced.
ARCHITECTURES = {
    "swin": "swin_base_patch4_window7_224",
    "swin_v2": "swinv2_base_window8_256",
    "beit": "beit_base_patch16_224",
    "vit": "vit_base_patch16_224",
}
# Architectures whose arithmetic is that of our models; tensors tell the rest. Others,
# such as those with QuickGELU, have the same tensors and compute something else.
_KNOWN = re.compile(
    r"swin_(tiny|small|base|large)_patch4_window\d+_\d+"
    r"|swinv2_(tiny|small|base|large)_window\d+(to\d+)?_\d+(to\d+)?"
    r"|beit(v2)?_(base|large)_patch\d+_\d+"
    r"|deit3?_(tiny|small|medium|base|large|huge)_patch\d+_\d+"
    r"|vit_(tiny|small|base|large|huge|giant|gigantic)_patch\d+_\d+(_miil)?"
    r"|vit_(small|base|large)_patch14_dinov2"
    r"|eva_large_patch14_\d+"
)
_NORM_EPS = {"swin": 1e-5, "swin_v2": 1e-5, "beit": 1e-6, "vit": 1e-6}
# Arguments of timm's models that tensors determine, or that only affect training.
_IGNORED = (
    "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "depths", "head_dim",
    "mlp_ratio", "qkv_bias", "qk_norm", "proj_bias", "class_token", "no_embed_class",
    "reg_tokens", "pos_embed", "pre_norm", "final_norm", "fc_norm", "use_fc_norm",
    "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias", "drop_rate",
    "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "weight_init", "fix_init", "head_init_scale", "device", "dtype",
    # These matter for images of another size than img_size, which are refused.
    "strict_img_size", "dynamic_img_size",
)  # fmt: skip
# Arguments that our models have no equivalent for, unless they are off.
_OFF = (
    "always_partition", "scale_attn_norm", "scale_mlp_norm", "pool_include_prefix",
    "dynamic_img_pad", "embed_layer", "embed_norm_layer", "norm_layer", "block_fn",
    "mlp_layer", "attn_layer", "swiglu_mlp", "scale_mlp", "use_naflex",
)  # fmt: skip
# Entries of config.json beside the model's arguments: names, sources, licences.
_IGNORED_TOP = ("num_classes", "num_features", "label_descriptions", "license", "tag")
_IGNORED_IMAGES = (
    "url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source",
    "custom_load", "architecture", "num_classes", "num_features", "tag", "license",
    "origin_url", "paper_name", "paper_ids", "notes", "description", "first_conv",
    "classifier", "pool_size", "min_input_size", "label_descriptions", "global_pool",
    # Alternatives to input_size and crop_pct, for timm's validation script.
    "test_input_size", "test_crop_pct",
)  # fmt: skip
_POOLS = {"avg": "mean", "token": "cls"}
# timm's crop_mode -> config.data.eval_fit.
_FITS = {"center": "cover", "squash": "squash", "border": "pad"}
# timm's defaults (`resolve_data_config`).
_CROP_PCT, _INPUT_SIZE = 0.875, (3, 224, 224)


def read(path: Path, overrides: Overrides) -> Model:
    """Read a folder written by `timm.models.save_for_hf`.

    The biases of a ViT's keys, which have no effect, are left out.
    """
    file = path / "config.json"
    config = Settings(settings.read_json(file), f"'{file}'")
    architecture = config.take("architecture", settings.text).partition(".")[0]
    if not _KNOWN.fullmatch(architecture):
        raise config.refusal(
            "architecture",
            architecture,
            "it is no ViT, Swin or Swin V2 whose arithmetic is known to be ours",
        )
    args = config.section("model_args")
    # Old files have image settings at the top level.
    images = config.section("pretrained_cfg") if "pretrained_cfg" in config else config
    names = images.take("label_names", settings.texts, ())
    names = config.take("label_names", settings.texts, names)
    names = config.take("labels", settings.texts, names)
    weights = next(
        (
            path / name
            for name in (files.WEIGHTS, "pytorch_model.bin")
            if (path / name).is_file()
        ),
        path / files.WEIGHTS,
    )
    tensors, left_out, notes = unwrap(files.read(weights)[0], overrides.leave_out)
    state = to_official(tensors)
    classifies = "head.weight" in state
    built_for = args.take("img_size", settings.pair, None)
    fields = _model_fields(args, architecture)
    pool = args.take("global_pool", settings.text, None)
    pool = pool or config.take("global_pool", settings.text, None)
    if classifies and pool:
        if pool not in _POOLS:
            raise config.refusal("global_pool", pool, "ours is 'avg' or 'token'")
        if fields["name"] == "vit":
            fields["pool"] = _POOLS[pool]
    fixed = images.take("fixed_input_size", settings.flag, False)
    data = _data_fields(images)
    if built_for and built_for != data["image_size"]:
        if not fixed:
            raise images.refusal(
                "input_size",
                data["image_size"],
                f"the model was built for img_size={built_for}",
            )
        data["image_size"] = built_for
    args.finish()
    images.ignore(_IGNORED_IMAGES)
    images.finish()
    config.ignore([*_IGNORED_TOP, "global_pool"])
    config.finish()
    model = Model.from_state(
        state,
        overrides,
        model={k: v for k, v in fields.items() if k != "name"},
        data=data,
        class_names=names if classifies else (),
        unread=left_out,
        notes=notes,
    )
    check_windows(model)
    return model


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


def notes(model: Model) -> list[str]:
    """Return what timm's config.json cannot hold."""
    lost = []
    if model.loss != "softmax":
        lost.append(f"timm has no setting for loss={model.loss!r}")
    if model.data.get("eval_center", "round") == "floor":
        lost.append(
            "timm rounds where a crop begins, data.eval_center='floor' does not: some "
            "images are cropped one pixel further"
        )
    if own := own_preparation(model.data):
        lost.append(f"timm's transform is for photographs: prepare {own} yourself")
    return lost


# ---- Tensors -------------------------------------------------------------------------


def is_swin(state: Mapping[str, np.ndarray]) -> bool:
    """Whether tensors are a Swin's in timm's names."""
    stages = {n.split(".")[1] for n in state if re.match(r"layers\.\d+\.downsample", n)}
    return "head.fc.weight" in state or (bool(stages) and "0" not in stages)


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


def _model_fields(args: Settings, architecture: str) -> dict[str, Any]:
    """Fields of config.model that shapes do not determine, from timm's arguments."""
    is_swin = architecture.startswith("swin")
    heads = settings.sizes if is_swin else settings.size
    fields: dict[str, Any] = {
        "name": "swin" if is_swin else "vit",
        "num_heads": args.take("num_heads", heads, None),
        "drop_path_rate": args.take("drop_path_rate", settings.rate, 0.0),
    }
    if scale := args.take("init_values", settings.number, 0.0):
        fields["layer_scale"] = scale
    if is_swin:
        fields["pad_after_shift"] = True
    if found := re.match(
        r"swinv2_[a-z]+_window(\d+)(?:to(\d+)_(\d+)to)?", architecture
    ):
        window, larger, image_size = found.groups()
        fields["window_size"] = int(larger or window)
        fields["pretrained_window_sizes"] = ()
        if larger:
            learned, grid = int(window), int(image_size) // 4
            fields["pretrained_window_sizes"] = tuple(
                min(learned, grid // 2**stage) for stage in range(4)
            )
    if "window_size" in args:
        height, width = args.take("window_size", settings.pair)
        if height != width:
            raise args.refusal("window_size", [height, width], "our windows are square")
        fields["window_size"] = height
    if "pretrained_window_sizes" in args:
        windows = args.take("pretrained_window_sizes", settings.sizes_or_zeros)
        fields["pretrained_window_sizes"] = windows if any(windows) else ()
    args.expect("act_layer", "gelu", False, reason="our MLPs use the exact 'gelu'")
    for name in _OFF:
        args.expect(name, False, reason="our models have no such variant")
    args.ignore(_IGNORED)
    return fields


def _data_fields(config: Settings) -> dict[str, Any]:
    """Fields of config.data with which evaluation gives the pixels of timm's."""
    _, *size = config.take("input_size", _input_size, _INPUT_SIZE)
    share = config.take("crop_pct", settings.share_or_zero, 0) or _CROP_PCT
    fit = config.take("crop_mode", settings.one_of(_FITS), "cover")
    filters = settings.one_of({name: name for name in FILTERS})
    data = {
        "image_size": tuple(size),
        "eval_crop": share,
        "interpolation": config.take("interpolation", filters, "bicubic"),
    }
    if fit != _official_fit(share, data["image_size"]):
        data["eval_fit"] = fit
    for name, parse in (("mean", settings.numbers), ("std", settings.deviations)):
        if name in config:
            data[name] = config.take(name, parse)
    return data


def _official_fit(share: float, size: tuple[int, ...]) -> str:
    """Return what eval_fit="official" does, if timm has it, or ""."""
    if share == 1:
        return "squash"
    return "cover" if size[0] == size[1] else ""


def _input_size(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError("channels, height and width")
    channels, height, width = map(settings.size, value)
    return channels, height, width


def check_windows(model: Model) -> None:
    """Raise UserError if timm's windows differ: it fits them to each side alone."""
    if model.model["name"] == "vit":
        return
    for stage in model.stages():
        if not _is_fitted_alike(stage):
            grid, size = (
                "x".join(map(str, x)) for x in (stage.grid, model.data["image_size"])
            )
            raise UserError(
                f"img_size {size} gives a grid of {grid}, to which timm fits windows "
                f"that are not square; ours are {stage.window}x{stage.window}. This "
                "model cannot be converted."
            )


def _is_fitted_alike(stage: Stage) -> bool:
    height, width = stage.grid
    return stage.window < min(height, width) or height == width


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
        return _unsupported_swin(model)
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


def _unsupported_swin(model: Model) -> str:
    fields = model.model
    height, width = model.data["image_size"]
    if height != width:
        return f"its Swin needs square images, not {height}x{width}"
    if fields["use_abs_pos_emb"] or not fields["patch_norm"]:
        return "its Swin has patch_norm=True and no absolute positions"
    if fields.get("pool_norm"):
        return "its Swin classifies with pool_norm=False"
    if model.pads_shifted and not fields.get("pad_after_shift"):
        return (
            f"at {height}x{width}, windows of {fields['window_size']} do not divide "
            "the grid, and timm pads it after the shift (pad_after_shift=True)"
        )
    return ""


def _crop_mode(data: Mapping[str, Any]) -> str:
    """Return timm's name for how evaluation fits images."""
    fit = data.get("eval_fit", "official")
    if fit == "official":
        fit = "squash" if data["eval_crop"] == 1 else "cover"
    return next(theirs for theirs, ours in _FITS.items() if ours == fit)


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
            "crop_mode": _crop_mode(data),
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
