"""Which examples a survey reads, and what it says of each."""

import io

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.codecs.base import BadImage, Decoding, Raster
from simmim_jax.data.sources.base import as_source
from simmim_jax.data.survey.sample import decoded_by, indices, sample
from simmim_jax.errors import UserError


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_indices_are_spread_evenly_and_differ():
    assert indices(10, 4) == [0, 3, 6, 9]
    assert indices(3, 100) == [0, 1, 2]
    assert indices(1, 5) == [0]
    assert indices(0, 5) == []
    chosen = indices(1_000_003, 1000)
    assert len(set(chosen)) == 1000
    assert chosen[-1] == 1_000_002


def test_a_sample_has_images_bad_ones_and_names_of_encodings():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    deep = np.full((2, 2, 13), 4095, np.uint16)
    found = list(sample(as_source([(png(grey), 7), (b"GIF89a", 1), (deep, 2)]), 10))
    assert [each.index for each in found] == [0, 1, 2]
    assert [each.encoding for each in found] == ["PNG", "unknown", "array"]
    assert [each.label for each in found] == [7, 1, 2]
    first, second, third = (each.image for each in found)
    assert isinstance(first, Raster)
    assert isinstance(third, Raster)
    np.testing.assert_array_equal(first.pixels[:, :, 0], grey)  # grey stays grey
    assert isinstance(second, BadImage)
    assert third.pixels.dtype == np.uint16
    assert third.pixels.shape == (2, 2, 13)


def test_an_error_names_the_example():
    deep = np.full((2, 2, 13), 4095, np.uint16)
    with pytest.raises(UserError, match=r"h, w, 4. since channels=4") as error:
        list(sample(as_source([deep]), 10, decoded_by(Decoding(channels=4))))
    assert error.value.__notes__[0].startswith("Example 0: ")
