"""Codecs are chosen by content, and users can add their own."""

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.codecs import image, registry
from simmim_jax.data.codecs.base import BadImage, Codec
from simmim_jax.data.codecs.registry import decode, register_codec, registered_codecs
from simmim_jax.errors import UserError
from tests.images import PHOTOS, encoded, gradient, npy


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])


def decode_levels(data, channels, max_pixels):
    """Decode a height, a width and one byte per pixel."""
    height, width = data[4:6]
    if len(data) < 6 + height * width:
        raise BadImage("truncated", "The file is cut off.")
    pixels = np.frombuffer(data, np.uint8, height * width, 6)
    return np.repeat(pixels.reshape(height, width, 1), channels, axis=2)


LEVELS = Codec("levels", b"LVLS", decode_levels)


def test_content_decides():
    pixels = gradient(7, 9, 3)
    for data in (encoded(Image.fromarray(pixels)), npy(pixels), pixels):
        np.testing.assert_array_equal(decode(data, 3), pixels)


def test_photographs_reach_the_image_codec_unchanged():
    data = PHOTOS[0].read_bytes()
    np.testing.assert_array_equal(decode(data, 3), image.decode_image(data, 3))


def test_a_registered_codec_decodes():
    data = b"LVLS\x01\x02\x07\x09"
    with pytest.raises(BadImage, match="not an image"):
        decode(data, 1)
    assert register_codec(LEVELS) is LEVELS
    assert decode(data, 1).tolist() == [[[7], [9]]]
    with pytest.raises(BadImage, match="cut off"):
        decode(data[:-1], 1)
    assert registered_codecs() == (LEVELS,)


def test_registered_codecs_come_first_and_replace_their_namesakes():
    register_codec(Codec("png", b"\x89PNG", lambda *_: np.zeros((1, 1, 1))))
    register_codec(LEVELS)
    register_codec(Codec("levels", (b"lvls", b"LVLS"), decode_levels))
    assert len(registered_codecs()) == 2
    assert decode(encoded(Image.new("L", (3, 3))), 1).shape == (1, 1, 1)
    assert decode(b"lvls\x01\x01\x05", 3).tolist() == [[[5, 5, 5]]]


def test_signatures_may_stand_behind_a_preamble():
    register_codec(Codec("late", b"DICM", lambda *_: np.ones((1, 1, 1)), offset=128))
    assert decode(bytes(128) + b"DICM", 1).tolist() == [[[1]]]
    with pytest.raises(BadImage):
        decode(bytes(127) + b"DICM", 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_pass_unchanged(dtype):
    array = gradient(4, 5, 6).astype(dtype)
    assert decode(array, 6) is array
    assert decode(array[:, :, 0], 1).shape == (4, 5, 1)
    with pytest.raises(UserError, match=r"\[4, 5, 6\]: expected .* since channels=3"):
        decode(array, 3)
