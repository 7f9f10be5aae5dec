"""Worker threads and processes that fill batches.

They write rows to where the batch will be used; see `memory`. The pool is ours because
Grain, measured on 2 busy cores with batches of 38 MB and 2 workers, took 15.7 ms a
batch against 4.1 to 5.5 ms, and left workers and shared memory behind after SIGKILL.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Protocol

from simmim_jax.data.codecs.registry import register_codec, registered_codecs
from simmim_jax.data.loader.bad_examples import BadExample
from simmim_jax.data.loader.memory import Batch, BatchMemory, Fields, anonymous_file
from simmim_jax.runtime.host_memory import keep_freed_images

# A batch, and its examples that cannot be used.
Filled = tuple[Batch, list[BadExample]]

# Batches that are ready or being filled beside the one in use.
AHEAD = 2
# Maximum threads of a process, one a CPU. Decoding and resizing release the interpreter
# lock; the rest of an image's time, 0.07 to 0.2 ms of 0.7 to 1.7 ms (500x375 pixels,
# bilinear and bicubic), holds it: eight threads would keep it busy all the time. Four
# leave time for the training loop.
_THREADS = 4
_OWN_GROUP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def num_cpus() -> int:
    """Return the CPUs that this process may use, by affinity and container quota."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    return math.ceil(min(cpus, _cpu_quota()))


def _cpu_quota() -> float:
    """Return the CPU quota of Linux control groups (version 2); inf: none."""
    quota = math.inf
    with contextlib.suppress(OSError):
        group = _OWN_GROUP.read_text().rpartition("0::/")[2].strip()
        for path in (_GROUPS / group, *(_GROUPS / group).parents):
            with contextlib.suppress(OSError):
                most, period = (path / "cpu.max").read_text().split()
                if most != "max":
                    quota = min(quota, int(most) / int(period))
    return quota


def share_out(
    cpus: int, num_workers: int = -1, num_threads: int = -1
) -> tuple[int, int]:
    """Return worker processes, and threads in each, for a number of CPUs.

    num_workers, num_threads: -1 chooses. returns: (0, threads) where threads of this
    process are enough.
    """
    if num_workers < 0:
        threads = num_threads if num_threads > 0 else _THREADS
        num_workers = -(-cpus // threads) if cpus > threads else 0
    if num_threads < 0:
        num_threads = min(_THREADS, -(-cpus // max(num_workers, 1)))
    return num_workers, num_threads


class Filler(Protocol):
    """What fills batches; pickled once for all workers."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""

    @property
    def fields(self) -> Fields:
        """Shape and dtype of each array of a batch."""

    def fill(self, step: int, rows: range, batch: Batch) -> list[BadExample]:
        """Write these rows of a batch; return the examples that cannot be used."""


class Threads:
    """Batches filled by threads of this process."""

    def __init__(self, filler: Filler):
        keep_freed_images()
        self._filler = filler
        self._memory = BatchMemory(filler.fields)
        self._threads = concurrent.futures.ThreadPoolExecutor(AHEAD)
        self._under_way: collections.deque = collections.deque()

    def start(self, step: int) -> None:
        """Start to fill the batch of a step."""
        _, batch = self._memory.take()
        rows = range(self._filler.batch_size)
        future = self._threads.submit(self._filler.fill, step, rows, batch)
        self._under_way.append((batch, future))

    def is_ready(self) -> bool:
        """Whether `result` would not wait."""
        return self._under_way[0][1].done()

    def result(self) -> Filled:
        """Return the oldest batch that was started, once it is filled."""
        batch, future = self._under_way.popleft()
        return batch, future.result()

    def close(self) -> None:
        """Drop the batches that are being filled."""
        self._threads.shutdown(cancel_futures=True)


class Workers:
    """Batches filled by processes, each of which fills its own rows of every batch.

    They end with this object and with the process that made it, also when it is killed.
    """

    def __init__(self, filler: Filler, num_workers: int):
        shared = anonymous_file()
        self._memory = BatchMemory(filler.fields, shared)
        self._under_way: collections.deque[Batch] = collections.deque()
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        # Also runs at exit, before multiprocessing would wait for the workers.
        self.close = util.Finalize(
            self, _end, (self._connections, self._processes, shared), exitpriority=1
        )
        # Pickled once, into a file: through a pipe, each worker would have to run
        # before the next one can start.
        with open(anonymous_file(), "wb") as file:
            pickle.dump((filler, registered_codecs()), file)
            file.flush()
            for worker in range(num_workers):
                ends = worker * filler.batch_size, (worker + 1) * filler.batch_size
                rows = range(*(end // num_workers for end in ends))
                self._start_worker(file.fileno(), shared, rows)

    def _start_worker(self, filler: int, shared: int, rows: range) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # It starts with the first process, and would unblock the signals again.
        resource_tracker.ensure_running()
        # Ctrl-C reaches all processes, and a scheduler may send SIGTERM to all. Workers
        # inherit blocked signals, and decode until the run is saved.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process = context.Process(
                target=_work,
                args=(theirs, _Inherited(filler), _Inherited(shared), rows),
                daemon=True,
            )
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._connections.append(ours)
        self._processes.append(process)

    def start(self, step: int) -> None:
        """Start to fill the batch of a step."""
        slot, batch = self._memory.take()
        self._under_way.append(batch)
        for connection in self._connections:
            # `result` notices a dead worker.
            with contextlib.suppress(OSError):
                connection.send((step, slot))

    def is_ready(self) -> bool:
        """Whether `result` would not wait."""
        return all(connection.poll() for connection in self._connections)

    def result(self) -> Filled:
        """Return the oldest batch that was started, once it is filled."""
        found: list[BadExample] = []
        for connection, process in zip(self._connections, self._processes, strict=True):
            try:
                answer = connection.recv()
            except (EOFError, OSError):
                process.join()
                raise RuntimeError(
                    f"A worker process ended with exit code {process.exitcode} (-9: "
                    "killed, as when memory runs out; 1: see its error above; in a "
                    "script, train below `if __name__ == '__main__'`). Try a smaller "
                    "config.data.num_workers; 0 decodes without processes."
                ) from None
            if isinstance(answer, _Failure):
                raise answer.error from RuntimeError(f"in a worker:\n{answer.trace}")
            found += answer
        return self._under_way.popleft(), found


def run_ahead(pool: Threads | Workers, steps: Iterable[int]) -> Iterator[Filled]:
    """Yield the batches of `steps`, with `AHEAD` more of them being filled."""
    waiting = 0
    for step in steps:
        pool.start(step)
        waiting += 1
        if waiting > AHEAD:
            waiting -= 1
            yield pool.result()
    for _ in range(waiting):
        yield pool.result()


# ---- In a worker ---------------------------------------------------------------------


class _Inherited:
    """A file descriptor that a process inherits from the one that starts it."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __reduce__(self) -> tuple:
        return _take_over, (DupFd(self.descriptor),)


def _take_over(inherited: Any) -> "_Inherited":
    return _Inherited(inherited.detach())


@dataclasses.dataclass(frozen=True)
class _Failure:
    """The error that ended the work on a batch."""

    error: Exception
    trace: str


def _work(
    connection: Connection, filler: _Inherited, shared: _Inherited, rows: range
) -> None:
    """Fill the rows of each (step, slot) that arrives until the main process ends."""
    keep_freed_images()
    with mmap.mmap(filler.descriptor, 0, access=mmap.ACCESS_READ) as pickled:
        fill, codecs = pickle.loads(pickled)
    for codec in reversed(codecs):  # the newest first
        register_codec(codec)
    os.close(filler.descriptor)  # frees the memory, too
    memory = BatchMemory(fill.fields, shared.descriptor)
    # The main process closes its end, or has ended.
    with contextlib.suppress(EOFError, OSError):
        while True:
            step, slot = connection.recv()
            try:
                answer = fill.fill(step, rows, memory.at(slot))
            except Exception as error:
                answer = _failure(error)
            connection.send(answer)


def _failure(error: Exception) -> _Failure:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # it holds something that cannot be pickled
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return _Failure(error, "".join(traceback.format_exception(error)))


def _end(
    connections: list[Connection], processes: list[BaseProcess], shared: int
) -> None:
    # Workers hold no state, so they are killed.
    for connection, process in zip(connections, processes, strict=True):
        connection.close()
        process.kill()
    for process in processes:
        process.join()
    os.close(shared)
