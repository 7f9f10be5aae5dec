"""Examples to batches: one endless stream to train on, one exact pass to evaluate.

The stream is the epochs one after another, each in its own random order. A global
batch is the next stretch of it, and process p takes the p-th part of that stretch, so
which examples and crops make up a global batch depends on neither the number of
processes nor on threads and workers. The last stretch of an epoch runs on into the
next one: no example is left out and no batch is short.
"""

import concurrent.futures
import dataclasses
import functools
import math
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from simmim_jax.data.crop import random_crop, resize_center_crop
from simmim_jax.data.decode import decode
from simmim_jax.data.source import NO_LABEL, ArraySource, Source

Batch = dict[str, np.ndarray]

# Batches that are ready or under way beside the one in use, in each process.
_PREFETCH = 2
_SMALL_PIXELS = 96 * 96


def train_iterator(
    source: Source,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    channels: int,
    scale: tuple[float, float] | None,
    ratio: tuple[float, float],
    interpolation: str,
    fast_decode: bool,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 8,
) -> "TrainIterator":
    """Iterate for ever over shuffled batches of randomly cropped images.

    batch_size: of this process; scale, ratio, fast_decode: see `random_crop`, with
    scale=None the whole image is resized instead, exactly; num_workers: processes that
    decode, 0 = threads of this one; num_threads: threads that decode, in each of them.
    yields: {"image": uint8[b h w c], "label": int32[b]}, label -1 where there is none.
    raises: ValueError if the source is empty.
    """
    batches = _TrainBatches(
        source=source,
        batch_size=batch_size,
        image_size=image_size,
        channels=channels,
        scale=scale,
        ratio=ratio,
        interpolation=interpolation,
        fast_decode=fast_decode,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
    )
    return TrainIterator(batches, num_workers)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    channels: int,
    crop_fraction: float,
    interpolation: str,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 8,
) -> "EvalBatches":
    """Pass once over all examples, in order, as often as the result is iterated.

    batch_size: of this process; crop_fraction: see `resize_center_crop`.
    yields: {"image": uint8[b h w c], "label": int32[b], "weight": float32[b]}; weight
    is 1 for an example and 0 for the padding of the last batch, and every process
    yields equally many batches, if need be batches of padding.
    raises: ValueError if the source is empty.
    """
    return EvalBatches(
        source=source,
        batch_size=batch_size,
        image_size=image_size,
        channels=channels,
        crop_fraction=crop_fraction,
        interpolation=interpolation,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
    )


class TrainIterator(Iterator[Batch]):
    """An iterator whose state is the number of examples that all processes saw.

    Grain's own state counts what each worker did. A position in the stream says as
    much, and fits any number of workers, processes and any batch size.
    """

    def __init__(self, batches: "_TrainBatches", num_workers: int):
        self._batches = batches
        self._num_workers = num_workers
        self._restart(first=0)

    def _restart(self, first: int) -> None:
        self._first, self._taken = first, 0
        dataset = _prefetched(dataclasses.replace(self._batches, first=first))
        if self._num_workers:
            # Grain looks at its own flags to start workers, and fails in a notebook
            # or a test, where nobody has parsed any.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self._num_workers)
            dataset = dataset.mp_prefetch(
                options, worker_init_fn=_leave_signals_to_the_main_process
            )
        self._iterator = iter(dataset)

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the position, a JSON-able dict that is the same in every process."""
        return {
            "examples_seen": self._first
            + self._taken * self._batches.global_batch_size,
            "num_examples": len(self._batches.source),
            "seed": self._batches.seed,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position; raises ValueError if it is one in another stream."""
        now = self.get_state()
        for key in ("num_examples", "seed"):
            if state[key] != now[key]:
                raise ValueError(
                    f"The checkpoint's data position has {key}={state[key]}, this run "
                    f"has {key}={now[key]}: expected the same data and seed. Go on "
                    "with those, or start a new run from the checkpoint's weights."
                )
        self._iterator.close()
        self._restart(state["examples_seen"])

    def close(self) -> None:
        """Stop threads and workers."""
        self._iterator.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Batches:
    """What both kinds of batches share: where they lie and how they are filled."""

    source: Source
    batch_size: int
    image_size: tuple[int, int]
    channels: int
    interpolation: str
    process_index: int
    process_count: int
    num_threads: int
    first: int = 0

    def __post_init__(self) -> None:
        if len(self.source) == 0:
            raise ValueError("The source is empty: expected at least one example.")

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.process_count

    def positions(self, step: int) -> np.ndarray:
        """int[b]: where in the stream this process's part of a global batch is."""
        start = self.first + step * self.global_batch_size
        start += self.process_index * self.batch_size
        return np.arange(start, start + self.batch_size)

    @functools.cached_property
    def _threads(self) -> concurrent.futures.ThreadPoolExecutor:
        # Made on first use: it could not be sent to a worker process.
        return concurrent.futures.ThreadPoolExecutor(self._num_runs)

    @property
    def _num_runs(self) -> int:
        # Small raw images are cropped in so little time that threads would mostly
        # wait for the interpreter lock: 8 of them make 13k images/s, one makes 34k.
        small = math.prod(self.image_size) <= _SMALL_PIXELS
        return 1 if small and isinstance(self.source, ArraySource) else self.num_threads

    def fill(
        self, indices: np.ndarray, crop: Callable[[bytes | np.ndarray, int], np.ndarray]
    ) -> Batch:
        """Read examples: image i of the batch is crop(image of indices[i], i)."""
        shape = (self.batch_size, *self.image_size, self.channels)
        images = np.zeros(shape, np.uint8)
        labels = np.zeros(self.batch_size, np.int32)

        def read(rows: np.ndarray) -> None:
            for row in rows:
                example = self.source[int(indices[row])]
                try:
                    images[row] = crop(example["image"], row)
                except ValueError as error:
                    error.add_note(
                        f"Example {indices[row]}: {example.get('path', self.source)}"
                    )
                    raise
                labels[row] = example["label"]

        # A run of rows a thread: handing them over singly costs as much as a crop
        # of a small image.
        runs = np.array_split(np.arange(len(indices)), self._num_runs)
        for _ in self._threads.map(read, runs):
            pass
        return {"image": images, "label": labels}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TrainBatches(_Batches):
    scale: tuple[float, float] | None
    ratio: tuple[float, float]
    fast_decode: bool
    seed: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        positions = self.positions(step)
        epochs, places = np.divmod(positions, len(self.source))
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            order = _epoch_order(self.seed, int(epoch), len(self.source))
            indices[epochs == epoch] = order[places[epochs == epoch]]
        source, shape = self.source, (*self.image_size, self.channels)
        if (
            self.scale is None
            and isinstance(source, ArraySource)
            and source.images.shape[1:] == shape
        ):
            # One gather a batch is 100 times faster than image by image.
            return _gather(source, indices)
        return self.fill(indices, lambda image, row: self._crop(image, positions[row]))

    def _crop(self, data: bytes | np.ndarray, position: int) -> np.ndarray:
        if self.scale is None:
            image = decode(data, self.channels)
            return resize_center_crop(image, self.image_size, 1.0, self.interpolation)
        return random_crop(
            data,
            channels=self.channels,
            size=self.image_size,
            rng=np.random.Generator(np.random.Philox(key=[self.seed, position])),
            scale=self.scale,
            ratio=self.ratio,
            interpolation=self.interpolation,
            fast=self.fast_decode,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalBatches(_Batches):
    """The batches of one pass; see `eval_batches`."""

    crop_fraction: float

    def __len__(self) -> int:
        return -(-len(self.source) // self.global_batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return iter(_prefetched(self))

    def __getitem__(self, step: int) -> Batch:
        positions = self.positions(step)
        indices = positions[positions < len(self.source)]
        batch = self.fill(indices, lambda image, row: self._crop(image))
        weight = (positions < len(self.source)).astype(np.float32)
        return {**batch, "weight": weight}

    def _crop(self, data: bytes | np.ndarray) -> np.ndarray:
        return resize_center_crop(
            decode(data, self.channels),
            self.image_size,
            self.crop_fraction,
            self.interpolation,
        )


def _leave_signals_to_the_main_process(index: int, count: int) -> None:
    # Ctrl-C goes to all processes; this one must decode until the run is saved.
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _prefetched(batches: Any) -> grain.IterDataset[Batch]:
    options = grain.ReadOptions(num_threads=_PREFETCH, prefetch_buffer_size=_PREFETCH)
    return grain.MapDataset.source(batches).to_iter_dataset(options)


def _gather(source: ArraySource, indices: np.ndarray) -> Batch:
    if source.labels is None:
        labels = np.full(len(indices), NO_LABEL, np.int32)
    else:
        labels = source.labels[indices].astype(np.int32)
    return {"image": source.images[indices], "label": labels}


# Two epochs are in use at once where a batch runs on into the next one.
@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """int[n]: the examples of one epoch in their random order."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)
