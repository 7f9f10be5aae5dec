"""What config.data describes: sources, streams of batches, and lengths in steps."""

import collections
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simmim_jax.data.loader.bad_examples import BadImages
from simmim_jax.data.loader.pipeline import (
    EvalBatches,
    TrainIterator,
    eval_batches,
    train_iterator,
)
from simmim_jax.data.loader.workers import num_cpus, share_out
from simmim_jax.data.sources.base import ArraySource, Source, SubsetSource
from simmim_jax.data.sources.registry import open_source
from simmim_jax.errors import UserError
from simmim_jax.runtime import distributed, sharding

# Batches on the devices beside the one that they work on.
_ON_DEVICES = 2
# Names of classes that tell whether they are the ones that were meant.
_NAMES_SHOWN = 6


def open_split(config: ConfigDict, split: str) -> Source:
    """One split of the data set that config.data names."""
    return open_source(config.data.dataset, split, data_dir=config.data.data_dir)


def describe(
    source: Source, held_out: Source, class_names: tuple[str, ...], batch_size: int
) -> str:
    """What a run sees, in a line: numbers of images and, where they count, classes."""
    text = f"{len(source):,} images to train on"
    if len(source) < batch_size:
        times = batch_size / len(source)
        text += f" (each {times:.1f} times in a batch of {batch_size:,})"
    text += f", {len(held_out):,} held out"
    if not class_names:
        return text
    first = ", ".join(class_names[:_NAMES_SHOWN])
    more = ", ..." if len(class_names) > _NAMES_SHOWN else ""
    return f"{text}, {len(class_names):,} classes: {first}{more}"


def bad_images(config: ConfigDict, split: str, workdir: Path) -> BadImages:
    """The account of a split's bad images, with its list in `workdir`.

    The list is bad_images.tsv, and bad_images.<process>.tsv of other processes.
    """
    process = jax.process_index()

    def say(text: str) -> None:
        # A terminal's line may be taken by the progress.
        print(f"\n{text}" if sys.stdout.isatty() else text, flush=True)

    return BadImages(
        split,
        max_fraction=config.data.max_bad_fraction,
        path=workdir / (f"bad_images.{process}.tsv" if process else "bad_images.tsv"),
        say=say if process == 0 else None,
    )


def train_batches(
    config: ConfigDict, source: Source, workdir: Path | None = None
) -> TrainIterator:
    """The stream of training batches that config.data describes.

    workdir: where bad images are listed; None: nowhere.
    """
    num_workers, num_threads = decoders(config, source)
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
        num_workers=num_workers,
        num_threads=num_threads,
        bad=bad_images(config, config.data.train_split, workdir) if workdir else None,
    )


def eval_pass(
    config: ConfigDict, source: Source, workdir: Path | None = None
) -> EvalBatches:
    """All of `source` once, resized and cropped as config.data says.

    workdir: where bad images are listed; None: nowhere.
    """
    num_workers, num_threads = decoders(config, source)
    return eval_batches(
        source,
        batch_size=config.data.batch_size // jax.process_count(),
        image_size=config.data.image_size,
        channels=config.data.channels,
        crop_fraction=config.data.eval_crop,
        interpolation=config.data.interpolation,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=max(num_workers, 1) * num_threads,
        bad=bad_images(config, config.data.eval_split, workdir) if workdir else None,
        total=distributed.total,
    )


def decoders(config: ConfigDict, source: Source) -> tuple[int, int]:
    """Processes and threads in each, as config.data or the machine says."""
    workers, threads = config.data.num_workers, config.data.num_threads
    while isinstance(source, SubsetSource):
        source = source.source
    if isinstance(source, ArraySource) and workers < 0:
        workers = 0  # nothing to decode, and each process would get a copy
    return share_out(num_cpus(), workers, threads)


def batches_on_devices(
    iterator: TrainIterator, mesh: Mesh
) -> Iterator[tuple[dict[str, jax.Array], dict[str, Any]]]:
    """Batches, with the input's position after each.

    As many as are ready go to the devices ahead of their step, up to two: a batch that
    is late keeps nobody waiting while there is one, and no step waits for a copy.
    """
    ahead: collections.deque = collections.deque()
    while True:
        while not ahead or (len(ahead) <= _ON_DEVICES and iterator.is_ready()):
            batch = next(iterator)
            ahead.append((sharding.to_devices(batch, mesh), iterator.get_state()))
        yield ahead.popleft()


def results_of_pass(
    compute: Callable[[dict[str, jax.Array], int], Any],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
) -> list[Any]:
    """`compute(batch, index)` of each batch on the devices, fetched to the host.

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
        raise UserError(
            f"{duration!r} is no length of time: expected a number and a unit, such as "
            "'10 epochs', '500 steps' or '100000 examples'."
        )
    return max(1, round(amount / per_step[unit])) if amount else 0


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """ValueError where the batch does not divide over devices and parts."""
    parts = mesh.size * config.optim.accumulation
    if config.data.batch_size % parts:
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} must be a multiple of "
            f"{parts}: {mesh.size} devices times config.optim.accumulation="
            f"{config.optim.accumulation}."
        )
