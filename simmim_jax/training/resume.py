"""The training state in checkpoints: what is saved of it, and how it is restored."""

from typing import Any

import jax

from simmim_jax.checkpoints.store import Checkpointer
from simmim_jax.data.loader.pipeline import TrainIterator
from simmim_jax.training.steps import TrainState


def restore(
    checkpoints: Checkpointer, step: int, like: TrainState, iterator: TrainIterator
) -> TrainState:
    """Return the state at `step`, sharded as `like`, and move the iterator there."""
    params, optimizer, position = checkpoints.restore(
        step, params=like.averaged, optimizer=optimizer_item(like)
    )
    if jax.process_index():
        position["bad_images"] = {}  # process 0 keeps those of all processes
    iterator.set_state(position)
    learned = optimizer.get("params")
    ema = learned and {name: params[name] for name in learned}
    return TrainState(
        optimizer["step"], params | (learned or {}), optimizer["state"], ema
    )


def optimizer_item(state: TrainState) -> dict[str, Any]:
    """Return what a checkpoint holds to resume from, beside the parameters to use.

    With a moving average, which is what is to be used, it has the latest parameters.
    """
    item = {"step": state.step, "state": state.opt_state}
    if state.ema is not None:
        item["params"] = {name: state.params[name] for name in state.ema}
    return item
