"""What every store of images has to do, on images of one value each."""

import numpy as np

from simmim_jax.cli.pack import main
from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.loader.pipeline import train_iterator
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.data.views.image import ImageView

SIZE = (4, 5)


def contents(place):
    """Return {value: label} of the images of both splits."""
    found = {}
    for split in ("train", "validation"):
        check_source(place, split)
        source = open_source(place, split)
        labels = [-1] * len(source) if source.labels is None else source.labels
        for i in range(len(source)):
            example = source[i]
            assert example["label"] == labels[i]
            value = _value(decode(example["image"], Decoding()))
            assert value not in found
            found[value] = int(labels[i])
    return found


def trains_and_packs(place, out, expected, dtype="uint8"):
    """Check batches, where they resume, worker processes, and `simmim pack`.

    expected: {value: label} of both splits; out: folder to pack into.
    """
    assert contents(place) == expected
    _check_batches(place, expected, dtype)
    main([place, str(out), "--format=raw", "--channels=1"])
    assert contents(str(out)) == expected


def _check_batches(place, expected, dtype):
    def stream(num_workers):
        view = ImageView(
            size=SIZE, decoding=Decoding(1), interpolation="nearest", dtype=dtype
        )
        source = open_source(place, "train")
        return train_iterator(
            source, view, batch_size=3, seed=0, num_workers=num_workers
        )

    here, others, resumed = stream(0), stream(2), stream(0)
    for step in range(5):
        batch, same = next(here), next(others)
        if step == 1:
            resumed.set_state(here.get_state())
        np.testing.assert_array_equal(batch["image"], same["image"])
        np.testing.assert_array_equal(batch["label"], same["label"])
        for image, label in zip(batch["image"], batch["label"], strict=True):
            assert expected[_value(image)] == label
        if step > 1:
            np.testing.assert_array_equal(next(resumed)["image"], batch["image"])
    for iterator in (here, others, resumed):
        iterator.close()


def _value(image):
    (value,) = np.unique(image)
    return int(value)
