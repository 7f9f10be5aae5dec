"""Processes that write or verify shards, and their progress."""

import concurrent.futures
import multiprocessing
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from tqdm import tqdm

from simmim_jax.data.codecs.registry import registered_codecs
from simmim_jax.data.pack.shards import start_process

_REFRESH_SECONDS = 1.0  # of the bar in a terminal
_LOG_SECONDS = 30.0  # between lines in a log file
_COUNTS = "{desc}  {n_fmt}/{total_fmt} images  {rate_fmt}  eta {remaining}{postfix}"
_UNIT = " images"


class Processes:
    """Processes, each initialised with the arguments of `start_process`."""

    def __init__(self, count: int, *given: Any):
        # Not forked: forking a process that has threads may deadlock.
        context = multiprocessing.get_context("spawn")
        self._progress, self._stop = context.Array("q", 2), context.Event()
        self._executor = concurrent.futures.ProcessPoolExecutor(
            count,
            context,
            start_process,
            (*given, registered_codecs(), self._progress, self._stop),
        )

    def map(
        self,
        work: Callable[[Any], Any],
        shards: Sequence[Any],
        verb: str,
        total: int,
        done: int = 0,
    ) -> list[Any]:
        """Do the work on all shards, and show progress from `done` to `total` images.

        raises: ChildProcessError if a process was killed, and the errors of the work.
        """
        self._progress[:] = [done, 0]
        futures = [self._executor.submit(work, shard) for shard in shards]
        try:
            self._watch(futures, verb, total)
            return [future.result() for future in futures]
        except concurrent.futures.process.BrokenProcessPool as error:
            raise ChildProcessError(
                "A process was killed, probably because memory ran out. Run the same "
                "command again with fewer --workers: complete shards are kept."
            ) from error

    def _watch(
        self, futures: list[concurrent.futures.Future[Any]], verb: str, total: int
    ) -> None:
        """Show progress until the work is done; raise its first error at once."""
        in_terminal = sys.stdout.isatty()
        interval = _REFRESH_SECONDS if in_terminal else _LOG_SECONDS
        progress = _Terminal if in_terminal else _Log
        with progress(verb, total, self._progress[0]) as shown:
            waiting: Collection[Any] = futures
            while waiting:
                finished, waiting = concurrent.futures.wait(
                    waiting, interval, concurrent.futures.FIRST_EXCEPTION
                )
                shown.show(*self._progress[:])
                for future in finished:
                    future.result()  # raises the error of the work

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)


class _Terminal(tqdm):
    """A bar."""

    monitor_interval = 0  # no thread: `_watch` refreshes the bar

    def __init__(self, verb: str, total: int, done: int):
        # tqdm itself draws nothing in a terminal that reports no size.
        size = shutil.get_terminal_size()
        super().__init__(
            desc=verb,
            total=total,
            initial=done,
            unit=_UNIT,
            bar_format=_COUNTS,
            smoothing=0,
            # One column stays free: some terminals wrap a line that fills the last one.
            ncols=size.columns - 1,
            nrows=size.lines,
            file=sys.stdout,
        )

    def show(self, done: int, skipped: int) -> None:
        """Redraw the bar."""
        self.n = done
        self.set_postfix_str(_skipped(skipped))


# Only this process draws: tqdm's default lock between processes is not needed.
_Terminal.set_lock(threading.RLock())


class _Log:
    """One line per call."""

    def __init__(self, verb: str, total: int, done: int):
        self._verb, self._total, self._first = verb, total, done
        self._start = time.perf_counter()

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, done: int, skipped: int) -> None:
        """Print a line, except after the last image, which a summary follows."""
        if done == self._total:
            return
        line = tqdm.format_meter(
            done,
            self._total,
            elapsed=time.perf_counter() - self._start,
            initial=self._first,
            prefix=self._verb,
            unit=_UNIT,
            bar_format=_COUNTS,
            postfix=_skipped(skipped),
        )
        print(line, flush=True)


def _skipped(count: int) -> str:
    return f"{count:,} skipped" if count else ""
