"""A model between two formats: official tensors, and fields of our configs."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.checkpoints import record, store
from simmim_jax.checkpoints.convert import infer
from simmim_jax.checkpoints.convert.official import from_official, to_official
from simmim_jax.checkpoints.convert.overrides import (
    OFFICIAL_DATA,
    Overrides,
    check_model,
    model_defaults,
    with_tuples,
)
from simmim_jax.errors import UserError
from simmim_jax.models import build_classifier, build_encoder, build_simmim
from simmim_jax.models.windows import fit_window, padded

# Buffers are computed from sizes. A bias of keys, which official models lack, adds the
# same number to all logits of a query, so softmax cancels it.
_REDUNDANT = re.compile(
    r"\.(relative_position_index|relative_coords_table|attn_mask|attn\.k_bias)$"
)

_PATCHES = "patch_embed.proj.weight"


class Stage(NamedTuple):
    """A stage of a Swin: its grid and windows [tokens], and its number of blocks."""

    grid: tuple[int, int]
    window: int
    shift: int  # of every second block
    depth: int

    @property
    def pads(self) -> bool:
        """Whether windows do not divide the grid."""
        return padded(self.grid, self.window) != self.grid


@dataclasses.dataclass(frozen=True)
class Model:
    """A pre-training model, a classifier, or an encoder alone.

    state: tensors in official names and layouts; in a pre-training model the names of
    the encoder start with `encoder.`. model, data: fields of config.model and
    config.data. loss: field of the config, "softmax" or "sigmoid". objective:
    fields of config.mask and config.target, by group. left_out: names of tensors in the
    file, but not in `state`. notes: what was assumed.
    """

    state: Mapping[str, np.ndarray]
    model: dict[str, Any]
    data: dict[str, Any]
    class_names: tuple[str, ...] = ()
    loss: str = "softmax"
    objective: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, np.ndarray],
        overrides: Overrides,
        *,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        class_names: Sequence[str] = (),
        loss: str = "softmax",
        objective: Mapping[str, Mapping[str, Any]] | None = None,
        unread: Sequence[str] = (),
        notes: Sequence[str] = (),
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
        if not any(name.startswith("decoder.") for name in state):
            state = {n.removeprefix("encoder."): v for n, v in state.items()}
        given = with_tuples(overrides.model)
        fields = infer.model_fields(state, {**model, **given})
        fields = model_defaults(fields["name"]) | fields
        check_model(fields, given)
        channels = _patch_weight(state).shape[1]
        data = OFFICIAL_DATA | dict(data)
        for name in ("mean", "std"):
            if len(data[name]) == 1:  # for all channels
                data[name] *= channels
        data |= {**with_tuples(overrides.data), "channels": channels}
        if "image_size" not in data:
            data["image_size"] = _image_size(state, fields)
        names = overrides.class_names or class_names
        if "head.weight" in state:
            names = names or [f"class {i}" for i in range(len(state["head.weight"]))]
        built = cls(
            state,
            fields,
            data,
            tuple(names),
            loss,
            objective or {},
            (*unread, *left_out),
            tuple(notes),
        )
        built.check()
        return built

    @classmethod
    def load(cls, path: Path) -> "Model":
        """Load a workdir or checkpoint of ours.

        Only the encoder is kept if the decoder differs from the official one.
        """
        params, meta = store.load(path)
        config, left_out = meta["config"], tuple[str, ...]()
        if {"mask_classes", "vocabulary"} & meta.keys():
            raise UserError(
                f"'{path}' is a {config['mode']} run, whose head other formats have no "
                "place for: `simmim export --embed` writes its encoder."
            )
        # A section in pre-training; "probabilities" until 2026-11.
        loss = config.get("loss", config.get("probabilities"))
        if loss in ("l1", "l2"):
            raise UserError(
                f"'{path}' learned numbers (config.loss={loss!r}), which other formats "
                "have no setting for: `simmim export` writes a program that gives them."
            )
        if "decoder" in params and not _has_official_decoder(config):
            left_out = tuple(n for n in to_official(params) if n.startswith("decoder"))
            params = {"encoder": params["encoder"]}
        return cls(
            to_official(params),
            with_tuples(config["model"]),
            with_tuples(config["data"]),
            tuple(meta.get("class_names", ())),
            loss if isinstance(loss, str) else "softmax",
            {
                name: with_tuples(config[name])
                for name in ("mask", "target")
                if name in config
            },
            left_out,
        )

    def save(self, path: Path, source: str) -> None:
        """Write a checkpoint of ours.

        Raises UserError that lists every tensor which does not fit the model. source:
        file or folder that was converted, for the record.
        """
        store.write(path, self.params(), self.meta(source))

    def meta(self, source: str) -> dict[str, Any]:
        """Return the meta of a checkpoint of ours; source: as in `save`."""
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
        if mode == "pretrain":
            meta["config"] |= self.objective
        if self.class_names:
            meta["class_names"] = list(self.class_names)
            meta["config"]["loss"] = self.loss
        return meta

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

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of an image of data.image_size [patches]."""
        (height, width), (p, q) = self.data["image_size"], self.model["patch_size"]
        return height // p, width // q

    def stages(self) -> Iterator[Stage]:
        """Yield the stages of a Swin on images of data.image_size."""
        height, width = self.grid
        window = self.model["window_size"]
        for depth in self.model["depths"]:
            grid = height, width
            yield Stage(grid, *fit_window(grid, window, window // 2), depth)
            height, width = -(-height // 2), -(-width // 2)

    @property
    def pads_shifted(self) -> bool:
        """Whether the order of padding and shift matters for a Swin."""
        return any(s.pads and s.shift and s.depth > 1 for s in self.stages())

    def check(self) -> None:
        """Raise UserError if image or class settings contradict the tensors."""
        for name in ("mean", "std"):
            if len(self.data[name]) != self.channels:
                raise UserError(
                    f"data.{name}={self.data[name]}: expected a number for each of "
                    f"{self.channels} channels; add --data.{name}='(…)'"
                )
        (height, width), (p, q) = self.data["image_size"], self.model["patch_size"]
        if height % p or width % q:
            raise UserError(
                f"data.image_size={(height, width)}: expected multiples of the patch "
                f"size, {(p, q)}; add --data.image_size='(height, width)'"
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
        shapes = param_shapes(module, *inputs)
        return {"encoder": shapes} if self.kind == "encoder" else shapes


@functools.cache  # tracing a Swin-L takes seconds, and a conversion asks twice
def param_shapes(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> Mapping[str, Any]:
    """Return the shapes of a module's parameters for such inputs."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def unwrap(
    tensors: Mapping[str, np.ndarray], leave_out: str = ""
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Remove the prefix that DDP, Lightning or torch.compile add to names.

    Returns: tensors in the names of the bare model, where a pre-training model keeps
    `encoder.`; names left out by the pattern `leave_out`; and notes. Raises UserError
    if the file has several encoders, or tensors without the prefix.
    """
    left_out = [name for name in tensors if leave_out and re.search(leave_out, name)]
    kept = {n: v for n, v in tensors.items() if n not in set(left_out)}
    found = [n.removesuffix(_PATCHES) for n in kept if n.endswith(_PATCHES)]
    if len(found) > 1:
        raise UserError(
            f"the file has {len(found)} encoders, named {', '.join(found)}. Expected "
            f"one: add --leave_out='^{re.escape(found[-1])}'."
        )
    prefix = found[0] if found else ""
    outer = prefix.removesuffix("encoder.")
    if not any(name.startswith(f"{outer}decoder.") for name in kept):
        outer = prefix
    if not outer:
        return kept, left_out, []
    if others := [name for name in kept if not name.startswith(outer)]:
        parts = "|".join(dict.fromkeys(re.escape(n.split(".")[0]) for n in others))
        raise UserError(
            f"the encoder's tensors start with '{outer}', but these do not: "
            f"{', '.join(others[:5])}{', …' * (len(others) > 5)}. Add "
            f"--leave_out='^({parts})\\b' to convert the rest."
        )
    bare = {name.removeprefix(outer): value for name, value in kept.items()}
    return bare, left_out, [f"removed '{outer}' from the names of tensors"]


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
