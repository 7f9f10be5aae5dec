"""Batches on the devices: sent ahead of training steps, computed on in evaluation."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from simmim_jax.data.loader.pipeline import EvalBatches, TrainIterator
from simmim_jax.monitoring.progress import watch
from simmim_jax.runtime import sharding

# Batches on the devices beside the one that is being used.
_ON_DEVICES = 2


def batches_on_devices(
    iterator: TrainIterator, mesh: Mesh
) -> Iterator[tuple[dict[str, jax.Array], dict[str, Any]]]:
    """Yield batches, with the input's position after each.

    As many as are ready go to the devices ahead of their step, up to two: a late batch
    blocks nobody while there is another one, and no step waits for a copy.
    """
    ahead: collections.deque = collections.deque()
    while True:
        while not ahead or (len(ahead) <= _ON_DEVICES and iterator.is_ready()):
            batch = next(iterator)
            ahead.append((sharding.to_devices(batch, mesh), iterator.get_state()))
        yield ahead.popleft()


def with_progress(batches: EvalBatches) -> Iterable[dict[str, np.ndarray]]:
    """Return the batches of an evaluation, whose progress the first process prints."""
    if jax.process_index():
        return batches
    return watch(batches, len(batches), title="evaluating")


def results_of_pass(
    compute: Callable[[dict[str, jax.Array], int], Any],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
) -> list[Any]:
    """Return `compute(batch, index)` of each batch on the devices, fetched to the host.

    One at a time, while the next batch is on its way (not where one CPU is both host
    and device): the devices hold two batches, and programs of CPU devices, which share
    few threads, never wait for each other.
    """
    results: list[Any] = []
    running = None
    for index, batch in enumerate(batches):
        placed = sharding.to_devices(batch, mesh)
        if index:
            results.append(jax.device_get(running))
        running = compute(placed, index)
    return [*results, jax.device_get(running)]
