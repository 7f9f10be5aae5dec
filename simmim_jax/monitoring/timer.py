"""Training rate, and the share of time spent waiting for input."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StepTimer:
    """Measures images per second and the share of time spent waiting for input."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start anew: after a compilation or evaluation that should not count."""
        self._start = self._clock()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting: `with timer.waiting(): next(batches)`."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    def rates(self, images: int) -> dict[str, float]:
        """Rates since the last call, for `images` images seen since; then resets.

        Returns: {"images_per_second": 1/s, "input_wait": share of time, 0..1}.
        """
        seconds = max(self._clock() - self._start, 1e-9)
        rates = {
            "images_per_second": images / seconds,
            "input_wait": min(self._waited / seconds, 1.0),
        }
        self.reset()
        return rates
