"""What config.data describes: sources, streams of batches, and lengths in steps."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simmim_jax import sharding
from simmim_jax.data.pipeline import (
    EvalBatches,
    TrainIterator,
    eval_batches,
    train_iterator,
)
from simmim_jax.data.source import Source
from simmim_jax.data.sources import open_source


def open_split(config: ConfigDict, split: str) -> Source:
    """One split of the data set that config.data names."""
    return open_source(config.data.dataset, split, data_dir=config.data.data_dir)


def train_batches(config: ConfigDict, source: Source) -> TrainIterator:
    """The stream of training batches that config.data describes."""
    return train_iterator(
        source,
        batch_size=config.data.batch_size // jax.process_count(),
        image_size=config.data.image_size,
        channels=config.data.channels,
        scale=config.data.crop_scale or None,
        ratio=config.data.crop_ratio,
        interpolation=config.data.interpolation,
        fast_decode=config.data.fast_decode,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.num_workers,
        num_threads=config.data.num_threads,
    )


def eval_pass(config: ConfigDict, source: Source) -> EvalBatches:
    """All of `source` once, resized and cropped as config.data says."""
    return eval_batches(
        source,
        batch_size=config.data.batch_size // jax.process_count(),
        image_size=config.data.image_size,
        channels=config.data.channels,
        crop_fraction=config.data.eval_crop,
        interpolation=config.data.interpolation,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
    )


def batches_on_devices(
    iterator: TrainIterator, mesh: Mesh
) -> Iterator[tuple[dict[str, jax.Array], dict[str, Any]]]:
    """Batches, with the input's position after each.

    Neither waits: the iterator reads ahead on its own threads, and the copy to the
    devices goes on while they still work on the batch before.
    """
    for batch in iterator:
        yield sharding.to_devices(batch, mesh), iterator.get_state()


def num_steps(duration: str, batch_size: int, num_examples: int) -> int:
    """ "10 epochs", "500 steps" or "100000 examples" in steps; at least 1, 0 for 0.

    An epoch is as many whole batches as it holds, as in the official code.
    """
    number, _, unit = duration.partition(" ")
    try:
        amount = float(number)
    except ValueError:
        amount = -1
    per_step = {
        "epochs": 1 / (num_examples // batch_size or num_examples / batch_size),
        "steps": 1,
        "examples": batch_size,
    }
    if unit not in per_step or amount < 0:
        raise ValueError(
            f"{duration!r} is no length of time: expected a number and a unit, such as "
            "'10 epochs', '500 steps' or '100000 examples'."
        )
    return max(1, round(amount / per_step[unit])) if amount else 0


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """ValueError where the batch does not divide over devices and parts."""
    parts = mesh.size * config.optim.accumulation
    if config.data.batch_size % parts:
        raise ValueError(
            f"config.data.batch_size={config.data.batch_size} must be a multiple of "
            f"{parts}: {mesh.size} devices times config.optim.accumulation="
            f"{config.optim.accumulation}."
        )
