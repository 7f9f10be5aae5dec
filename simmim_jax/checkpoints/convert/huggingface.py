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

from simmim_jax.checkpoints.convert import files, settings
from simmim_jax.checkpoints.convert.huggingface_names import (
    TABLE,
    from_official,
    to_official,
)
from simmim_jax.checkpoints.convert.huggingface_processor import (
    data_fields,
    lost_settings,
    processor_config,
)
from simmim_jax.checkpoints.convert.model import Model
from simmim_jax.checkpoints.convert.overrides import Overrides
from simmim_jax.checkpoints.convert.settings import Settings
from simmim_jax.errors import NotFoundError, UserError
from simmim_jax.models.windows import fit_window

# `model_type` in config.json -> prefix of class names.
MODEL_TYPES = {"swin": "Swin", "swinv2": "Swinv2", "vit": "ViT", "beit": "Beit"}
# Swin's patch embedding and merging ignore config.json's layer_norm_eps.
_SWIN_NORM_EPS = 1e-5
_PROCESSOR = "preprocessor_config.json"
# Settings that tensors determine, or that only affect training, segmentation and text.
_IGNORED = (
    "_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype",
    "model_type", "label2id", "num_labels", "finetuning_task", "task_specific_params",
    # Sizes.
    "patch_size", "num_channels", "embed_dim", "depths", "num_layers", "hidden_size",
    "num_hidden_layers", "intermediate_size", "mlp_ratio", "qkv_bias", "path_norm",
    "patch_norm", "use_absolute_embeddings", "encoder_stride", "use_mask_token",
    "use_absolute_position_embeddings", "use_relative_position_bias", "vocab_size",
    "use_shared_relative_position_bias", "use_mean_pooling", "pooler_output_size",
    "pooler_act",
    # Training.
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range",
    "gradient_checkpointing", "tie_word_embeddings", "chunk_size_feed_forward",
    # Outputs and segmentation.
    "return_dict", "output_attentions", "output_hidden_states", "torchscript",
    "out_features", "out_indices", "_out_features", "_out_indices", "stage_names",
    "segmentation_indices", "pool_scales", "use_auxiliary_head",
    "auxiliary_loss_weight", "auxiliary_channels", "auxiliary_num_convs",
    "auxiliary_concat_input", "semantic_loss_ignore_index", "add_fpn",
    "reshape_hidden_states", "attn_implementation", "_attn_implementation_autoset",
    "use_bfloat16", "tf_legacy_loss",
    # Generation of text, in files of old versions.
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p",
    "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "remove_invalid_values", "tokenizer_class", "prefix",
    "bos_token_id", "pad_token_id", "eos_token_id", "sep_token_id",
    "decoder_start_token_id",
)  # fmt: skip
# Settings that change what a model computes, unless they are empty.
_OFF = (
    "pruned_heads", "is_decoder", "is_encoder_decoder", "add_cross_attention",
    "tie_encoder_decoder", "auto_map", "quantization_config", "id2label_map",
)  # fmt: skip
# How `pipeline("image-classification")` turns logits into scores; those of one class
# alone are always of a sigmoid.
_PROBABILITIES = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}


def read(path: Path, overrides: Overrides) -> Model:
    """Read a folder written by `save_pretrained`; raise UserError for other models.

    The biases of a ViT's keys, which have no effect, are left out.
    """
    file = path / "config.json"
    config = Settings(settings.read_json(file), f"'{file}'")
    kind = config.take("model_type", settings.one_of({k: k for k in MODEL_TYPES}))
    fields = _model_fields(config, kind)
    image_size = config.take("image_size", settings.pair, (224, 224))
    names = config.take("id2label", _class_names, ())
    kinds = settings.one_of(_PROBABILITIES)
    loss = config.take("problem_type", kinds, "softmax")
    for name in _OFF:
        config.expect(name, False, {}, [], reason="our models have no such variant")
    config.ignore(_IGNORED)
    config.finish()
    notes = []
    data: dict[str, Any] = {}
    if processor := _processor(path):
        data = data_fields(processor, kind)
    else:
        notes.append(
            f"the folder has no {_PROCESSOR}: assumed ImageNet's mean and standard "
            "deviation, and the official crop; --data.FIELD=VALUE changes it"
        )
    state = to_official(_read_tensors(path), kind)
    classes = len(state.get("head.weight", ()))
    model = Model.from_state(
        state,
        overrides,
        model=fields,
        data={"image_size": image_size} | data,
        class_names=names if classes else (),
        loss="sigmoid" if classes == 1 else loss,
        notes=notes,
    )
    if kind == "swinv2":
        _check_windows(model)
    return model


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
        preprocessor_config=processor_config(model.data),
    )


def notes(model: Model) -> list[str]:
    """Return what the folder cannot hold, and where a backbone computes otherwise."""
    found = lost_settings(model.data)
    target = model.objective.get("target", {}).get("kind", "pixels")
    if model.kind == "pre-training model" and target != "pixels":
        found.append(
            f"the decoder predicts config.target.kind={target!r}, and the loss of "
            "transformers compares with pixels"
        )
    if model.model["name"] == "swin" and any(
        stage.depth > 1 and not stage.shift for stage in model.stages()
    ):
        height, width = model.data["image_size"]
        found.append(
            f"SwinBackbone shifts a grid of a single window, too, which SwinModel and "
            f"this package do not: the last maps of images of {height}x{width} differ. "
            "Give a backbone images of which every stage has several windows."
        )
    return found


# ---- config.json ---------------------------------------------------------------------


def _model_fields(config: Settings, kind: str) -> dict[str, Any]:
    """Fields of config.model that shapes do not determine; defaults are theirs."""
    config.expect("hidden_act", "gelu", reason="our MLPs use 'gelu', the exact one")
    rate = 0.0 if kind == "vit" else 0.1
    fields: dict[str, Any] = {
        "drop_path_rate": config.take("drop_path_rate", settings.rate, rate)
    }
    if kind in ("vit", "beit"):
        heads = config.take("num_attention_heads", settings.size, 12)
        eps = config.take("layer_norm_eps", settings.positive, 1e-12)
        fields |= {"num_heads": heads, "norm_eps": eps}
        if scale := config.take("layer_scale_init_value", settings.number, 0.0):
            fields["layer_scale"] = scale
        return fields
    eps = config.take("layer_norm_eps", settings.positive, _SWIN_NORM_EPS)
    if eps != _SWIN_NORM_EPS:
        raise config.refusal(
            "layer_norm_eps", eps, f"it is {_SWIN_NORM_EPS} outside of the blocks"
        )
    config.ignore(["num_attention_heads", "num_heads"])
    fields["window_size"] = config.take("window_size", settings.size, 7)
    if kind == "swinv2":
        windows = config.take("pretrained_window_sizes", settings.sizes_or_zeros, ())
        fields["pretrained_window_sizes"] = windows if any(windows) else ()
    return fields


def _processor(path: Path) -> Settings | None:
    """Return the image processor of a folder; a nested one takes precedence."""
    if (file := path / "processor_config.json").is_file():
        nested = Settings(settings.read_json(file), f"'{file}'")
        if "image_processor" in nested:
            return nested.section("image_processor")
    if (file := path / _PROCESSOR).is_file():
        return Settings(settings.read_json(file), f"'{file}'")
    return None


def _class_names(value: Any) -> tuple[str, ...]:
    """Names in the order of their ids, which count from 0."""
    if not isinstance(value, Mapping):
        raise TypeError("names by id")
    names = {int(number): settings.text(name) for number, name in value.items()}
    if sorted(names) != list(range(len(names))):
        raise ValueError("ids that count from 0")
    return tuple(names[number] for number in range(len(names)))


def _check_windows(model: Model) -> None:
    """Raise UserError if their Swin V2's windows differ: they ignore padded rows."""
    height, width = model.data["image_size"]
    for number, stage in enumerate(model.stages()):
        rows, columns = (side // 2**number for side in model.grid)
        window = model.model["window_size"]
        theirs = (min(rows, window), 0 if rows <= window else window // 2)
        ours = fit_window(stage.grid, window, window // 2)
        if theirs != ours or (rows <= window) != (columns <= window):
            raise UserError(
                f"images of {height}x{width} give a grid of {stage.grid[0]}x"
                f"{stage.grid[1]} in stage {number}, where the Swin V2 of transformers "
                f"has (window, shift) = {theirs} and ours {ours}. Expected an "
                "image_size that divides evenly."
            )


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
    if model.data.get("eval_fit") == "pad":
        return "its image processors do not pad (data.eval_fit='pad')"
    if model.data.get("dtype", "uint8") != "uint8":
        return f"its image processors take uint8, not {model.data['dtype']}"
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
    if fields.get("pool_norm"):
        return "its Swin classifies with pool_norm=False"
    if fields.get("pad_after_shift") and model.pads_shifted:
        return "its Swin pads before the shift, not after it (pad_after_shift=True)"
    stride = fields["patch_size"][0] * 2 ** (len(fields["depths"]) - 1)
    if model.kind == "pre-training model" and image_size[0] % stride:
        return f"its decoder needs images of a multiple of {stride} pixels"
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
    if model.loss == "sigmoid":
        config["problem_type"] = "multi_label_classification"
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


# ---- Files ---------------------------------------------------------------------------


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a folder, from one file or the shards listed in an index."""
    for name in (files.WEIGHTS, "pytorch_model.bin"):
        parts = [name]
        if (index := path / f"{name}.index.json").is_file():
            listed = Settings(settings.read_json(index), f"'{index}'")
            parts = listed.take("weight_map", _shards)
        if (path / parts[0]).is_file():
            tensors: dict[str, np.ndarray] = {}
            for part in parts:
                tensors |= files.read(path / part)[0]
            return tensors
    raise NotFoundError(
        f"'{path}' has a config.json, but no weights. Expected model.safetensors or "
        "pytorch_model.bin: complete the download."
    )


def _shards(value: Any) -> list[str]:
    """File names by tensor."""
    if not isinstance(value, Mapping) or not value:
        raise TypeError("file names by tensor")
    names = sorted(set(map(settings.text, value.values())))
    if any(name != Path(name).name for name in names):
        raise ValueError("names of files in the same folder")
    return names
