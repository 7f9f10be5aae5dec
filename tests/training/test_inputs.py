"""From config.data to batches on the devices."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
import tiny_config

from simmim_jax.data.sources.base import ArraySource, SubsetSource
from simmim_jax.runtime import sharding
from simmim_jax.training import inputs

ALLOWED = 4  # batches until the source is stuck


@dataclasses.dataclass(frozen=True)
class Stuck(ArraySource):
    """A source that is stuck after some images until it is freed."""

    free: threading.Event = dataclasses.field(default_factory=threading.Event)
    asked: list[int] = dataclasses.field(default_factory=list)

    def __getitem__(self, index):
        self.asked.append(index)
        if len(self.asked) > ALLOWED * 16:
            self.free.wait(60)
        return super().__getitem__(index)


def images(count=100):
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), np.uint8)


def config(**data):
    config = tiny_config.get_config("pretrain")
    config.data.update(data)
    return config


def test_batches_that_are_there_do_not_wait_for_one_that_is_late():
    source = Stuck(images(), None, ())
    iterator = inputs.train_batches(config(), source)
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


def test_up_to_two_batches_are_on_the_devices_ahead_of_their_step():
    iterator = inputs.train_batches(config(), ArraySource(images(), None, ()))
    batches = inputs.batches_on_devices(iterator, sharding.make_mesh())
    ahead = []
    for step in range(1, 20):
        _, position = next(batches)
        assert position["examples_seen"] == 16 * step  # of this batch, not of those
        ahead.append(iterator.get_state()["examples_seen"] // 16 - step)
        for _, future in iterator._pool._under_way:
            future.result()  # those that follow are ready
    assert max(ahead) == 2
    iterator.close()


def test_batches_on_devices_are_those_of_the_iterator():
    source = ArraySource(images(), None, ())
    iterator = inputs.train_batches(config(), source)
    expected = inputs.train_batches(config(), source)
    batches = inputs.batches_on_devices(iterator, sharding.make_mesh())
    kept = [next(batches)[0] for _ in range(15)]
    for batch in kept:
        np.testing.assert_array_equal(batch["image"], next(expected)["image"])


@pytest.mark.parametrize(
    ("class_names", "says"),
    [
        ((), "1,100 images to train on, 60 held out"),
        (("cat", "dog"), "1,100 images to train on, 60 held out, 2 classes: cat, dog"),
        (
            tuple(f"n{i}" for i in range(1000)),
            "1,100 images to train on, 60 held out, 1,000 classes: "
            "n0, n1, n2, n3, n4, n5, ...",
        ),
    ],
)
def test_what_a_run_sees_in_a_line(class_names, says):
    train, held_out = (ArraySource(images(n), None, class_names) for n in (1100, 60))
    assert inputs.describe(train, held_out, class_names, 1100) == says


def test_a_batch_larger_than_the_data_set_is_told():
    source = ArraySource(images(10), None, ())
    says = "10 images to train on (each 2.5 times in a batch of 25), 10 held out"
    assert inputs.describe(source, source, (), 25) == says


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: SubsetSource(s, np.arange(9))])
def test_raw_images_need_no_processes(wrap, monkeypatch):
    monkeypatch.setattr(inputs, "num_cpus", lambda: 64)
    source = wrap(ArraySource(images(), None, ()))
    assert inputs.decoders(config(), source) == (0, 4)
    assert inputs.decoders(config(num_workers=2, num_threads=3), source) == (2, 3)
