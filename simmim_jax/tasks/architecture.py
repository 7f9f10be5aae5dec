"""The architecture of a pre-trained encoder, which runs that start from it take over.

It is read before JAX starts, so that a contradiction is an error in the first second.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from simmim_jax.checkpoints import layout
from simmim_jax.config.parsing import to_dict
from simmim_jax.config.schema import Compare, Downstream, RunConfig, Segment
from simmim_jax.errors import UserError

# Fields that parameters depend on: their shapes, or the arithmetic they learned.
_TAKEN = (
    "patch_size",
    "embed_dim",
    "depth",
    "depths",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "patch_norm",
    "pad_after_shift",
    "use_abs_pos_emb",
    "use_sincos_pos_emb",
    "conv_pos_width",
    "layer_scale",
    "norm_eps",
)
# Where positions are. Fine-tuning gives each block a copy of a shared table instead.
_TAKEN_BY_PRETRAINING = ("use_rel_pos_bias", "use_shared_rel_pos_bias")


def adopt(
    config: Any,
    explicit: Collection[str] = (),
    *,
    workdir: Path | None = None,
    path: str = "config",
) -> tuple[Any, list[str]]:
    """Return the config with the architecture of config.init_from, and what to say.

    config: of a run, or of a comparison, both of whose runs take that of
    config.pretrain.init_from. explicit: names of fields that the command line sets,
    such as "model.depth"; they are not replaced. workdir: a run that it
    holds keeps the fields it began with; path: of the config in messages.
    raises: UserError where the checkpoint contradicts them, is of another family or, in
    fine-tuning, has other channels; NotFoundError where there is none.
    """
    if isinstance(config, Compare):
        return _adopt_both(config, explicit, workdir)
    if not config.init_from:
        return config, []
    where = f"{path}.init_from='{config.init_from}'"
    is_finetune = isinstance(config, Downstream)
    learned = layout.read_meta(config.init_from)["config"]
    model: dict[str, Any] = learned["model"]
    if (encoder := model.get("name")) != config.model.name:
        raise UserError(
            f"{path}.model.name={config.model.name!r}, but {where} has a "
            f"{encoder!r}: choose a config of that encoder, such as "
            f"{_example(config, encoder)}."
        )
    channels = learned["data"].get("channels", config.data.channels)
    if is_finetune and channels != config.data.channels:
        raise UserError(
            f"{path}.data.channels={config.data.channels}, but {where} learned from "
            f"images of {channels}: expected --{path}.data.channels={channels}."
        )
    names = _TAKEN + (() if is_finetune else _TAKEN_BY_PRETRAINING)
    begun = _recorded_model(workdir)
    changes = _changes(config, model, names, explicit, begun, where, path)
    return _changed(config, changes, config.init_from)


def _adopt_both(
    config: Compare, explicit: Collection[str], workdir: Path | None
) -> tuple[Compare, list[str]]:
    """Return a comparison whose runs have the architecture of pretrain.init_from."""
    pretrain, lines = adopt(
        config.pretrain,
        {name.removeprefix("pretrain.") for name in explicit},
        workdir=workdir and workdir / "pretrain",
        path="config.pretrain",
    )
    finetune, begins = config.finetune, pretrain.init_from
    if begins and finetune.model.name == pretrain.model.name:
        changes = _changes(
            finetune,
            to_dict(pretrain.model),
            _TAKEN,
            {name.removeprefix("finetune.") for name in explicit},
            _recorded_model(workdir and workdir / "scratch"),
            f"config.pretrain.init_from='{begins}'",
            "config.finetune",
        )
        finetune, said = _changed(finetune, changes, f"{begins}, in fine-tuning")
        lines = [*lines, *said]
    return dataclasses.replace(config, pretrain=pretrain, finetune=finetune), lines


def _changes(
    config: Any,
    model: Mapping[str, Any],
    names: Collection[str],
    explicit: Collection[str],
    begun: Mapping[str, Any],
    where: str,
    path: str,
) -> dict[str, Any]:
    """Return the fields of config.model that are others in a learned `model`.

    names: of fields to take; begun: config.model of the run that is resumed; where: the
    field that names the checkpoint, and its value.
    """
    changes = {}
    for name in names:
        if name not in model or not hasattr(config.model, name):
            continue
        has, wanted = _plain(model[name]), getattr(config.model, name)
        if name == "layer_scale" and bool(has) == bool(wanted):
            continue  # an initial value, which the checkpoint replaces
        if has == wanted or (name in begun and _plain(begun[name]) == wanted):
            continue
        if config.init_first_blocks and name in ("depth", "depths"):
            if not _are_first(wanted, has):
                raise UserError(
                    f"{path}.model.{name}={wanted}, but {where} has {has} blocks: "
                    f"expected the first of them, at most --{path}.model.{name}={has}."
                )
            continue
        if (
            config.init_first_blocks
            and isinstance(has, tuple)
            and has[: len(wanted)] == wanted
        ):
            continue  # heads of a Swin's first stages
        if f"model.{name}" in explicit:
            raise UserError(
                f"{path}.model.{name}={wanted!r}, but {where} has {has!r}: leave the "
                "field out, or start from another checkpoint."
            )
        changes[name] = has
    return changes


def _changed(
    config: Any, changes: Mapping[str, Any], source: str
) -> tuple[Any, list[str]]:
    """Return the config with fields of its model changed, and what to say."""
    if not changes:
        return config, []
    said = ", ".join(f"{name}={value!r}" for name, value in changes.items())
    adopted = dataclasses.replace(config.model, **changes)
    return (
        dataclasses.replace(config, model=adopted),
        [f"architecture of {source}: {said}"],
    )


def _example(config: RunConfig, encoder: str | None) -> str:
    """Return a config of the same mode for another encoder."""
    if isinstance(config, Segment):
        return f"segment:{encoder}_base"
    suffix = "_finetune" if isinstance(config, Downstream) else ""
    return f"{encoder}_base{suffix}"


def _recorded_model(workdir: Path | None) -> dict[str, Any]:
    """Return config.model of the run in a workdir, {} where there is none."""
    if workdir is None or not (workdir / "config.json").exists():
        return {}
    return layout.read_record(workdir)["config"]["model"]


def _are_first(wanted: int | tuple[int, ...], has: int | tuple[int, ...]) -> bool:
    """Whether an encoder of `wanted` blocks is the start of one of `has` blocks.

    Tuples are the blocks of each stage.
    """
    here = wanted if isinstance(wanted, tuple) else (wanted,)
    there = has if isinstance(has, tuple) else (has,)
    last = len(here) - 1
    return (
        0 <= last < len(there)
        and here[:last] == there[:last]
        and here[last] <= there[last]
    )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
