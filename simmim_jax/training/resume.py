"""The training state in checkpoints: what is saved of it, and how it is restored."""

from typing import Any

import jax

from simmim_jax.checkpoints.store import Checkpointer
from simmim_jax.data.loader.pipeline import TrainIterator
from simmim_jax.training import optim
from simmim_jax.training.run import Lengths
from simmim_jax.training.steps import TrainState


def restore(
    checkpoints: Checkpointer,
    lengths: Lengths,
    like: TrainState,
    iterator: TrainIterator,
) -> TrainState:
    """Return the state to start from, sharded as `like`; move the iterator there, too.

    Its schedule is at what the run has seen, in steps of the present batch size.
    """
    params, optimizer, position = checkpoints.restore(
        lengths.start, params=like.averaged, optimizer=optimizer_item(like)
    )
    if jax.process_index():
        position["bad_images"] = {}  # process 0 keeps those of all processes
    iterator.set_state(position)
    learned = optimizer.get("params")
    ema = learned and {name: params[name] for name in learned}
    opt_state = optim.at_step(optimizer["state"], lengths.seen)
    return TrainState(optimizer["step"], params | (learned or {}), opt_state, ema)


def optimizer_item(state: TrainState) -> dict[str, Any]:
    """Return what a checkpoint holds to resume from, beside the parameters to use.

    With a moving average, which is what is to be used, it has the latest parameters.
    """
    item = {"step": state.step, "state": state.opt_state}
    if state.ema is not None:
        item["params"] = {name: state.params[name] for name in state.ema}
    return item
