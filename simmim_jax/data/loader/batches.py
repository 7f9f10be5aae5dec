"""Which examples make up a batch, in which order, and how its rows are filled."""

import abc
import concurrent.futures
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from simmim_jax.data.codecs.image import BadImage
from simmim_jax.data.loader.bad_examples import BadExample, reason_of
from simmim_jax.data.loader.memory import Batch, Fields
from simmim_jax.data.sources.base import (
    NO_LABEL,
    ArraySource,
    Source,
    SubsetSource,
)
from simmim_jax.data.views.base import View
from simmim_jax.errors import UserError

# Give up after this many consecutive failures: the storage is probably gone. Where half
# of the examples are bad, one place in 2**100 meets as many by chance.
ATTEMPTS = 100
# Values of a row that a single thread fills as fast as several would.
_SMALL_ROW = 96 * 96 * 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches(abc.ABC):
    """What the stream and the pass share; see `train_iterator` for the fields."""

    source: Source
    view: View
    batch_size: int
    process_index: int
    process_count: int
    num_threads: int
    first: int = 0

    def __post_init__(self) -> None:
        if len(self.source) == 0:
            raise UserError(
                "The source is empty: expected at least one example. Name another "
                "split in --config.data.train_split or eval_split, or pass other data."
            )

    @property
    def global_batch_size(self) -> int:
        """Examples of a batch over all processes."""
        return self.batch_size * self.process_count

    @property
    def fields(self) -> Fields:
        """Shape and dtype of each array of a batch."""
        n = self.batch_size
        rows = {
            name: ((n, *spec.shape), spec.dtype)
            for name, spec in self.view.spec.items()
        }
        return rows | {"weight": ((n,), np.float32)}

    def positions(self, step: int) -> np.ndarray:
        """Return int[b]: places in the stream of this process's part of a batch."""
        start = self.first + step * self.global_batch_size
        start += self.process_index * self.batch_size
        return np.arange(start, start + self.batch_size)

    @functools.cached_property
    def _threads(self) -> concurrent.futures.ThreadPoolExecutor:
        # Made on first use: it cannot be pickled for a worker.
        return concurrent.futures.ThreadPoolExecutor(self._num_runs)

    @property
    def _num_runs(self) -> int:
        # Small raw images are cropped in so little time that threads would mostly
        # wait for the interpreter lock: 8 of them make 13k images/s, one makes 34k.
        values = sum(math.prod(spec.shape) for spec in self.view.spec.values())
        small = values <= _SMALL_ROW and self._arrays[0] is not None
        return 1 if small else self.num_threads

    @functools.cached_property
    def _arrays(self) -> tuple[ArraySource | None, np.ndarray | None]:
        """The arrays below the source, and its choice of them, where it has any."""
        if isinstance(self.source, ArraySource):
            return self.source, None
        if isinstance(self.source, SubsetSource) and isinstance(
            self.source.source, ArraySource
        ):
            return self.source.source, self.source.indices
        return None, None

    def fill(self, step: int, rows: range, batch: Batch) -> list[BadExample]:
        """Write these rows of a batch; return the examples that cannot be used."""
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

        # One run of rows a thread: submitting rows one by one costs as much as a crop
        # of a small image.
        runs = np.array_split(np.array(rows), self._num_runs)
        return [bad for found in self._threads.map(fill_run, runs) for bad in found]

    def _check(self, values: dict[str, Any]) -> None:
        """Raise UserError where what a view returns is not what its spec says."""
        spec = self.view.spec
        for name in spec.keys() | values.keys():
            value = np.asarray(values.get(name))
            if (
                name not in spec
                or name not in values
                or value.shape != spec[name].shape
                or not np.can_cast(value.dtype, spec[name].dtype, "same_kind")
            ):
                raise UserError(
                    f"{type(self.view).__name__} returned {name!r} as {value.dtype} "
                    f"{list(value.shape)}: expected what its spec says, {spec}. "
                    "Change one of them."
                )

    @abc.abstractmethod
    def _indices(self, positions: np.ndarray) -> np.ndarray:
        """Return int[b]: the examples at these positions, -1 where there is none."""

    def _replacements(self, position: int) -> Iterator[int]:
        """Yield examples that replace a bad one, until one of them is good."""
        return iter(())

    def _rng(self, position: int) -> np.random.Generator:
        """Return the randomness of a position."""
        return np.random.default_rng(position)

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
                values = self.view(example, self._rng(position))
                if row == 0:
                    self._check(values)
                for name, value in values.items():
                    batch[name][row] = value
            except (OSError, BadImage) as error:
                path = path or str(getattr(error, "filename", None) or "")
                found.append(BadExample(index, reason_of(error), path, attempt))
            except ValueError as error:
                error.add_note(f"Example {index}: {path or self.source}")
                raise
            else:
                batch["weight"][row] = 1
                return found
        for array in batch.values():
            array[row] = 0
        if "label" in batch:
            batch["label"][row] = NO_LABEL
        return found


class _Key(np.random.bit_generator.ISeedSequence):
    """A key of Philox. `Philox(key=...)` first asks the system for entropy, 12 us."""

    def __init__(self, seed: int, position: int):
        self.key = seed, position

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """Return the key; n_words: 2."""
        return np.array(self.key, dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamBatches(Batches):
    """Batches of the endless stream of shuffled epochs, from its example `first` on."""

    seed: int

    def fill(self, step: int, rows: range, batch: Batch) -> list[BadExample]:
        """Write these rows of a batch; return the examples that cannot be used."""
        source, chosen = self._arrays
        if source is None or not self.view.is_identity(source.images):
            return super().fill(step, rows, batch)
        # One gather a batch is 100 times faster than image by image.
        part = slice(rows.start, rows.stop)
        indices = self._indices(self.positions(step)[part])
        if chosen is not None:
            indices = chosen[indices]
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

    def _rng(self, position: int) -> np.random.Generator:
        key: Any = _Key(self.seed, position)  # NumPy types a subclass alone
        return np.random.Generator(np.random.Philox(key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassBatches(Batches):
    """Batches of one pass over all examples, in order."""

    def __len__(self) -> int:
        return -(-len(self.source) // self.global_batch_size)

    def _indices(self, positions: np.ndarray) -> np.ndarray:
        return np.where(positions < len(self.source), positions, -1)


# Two epochs are in use at once where a batch runs on into the next one.
@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Return int[n]: the examples of one epoch in their random order."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)
