"""Signals that ask a run to save and stop."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def catch_signals() -> Iterator[list[str]]:
    """A list that gets the name of a SIGTERM or SIGINT while the loop runs."""
    received: list[str] = []

    def handler(number: int, frame: Any) -> None:
        del frame
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        received.append(signal.Signals(number).name)

    previous = {}
    with contextlib.suppress(ValueError):  # not in the main thread: a notebook's
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
