"""Transfer of batches to the devices ahead of their steps."""

import dataclasses
import threading

import jax
import numpy as np
import tiny_config

from simmim_jax.data.sources.base import ArraySource
from simmim_jax.runtime import sharding
from simmim_jax.tasks.inputs import train_batches
from simmim_jax.training import inputs

ALLOWED = 4  # batches before the source blocks


@dataclasses.dataclass(frozen=True)
class Blocking(ArraySource):
    """A source that blocks after some images until `free` is set."""

    free: threading.Event = dataclasses.field(default_factory=threading.Event)
    asked: list[int] = dataclasses.field(default_factory=list)

    def __getitem__(self, index):
        self.asked.append(index)
        if len(self.asked) > ALLOWED * 16:
            self.free.wait(60)
        return super().__getitem__(index)


def images(count=100):
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), np.uint8)


CONFIG = tiny_config.typed("pretrain")


def test_ready_batches_do_not_wait_for_a_late_one():
    source = Blocking(images(), None, ())
    iterator = train_batches(CONFIG, source)
    batches = inputs.batches_on_devices(iterator, sharding.make_mesh())
    seen = []
    late = threading.Timer(5, lambda: (seen.append("late"), source.free.set()))
    late.start()
    for _ in range(ALLOWED):
        batch, position = next(batches)
        seen.append(position["examples_seen"])
        assert isinstance(batch["image"], jax.Array)
    assert seen == [16, 32, 48, 64]
    next(batches)
    assert seen[-1] == "late"
    iterator.close()


def test_at_most_two_batches_are_sent_ahead_of_their_step():
    iterator = train_batches(CONFIG, ArraySource(images(), None, ()))
    batches = inputs.batches_on_devices(iterator, sharding.make_mesh())
    ahead = []
    for step in range(1, 20):
        _, position = next(batches)
        assert (
            position["examples_seen"] == 16 * step
        )  # of this batch, not of those ahead
        ahead.append(iterator.get_state()["examples_seen"] // 16 - step)
        for _, future in iterator._pool._under_way:
            future.result()  # the next batches are ready
    assert max(ahead) == 2
    iterator.close()


def test_batches_on_devices_equal_those_of_the_iterator():
    source = ArraySource(images(), None, ())
    iterator = train_batches(CONFIG, source)
    expected = train_batches(CONFIG, source)
    batches = inputs.batches_on_devices(iterator, sharding.make_mesh())
    kept = [next(batches)[0] for _ in range(15)]
    for batch in kept:
        np.testing.assert_array_equal(batch["image"], next(expected)["image"])
