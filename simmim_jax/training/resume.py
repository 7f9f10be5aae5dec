"""Going on with a run: is it the same one, and what does a checkpoint hold of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from simmim_jax.checkpoints.record import config_changes
from simmim_jax.checkpoints.store import Checkpointer
from simmim_jax.data.loader.pipeline import TrainIterator
from simmim_jax.errors import UserError
from simmim_jax.training.steps import TrainState

# Fields that change nothing of what a run learns.
HARMLESS = (
    "bench.",
    "checkpoint_every",
    "data.data_dir",
    "data.max_bad_fraction",
    "data.num_threads",
    "data.num_workers",
    "keep_checkpoints",
    "log_every",
    "mesh.",
    "model.attention",
    "model.remat",
    "model.scan_layers",
    "pictures",
    "profile.",
    "wandb",
)
# Fields that change what the parameters are, or what they have learned to predict.
MODEL = ("decoder.", "loss.", "model.", "target.")


def changes(
    workdir: Path, config: ConfigDict, meta: Mapping[str, Any], *, finished: bool
) -> list[str]:
    """How the config, and the encoder in `meta`, differ from when the run began.

    A field that did not exist then is told, and changes nothing that is refused.
    ValueError where the model changed or other things are to be kept of it, or where
    the run is finished, so that a change of what it learned would have no effect.
    """
    begun = json.loads((workdir / "config.json").read_text())
    changed = config_changes(
        begun["config"] | {"encoder": begun.get("restored_from")},
        config.to_dict() | {"encoder": meta.get("restored_from")},
    )
    said = [f"{name} {change}" for name, change in changed.items()]
    known = flatten_dict(begun["config"] | {"encoder": None}, sep=".")
    learned = [
        name for name in changed if name in known and not name.startswith(HARMLESS)
    ]
    other_state = any(name.startswith(MODEL) for name in learned) or any(
        bool(begun["config"].get(name, False)) != bool(config.get(name, False))
        for name in ("ema_decay", "freeze_encoder")
    )
    if other_state or (finished and learned):
        raise UserError(
            f"'{workdir}' holds {'a finished' if finished else 'the'} run of another "
            "config. Choose another --workdir, or go on with its config:\n  "
            + "\n  ".join(said)
        )
    return said


def restore(
    checkpoints: Checkpointer, step: int, like: TrainState, iterator: TrainIterator
) -> TrainState:
    """The state at `step`, laid out as `like`; moves the iterator there."""
    params, optimizer, position = checkpoints.restore(
        step, params=like.averaged, optimizer=optimizer_item(like)
    )
    if jax.process_index():
        position["bad_images"] = {}  # those of all processes, which the first one keeps
    iterator.set_state(position)
    learned = optimizer.get("params")
    ema = learned and {name: params[name] for name in learned}
    return TrainState(
        optimizer["step"], params | (learned or {}), optimizer["state"], ema
    )


def optimizer_item(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds to go on with, beside the parameters to use.

    With moving averages, which are the parameters to use, these are the latest ones.
    """
    item = {"step": state.step, "state": state.opt_state}
    if state.ema is not None:
        item["params"] = {name: state.params[name] for name in state.ema}
    return item
