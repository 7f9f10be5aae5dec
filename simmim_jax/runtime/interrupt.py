"""SIGTERM and SIGINT, heard within a second, also while the main thread compiles.

Python runs signal handlers in the main thread, between two bytecodes: a compilation or
a computation delays them until it returns. A thread therefore watches the wakeup pipe,
to which Python's C code writes the number of a signal when it arrives.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from simmim_jax.errors import Interrupted

# Time for the main thread to run its handler, and to leave what that interrupts, which
# may swallow the exception [seconds].
_PATIENCE = 0.5
_LEAVING = 5.0
# Launchers send a signal to the process and to its group: two within this time are
# one [seconds].
_ONE_SIGNAL = 1.0

_active: "Signals | None" = None


class Signals:
    """What a run does about signals, once it listens to them.

    By default a signal raises Interrupted in the main thread. While it is `postponed`
    it is recorded alone, for code that asks `received` and stops by itself. A second
    signal, a second or more after the first, ends the process at once.
    """

    def __init__(self, end: Callable[[Interrupted], object] | None):
        """end: ends the process when the main thread is too busy to be interrupted."""
        self.received: list[str] = []
        self._end = end
        self._finish: Callable[[], object] = lambda: None
        self._is_postponed = False
        self._is_ending = False
        self._is_closed = False
        self._is_swallowed = False
        self._previous: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._old_pipe = -1
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def listen(self) -> None:
        """Start to catch signals. Elsewhere than in the main thread, does nothing."""
        is_main = threading.current_thread() is threading.main_thread()
        if self._pipe or not is_main:
            return
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._old_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._watcher.start()
        self._old_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)

    @contextlib.contextmanager
    def postponed(self) -> Iterator[list[str]]:
        """Record signals instead of raising; yields the names of those received."""
        self._is_postponed = True
        try:
            yield self.received
        finally:
            self._is_postponed = False

    @contextlib.contextmanager
    def at_once(self, finish: Callable[[], object]) -> Iterator[None]:
        """Raise although signals are postponed, also for one received before.

        finish: completes what would be lost, such as writing a checkpoint.
        """
        self._is_postponed, self._finish = False, finish
        try:
            self.raise_received()
            yield
        finally:
            self._is_postponed, self._finish = True, lambda: None

    def raise_received(self) -> None:
        """Raise Interrupted for a signal that was recorded."""
        if self.received:
            raise _interrupted(self.received[0])

    def close(self) -> None:
        """Restore what signals did before."""
        self._is_closed = True
        if not self._pipe:
            return
        for number, old in self._previous.items():
            signal.signal(number, old)
        if sys.unraisablehook == self._unraisable:  # nobody has wrapped it
            sys.unraisablehook = self._old_hook
        signal.set_wakeup_fd(self._old_pipe)
        os.close(self._pipe[1])  # ends the watcher
        self._watcher.join()
        os.close(self._pipe[0])

    def _handle(self, number: int, frame: Any) -> None:
        del frame
        self.received.append(signal.Signals(number).name)
        if not (self._is_postponed or self._is_ending) and len(self.received) == 1:
            raise _interrupted(self.received[0])

    def _unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Note what hooks of JAX's garbage collection swallow; print no traceback."""
        if isinstance(unraisable.exc_value, Interrupted):
            self._is_swallowed = True
        else:
            self._old_hook(unraisable)

    def _watch(self) -> None:
        assert self._pipe
        first = 0.0
        while byte := os.read(self._pipe[0], 1):
            if byte[0] not in self._previous:
                continue  # a signal of somebody else's
            now = time.monotonic()
            if not first:
                first = now
                threading.Thread(
                    target=self._end_if_busy, args=(byte[0],), daemon=True
                ).start()
            elif now - first > _ONE_SIGNAL:
                os._exit(128 + byte[0])

    def _end_if_busy(self, number: int) -> None:
        """End the process unless the main thread handles its first signal in time."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and not self.received:
            time.sleep(0.01)
        end = time.monotonic() + _LEAVING
        while time.monotonic() < end and self.received and not self._is_swallowed:
            time.sleep(0.01)
        if self._is_postponed or self._is_closed or self._end is None:
            return
        self._is_ending = True
        try:
            self._finish()
        finally:
            self._end(_interrupted(signal.Signals(number).name))


@contextlib.contextmanager
def catching(
    end: Callable[[Interrupted], object] | None = None,
) -> Iterator[Signals]:
    """Yield the signals of this process, which a caller further up may have made.

    The outermost call restores the former handlers. An inner one raises Interrupted for
    a signal that came too late for the run before it.
    """
    global _active
    if _active:
        _active.raise_received()
        yield _active
        return
    _active = Signals(end)
    try:
        yield _active
    finally:
        _active.close()
        _active = None


def _interrupted(name: str) -> Interrupted:
    return Interrupted(f"{name}: the same command resumes from the last checkpoint.")
