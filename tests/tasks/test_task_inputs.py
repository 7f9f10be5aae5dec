"""Descriptions of data sets, and numbers of decoding workers."""

import numpy as np
import pytest
import tiny_config

from simmim_jax.data.sources.base import ArraySource, SubsetSource
from simmim_jax.tasks import inputs


def images(count=100):
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), np.uint8)


@pytest.mark.parametrize(
    ("class_names", "says"),
    [
        ((), ""),
        (("cat", "dog"), ", 2 classes: cat, dog"),
        (
            tuple(f"n{i}" for i in range(1000)),
            ", 1,000 classes: n0, n1, n2, n3, n4, n5, ...",
        ),
    ],
)
def test_description_has_the_set_its_sizes_and_the_first_classes(class_names, says):
    train, held_out = (ArraySource(images(n), None, class_names) for n in (1100, 60))
    data = tiny_config.typed("pretrain").data
    assert inputs.describe(data, train, held_out, class_names) == (
        "bundled:fashion_mnist_10k: 1,100 images to train on (1 x uint8, 28x28), "
        f"60 held out{says}"
    )


def test_description_mentions_a_batch_larger_than_the_data_set():
    source = ArraySource(images(10), None, ())
    fields = {"data.batch_size": 25, "data.dataset": "/data"}
    data = tiny_config.typed("pretrain", **fields).data
    assert inputs.describe(data, source, source) == (
        "/data: 10 images to train on (1 x uint8, 28x28; each 2.5 times in a batch of "
        "25), 10 held out"
    )


def test_run_of_no_length_is_refused():
    config = tiny_config.typed("pretrain", duration="0 epochs")
    with pytest.raises(ValueError, match=r"config\.duration='0 epochs': expected more"):
        inputs.lengths(config, 100)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: SubsetSource(s, np.arange(9))])
def test_raw_arrays_need_no_worker_processes(wrap, monkeypatch):
    monkeypatch.setattr(inputs, "num_cpus", lambda: 64)
    source = wrap(ArraySource(images(), None, ()))
    data = tiny_config.typed("pretrain").data
    assert inputs.decoders(data, source) == (0, 4)
    fields = {"data.num_workers": 2, "data.num_threads": 3}
    data = tiny_config.typed("pretrain", **fields).data
    assert inputs.decoders(data, source) == (2, 3)
