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
        """Start over, for example after a compilation or an evaluation."""
        self._start = self._clock()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the body as waiting: `with timer.waiting(): next(batches)`."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    def rates(self, images: int) -> dict[str, float]:
        """Return rates over `images` images since the last reset, then reset.

        Returns: {"images_per_second": 1/s, "input_wait": share of time, 0..1}.
        """
        seconds = max(self._clock() - self._start, 1e-9)
        rates = {
            "images_per_second": images / seconds,
            "input_wait": min(self._waited / seconds, 1.0),
        }
        self.reset()
        return rates
