"""A model between two formats: official tensors, and fields of our configs."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.checkpoints import record, store
from simmim_jax.checkpoints.convert import infer
from simmim_jax.checkpoints.convert.official import from_official, to_official
from simmim_jax.errors import UserError
from simmim_jax.models import ENCODERS, build_classifier, build_encoder, build_simmim

# Input images of the official code (timm's ImageNet constants).
OFFICIAL_DATA = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "eval_crop": 224 / 256,
}
# Fields of config.model that belong to the head.
_HEAD = ("pool", "pool_norm", "head_scale")
# Buffers are computed from sizes. A bias of keys, which official models lack, adds the
# same number to all logits of a query, so softmax cancels it.
_REDUNDANT = re.compile(
    r"\.(relative_position_index|relative_coords_table|attn_mask|attn\.k_bias)$"
)


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Settings from the user, which take precedence over those of the checkpoint.

    model, data: fields of config.model and config.data. leave_out: regular expression
    for official names of tensors to leave out.
    """

    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: Sequence[str] = ()
    leave_out: str = ""


@dataclasses.dataclass(frozen=True)
class Model:
    """A pre-training model, a classifier, or an encoder alone.

    state: tensors in official names and layouts; in a pre-training model the names of
    the encoder start with `encoder.`. model, data: fields of config.model and
    config.data. left_out: names of tensors in the file, but not in `state`.
    """

    state: Mapping[str, np.ndarray]
    model: dict[str, Any]
    data: dict[str, Any]
    class_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, np.ndarray],
        overrides: Overrides,
        *,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        class_names: Sequence[str] = (),
        unread: Sequence[str] = (),
    ) -> "Model":
        """Build a model from official tensors, settings of their file and `overrides`.

        Shapes determine the rest. Raises UserError if a field remains unknown or has
        another type. unread: names of tensors in the file, but not in `state`.
        """
        left_out = [
            name
            for name in state
            if _REDUNDANT.search(name)
            or (overrides.leave_out and re.search(overrides.leave_out, name))
        ]
        state = {n: v for n, v in state.items() if n not in set(left_out)}
        fields = infer.model_fields(state, {**model, **_with_tuples(overrides.model)})
        defaults = _defaults(fields["name"])
        _check_names("model", overrides.model, {*defaults, *_HEAD})
        _check_names("data", overrides.data, {*OFFICIAL_DATA, "image_size"})
        fields = defaults | fields
        _check_types(fields, defaults)
        data = {**OFFICIAL_DATA, **data, **_with_tuples(overrides.data)}
        data["channels"] = _patch_weight(state).shape[1]
        if "image_size" not in data:
            data["image_size"] = _image_size(state, fields)
        names = overrides.class_names or class_names
        if "head.weight" in state:
            names = names or [f"class {i}" for i in range(len(state["head.weight"]))]
        built = cls(state, fields, data, tuple(names), (*left_out, *unread))
        built.check()
        return built

    @classmethod
    def load(cls, path: Path) -> "Model":
        """Load a workdir or checkpoint of ours.

        Only the encoder is kept if the decoder differs from the official one.
        """
        params, meta = store.load(path)
        config, left_out = meta["config"], tuple[str, ...]()
        if "decoder" in params and not _has_official_decoder(config):
            left_out = tuple(n for n in to_official(params) if n.startswith("decoder"))
            params = {"encoder": params["encoder"]}
        return cls(
            to_official(params),
            _with_tuples(config["model"]),
            _with_tuples(config["data"]),
            tuple(meta.get("class_names", ())),
            left_out,
        )

    def save(self, path: Path, source: str) -> None:
        """Write a checkpoint of ours.

        Raises UserError that lists every tensor which does not fit the model. source:
        file or folder that was converted, for the record.
        """
        mode = "finetune" if self.kind == "classifier" else "pretrain"
        meta: dict[str, Any] = {
            "config": {
                "mode": mode,
                "dtype": "float32",
                "model": self.model,
                "data": self.data,
            },
            "step": 0,
            "converted_from": source,
            **record.describe_software(),
        }
        if self.class_names:
            meta["class_names"] = list(self.class_names)
        store.write(path, self.params(), meta)

    @property
    def kind(self) -> str:
        """Kind of model: "pre-training model", "classifier" or "encoder"."""
        if any(name.startswith("decoder.") for name in self.state):
            return "pre-training model"
        return "classifier" if "head.weight" in self.state else "encoder"

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return _patch_weight(self.state).shape[1]

    def check(self) -> None:
        """Raise UserError if image or class settings contradict the tensors."""
        size = self.data["image_size"]
        if not isinstance(size, tuple) or len(size) != 2:
            raise UserError(
                f"data.image_size={size!r}: expected "
                "--data.image_size='(height, width)'"
            )
        for name in ("mean", "std"):
            if len(self.data[name]) != self.channels:
                raise UserError(
                    f"data.{name}={self.data[name]}: expected a number for each of "
                    f"{self.channels} channels; add --data.{name}='(…)'"
                )
        classes = len(self.state.get("head.weight", ()))
        if len(self.class_names) != classes:
            raise UserError(
                f"{len(self.class_names)} class names for a head with {classes} "
                f"classes. Expected {classes}: pass them with --classes=FILE."
            )

    def bare_state(self) -> dict[str, np.ndarray]:
        """Return the state without the prefix `encoder.`."""
        return {n.removeprefix("encoder."): v for n, v in self.state.items()}

    def params(self) -> dict[str, Any]:
        """Return our parameters; raise UserError that lists tensors which don't fit."""
        return from_official(self.state, self._shapes())

    def _shapes(self) -> Mapping[str, Any]:
        height, width = self.data["image_size"]
        p, q = self.model["patch_size"]
        images = jax.ShapeDtypeStruct((1, height, width, self.channels), jnp.float32)
        mask = jax.ShapeDtypeStruct((1, height // p, width // q), jnp.bool_)
        module: nn.Module
        if self.kind == "pre-training model":
            module, inputs = build_simmim(dtype="float32", **self.model), [images, mask]
        elif self.kind == "classifier":
            classes = len(self.class_names)
            module = build_classifier(
                num_classes=classes, dtype="float32", **self.model
            )
            inputs = [images]
        else:
            module = build_encoder(dtype=jnp.float32, **self.model)
            inputs = [images, mask] if "mask_token" in self.state else [images]
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        return {"encoder": shapes} if self.kind == "encoder" else shapes


def _patch_weight(state: Mapping[str, np.ndarray]) -> np.ndarray:
    name = "patch_embed.proj.weight"
    return state[name if name in state else f"encoder.{name}"]


def _has_official_decoder(config: Mapping[str, Any]) -> bool:
    """Whether one linear layer predicts all pixel values."""
    return (
        config.get("decoder", {}).get("kind", "linear") == "linear"
        and config.get("target", {}).get("downsample", 1) == 1
        and config.get("loss", {}).get("kind") != "bins"
    )


def _image_size(
    state: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> tuple[int, ...]:
    side = infer.grid_side(state)
    if not side:
        raise UserError(
            "the file does not determine the image size: add "
            "--data.image_size='(height, width)'"
        )
    return tuple(side * p for p in fields["patch_size"])


def _check_names(part: str, given: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(given.keys() - known):
        expected = ", ".join(sorted(known))
        raise UserError(f"--{part}.{unknown[0]}: expected one of {expected}.")


def _check_types(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for name, default in defaults.items():
        types = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value := fields[name], types):
            raise UserError(
                f"model.{name}={value!r}: expected {type(default).__name__}, such as "
                f"{default!r}; add --model.{name}=…"
            )


def _defaults(encoder: str) -> dict[str, Any]:
    """Default values of the encoder's fields that a config may set."""
    return {
        field.name: field.default
        for field in dataclasses.fields(ENCODERS[encoder])
        if field.name not in ("parent", "name", "dtype")
    }


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Replace lists by tuples, which JSON does not have."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
