"""Examples to batches: one endless stream to train on, one exact pass to evaluate.

The stream is the epochs one after another, each in its own random order. A global
batch is the next stretch of it, and process p takes the p-th part of that stretch, so
which examples and crops make up a global batch depends on neither the number of
processes nor on threads and workers. The last stretch of an epoch runs on into the
next one: no example is left out and no batch is short.

An example that cannot be read or decoded does not end the run. In the stream another
example replaces it, and which one depends on the seed and the position alone; in an
evaluation it has no weight.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from simmim_jax.data.loader.bad_examples import ENOUGH, BadImages, Total
from simmim_jax.data.loader.batches import ATTEMPTS, PassBatches, StreamBatches
from simmim_jax.data.loader.memory import Batch
from simmim_jax.data.loader.workers import Threads, Workers, run_ahead
from simmim_jax.data.sources.base import Source
from simmim_jax.data.views.base import View
from simmim_jax.errors import UserError


def train_iterator(
    source: Source,
    view: View,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 8,
    bad: BadImages | None = None,
) -> "TrainIterator":
    """Return an endless iterator over shuffled batches.

    batch_size: of this process; num_workers: processes that decode, 0 = threads of this
    one; num_threads: threads that decode, in each of them; bad: keeps account of
    examples that cannot be used.
    yields: the arrays of view.spec with a batch axis in front.
    raises: UserError if the source is empty, if too many examples are bad, or if an
    example does not fit the view.
    """
    batches = StreamBatches(
        source=source,
        view=view,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
    )
    return TrainIterator(batches, num_workers, bad or BadImages())


def eval_batches(
    source: Source,
    view: View,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 8,
    bad: BadImages | None = None,
    total: Total = lambda counts, names: counts,
) -> "EvalBatches":
    """Return one pass over all examples, in order, as often as it is iterated.

    batch_size: of this process; bad: keeps account of examples that cannot be used,
    anew in each pass; total: sums up its counts over all processes when a pass is over.
    yields: the arrays of view.spec with a batch axis in front, and "weight" float32[b]:
    1 for an example, 0 for one that cannot be used and for the padding of the last
    batch. Every process yields equally many batches, if need be of padding.
    raises: UserError if the source is empty, if too many examples are bad, or if an
    example does not fit the view.
    """
    batches = PassBatches(
        source=source,
        view=view,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
    )
    return EvalBatches(batches, bad or BadImages(), total)


class TrainIterator(Iterator[Batch]):
    """An iterator whose state is the number of examples that all processes have seen.

    A position in the stream is valid for any number of threads, workers and processes
    and any batch size: a run that resumes with other numbers neither repeats nor skips
    an example.
    """

    def __init__(self, batches: "StreamBatches", num_workers: int, bad: BadImages):
        self._batches = batches
        self._num_workers = num_workers
        self._bad = bad
        self._pool: Threads | Workers | None = None
        self._restart(first=0)

    def _restart(self, first: int) -> None:
        self._batches = dataclasses.replace(self._batches, first=first)
        self._taken = 0

    def __next__(self) -> Batch:
        if self._pool is None:
            self._pool = (
                Workers(self._batches, self._num_workers)
                if self._num_workers
                else Threads(self._batches)
            )
            self._filled = run_ahead(self._pool, itertools.count())
        batch, found = next(self._filled)
        self._taken += 1
        self._bad.add(found)
        for i, bad in enumerate(found):
            if bad.attempt == ATTEMPTS - 1:
                reasons = [bad.reason for bad in found[i + 1 - ATTEMPTS : i + 1]]
                raise self._bad.too_many(f"{ATTEMPTS} examples in a row", reasons)
        of_all = len(self._batches.source)
        different = min(self._taken * self._batches.batch_size, of_all)
        self._bad.judge(different, min(ENOUGH, of_all))
        del batch["weight"]
        return batch

    def is_ready(self) -> bool:
        """Whether the next batch needs no waiting; to be asked between batches."""
        return self._pool is not None and self._pool.is_ready()

    @property
    def _examples_seen(self) -> int:
        return self._batches.first + self._taken * self._batches.global_batch_size

    def get_state(self) -> dict[str, Any]:
        """Return the position, a JSON-able dict.

        It is the same in every process, except for "bad_images", the number of
        positions so far whose example was bad, by reason.
        """
        return {
            "examples_seen": self._examples_seen,
            "num_examples": len(self._batches.source),
            "seed": self._batches.seed,
            "bad_images": dict(self._bad.counts),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position; raises UserError if it belongs to another stream."""
        now = self.get_state()
        for key in ("num_examples", "seed"):
            if state[key] != now[key]:
                raise UserError(
                    f"The checkpoint's data position has {key}={state[key]}, this run "
                    f"has {key}={now[key]}: expected the same data and seed. Resume "
                    "with those, or start a new run in another --workdir."
                )
        self.close()
        self._bad.restart(state.get("bad_images", {}))
        self._restart(state["examples_seen"])

    def close(self) -> None:
        """Stop threads and workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class EvalBatches:
    """The batches of one pass; see `eval_batches`."""

    def __init__(self, batches: PassBatches, bad: BadImages, total: Total):
        self._batches, self._total = batches, total
        # Bad examples of the last pass, as far as it went.
        self.bad = bad

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        self.bad.restart({})
        threads = Threads(self._batches)
        examples = 0
        try:
            for step, (batch, found) in enumerate(run_ahead(threads, range(len(self)))):
                self.bad.add(found)
                positions = self._batches.positions(step)
                examples += int((positions < len(self._batches.source)).sum())
                self.bad.judge(examples)
                yield batch
            self.bad.judge_pass(len(self._batches.source), self._total)
        finally:
            threads.close()
