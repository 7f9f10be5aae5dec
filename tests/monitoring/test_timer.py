"""StepTimer with a clock that stands still between measurements."""

import contextlib

from simmim_jax.monitoring.timer import StepTimer


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_rates_since_the_last_call():
    clock = Clock()
    timer = StepTimer(clock)
    for _ in range(2):
        with timer.waiting():
            clock.now += 1.0
        clock.now += 3.0
    assert timer.rates(80) == {"images_per_second": 10.0, "input_wait": 0.25}
    clock.now += 2.0
    assert timer.rates(80) == {"images_per_second": 40.0, "input_wait": 0.0}


def test_reset_and_a_wait_that_raises():
    clock = Clock()
    timer = StepTimer(clock)
    clock.now += 100.0
    timer.reset()
    with contextlib.suppress(StopIteration), timer.waiting():
        clock.now += 1.0
        next(iter(()))
    clock.now += 1.0
    assert timer.rates(1) == {"images_per_second": 0.5, "input_wait": 0.5}
