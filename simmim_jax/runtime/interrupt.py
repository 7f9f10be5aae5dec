"""Signals that stop a run after it saves a checkpoint."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def catch_signals() -> Iterator[list[str]]:
    """Collect the names of SIGTERM and SIGINT in a list instead of stopping.

    A SIGINT after another signal raises KeyboardInterrupt.
    """
    received: list[str] = []

    def handler(number: int, frame: Any) -> None:
        del frame
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    previous = {}
    with contextlib.suppress(ValueError):  # only the main thread sets handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
