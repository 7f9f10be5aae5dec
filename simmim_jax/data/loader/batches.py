"""What batches consist of: which examples, in which order, and how they are filled."""

import abc
import concurrent.futures
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np

from simmim_jax.data.codecs.image import BadImage, decode
from simmim_jax.data.loader.bad_examples import BadExample, reason_of
from simmim_jax.data.loader.memory import Batch
from simmim_jax.data.sources.base import NO_LABEL, ArraySource, Source
from simmim_jax.data.views.crop import random_crop, resize_center_crop
from simmim_jax.errors import UserError

# A place in the stream for which so many examples in a row are bad ends the run: what
# held the data is gone. Where half of the examples are bad, one place in 2**100 is.
ATTEMPTS = 100
_SMALL_PIXELS = 96 * 96


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches(abc.ABC):
    """What both kinds share; see `train_iterator` for the fields."""

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
            raise UserError("The source is empty: expected at least one example.")

    @property
    def global_batch_size(self) -> int:
        """Of all processes together."""
        return self.batch_size * self.process_count

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """What a batch consists of."""
        n = self.batch_size
        return {
            "image": ((n, *self.image_size, self.channels), np.uint8),
            "label": ((n,), np.int32),
            "weight": ((n,), np.float32),
        }

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

    def fill(self, step: int, rows: range, batch: Batch) -> list[BadExample]:
        """Write these rows of a batch; returns the examples that cannot be had."""
        positions = self.positions(step)
        indices = self._indices(positions)

        def fill_run(run: np.ndarray) -> list[BadExample]:
            found: list[BadExample] = []
            for row in run:
                found += self._fill_row(
                    batch, row, int(positions[row]), int(indices[row])
                )
                if found and found[-1].attempt == ATTEMPTS - 1:
                    break
            return found

        # A run of rows a thread: handing them over singly costs as much as a crop
        # of a small image.
        runs = np.array_split(np.array(rows), self._num_runs)
        return [bad for found in self._threads.map(fill_run, runs) for bad in found]

    @abc.abstractmethod
    def _indices(self, positions: np.ndarray) -> np.ndarray:
        """int[b]: the examples at these positions, -1 where there is none."""

    def _replacements(self, position: int) -> Iterator[int]:
        """Examples that take a place, one after the other while they are bad, too."""
        return iter(())

    @abc.abstractmethod
    def _crop(self, image: bytes | np.ndarray, position: int) -> np.ndarray:
        """uint8[h w c] of the batch, for that place."""

    def _fill_row(
        self, batch: Batch, row: int, position: int, index: int
    ) -> list[BadExample]:
        found: list[BadExample] = []
        turn = [index] if index >= 0 else []
        candidates = itertools.chain(turn, self._replacements(position))
        for attempt, index in enumerate(candidates):
            path = ""
            try:
                example = self.source[index]
                path = example.get("path", "")
                batch["image"][row] = self._crop(example["image"], position)
            except (OSError, BadImage) as error:
                path = path or str(getattr(error, "filename", None) or "")
                found.append(BadExample(index, reason_of(error), path, attempt))
            except ValueError as error:
                error.add_note(f"Example {index}: {path or self.source}")
                raise
            else:
                batch["label"][row] = example["label"]
                batch["weight"][row] = 1
                return found
        batch["image"][row], batch["label"][row] = 0, NO_LABEL
        batch["weight"][row] = 0
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamBatches(Batches):
    """Batches of the endless stream of shuffled epochs, from its example `first` on."""

    scale: tuple[float, float] | None
    ratio: tuple[float, float]
    fast_decode: bool
    seed: int

    def fill(self, step: int, rows: range, batch: Batch) -> list[BadExample]:
        """Write these rows of a batch; returns the examples that cannot be had."""
        source = self.source
        if (
            self.scale is not None
            or not isinstance(source, ArraySource)
            or source.images.shape[1:] != batch["image"].shape[1:]
        ):
            return super().fill(step, rows, batch)
        # One gather a batch is 100 times faster than image by image.
        part = slice(rows.start, rows.stop)
        indices = self._indices(self.positions(step)[part])
        # The indices are right; without a mode, NumPy would write to a copy first.
        np.take(source.images, indices, 0, batch["image"][part], mode="clip")
        labels = NO_LABEL if source.labels is None else source.labels[indices]
        batch["label"][part] = labels
        return []

    def _indices(self, positions: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(positions, len(self.source))
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            order = _epoch_order(self.seed, int(epoch), len(self.source))
            indices[epochs == epoch] = order[places[epochs == epoch]]
        return indices

    def _replacements(self, position: int) -> Iterator[int]:
        for attempt in range(1, ATTEMPTS):
            rng = np.random.default_rng([self.seed, position, attempt])
            yield int(rng.integers(len(self.source)))

    def _crop(self, image: bytes | np.ndarray, position: int) -> np.ndarray:
        if self.scale is None:
            pixels = decode(image, self.channels)
            return resize_center_crop(pixels, self.image_size, 1.0, self.interpolation)
        return random_crop(
            image,
            channels=self.channels,
            size=self.image_size,
            rng=np.random.Generator(np.random.Philox(key=[self.seed, position])),
            scale=self.scale,
            ratio=self.ratio,
            interpolation=self.interpolation,
            fast=self.fast_decode,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassBatches(Batches):
    """Batches of one pass over all examples, in order."""

    crop_fraction: float

    def __len__(self) -> int:
        return -(-len(self.source) // self.global_batch_size)

    def _indices(self, positions: np.ndarray) -> np.ndarray:
        return np.where(positions < len(self.source), positions, -1)

    def _crop(self, image: bytes | np.ndarray, position: int) -> np.ndarray:
        del position
        return resize_center_crop(
            decode(image, self.channels),
            self.image_size,
            self.crop_fraction,
            self.interpolation,
        )


# Two epochs are in use at once where a batch runs on into the next one.
@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """int[n]: the examples of one epoch in their random order."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)
