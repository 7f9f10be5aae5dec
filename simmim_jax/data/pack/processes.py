"""Processes that work on shards, and the line that says how far they are."""

import concurrent.futures
import multiprocessing
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from simmim_jax.data.pack.shards import start_process


class Processes:
    """Processes, each of which starts with what `start_process` takes."""

    def __init__(self, count: int, *given: Any):
        # Not forked: a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        self._progress, self._stop = context.Array("q", 2), context.Event()
        self._executor = concurrent.futures.ProcessPoolExecutor(
            count, context, start_process, (*given, self._progress, self._stop)
        )

    def map(
        self,
        work: Callable[[Any], Any],
        shards: Sequence[Any],
        verb: str,
        total: int,
        done: int = 0,
    ) -> list[Any]:
        """Do the work on all shards and show progress: done of total images.

        raises: ChildProcessError if a process was killed, and what the work raises.
        """
        self._progress[:] = [done, 0]
        futures = [self._executor.submit(work, shard) for shard in shards]
        try:
            self._watch(futures, verb, total)
            return [future.result() for future in futures]
        except concurrent.futures.process.BrokenProcessPool as error:
            raise ChildProcessError(
                "A process was killed, most likely for want of memory. Run the same "
                "command again, with fewer --workers: complete shards are kept."
            ) from error

    def _watch(
        self, futures: list[concurrent.futures.Future[Any]], verb: str, total: int
    ) -> None:
        """Wait for all or an error; a line a second in a terminal, else one in 30.

        raises: what the work raised, at once.
        """
        in_terminal = sys.stdout.isatty()
        start, first = time.perf_counter(), self._progress[0]
        waiting: Collection[Any] = futures
        while waiting:
            finished, waiting = concurrent.futures.wait(
                waiting, 1 if in_terminal else 30, concurrent.futures.FIRST_EXCEPTION
            )
            done, skipped = self._progress[:]
            rate = (done - first) / (time.perf_counter() - start)
            line = f"{verb} {done:,} of {total:,} images"
            if done > first:
                left = round((total - done) / rate)
                line += f", {rate:,.0f}/s"
                line += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
            if skipped:
                line += f", {skipped:,} skipped"
            if in_terminal:
                print(f"\r{line}\033[K", end="" if waiting else "\n", flush=True)
            elif waiting:
                print(line, flush=True)
            for future in finished:
                future.result()  # raises what the work raised

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)
