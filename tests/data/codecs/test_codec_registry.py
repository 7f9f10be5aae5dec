"""Codecs are chosen by content, and users can add their own."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.codecs import image, registry
from simmim_jax.data.codecs.base import BadImage, BandArray, Codec, Decoding, Raster
from simmim_jax.data.codecs.registry import decode, register_codec, registered_codecs
from simmim_jax.errors import UserError
from tests.images import PHOTOS, encoded, gradient, npy


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])


def decode_levels(data, decoding):
    """Decode a height, a width and one byte per pixel."""
    height, width = data[4:6]
    if len(data) < 6 + height * width:
        raise BadImage("truncated", "The file is cut off.")
    pixels = np.frombuffer(data, np.uint8, height * width, 6)
    pixels = pixels.reshape(height, width, 1)
    return Raster(np.repeat(pixels, decoding.channels, axis=2))


LEVELS = Codec("levels", b"LVLS", decode_levels)


def test_content_decides():
    pixels = gradient(7, 9, 3)
    for data in (encoded(Image.fromarray(pixels)), npy(pixels), pixels):
        np.testing.assert_array_equal(decode(data, Decoding(3)), pixels)


def test_photographs_reach_the_image_codec_unchanged():
    data = PHOTOS[0].read_bytes()
    np.testing.assert_array_equal(
        decode(data, Decoding(3)), image.decode_image(data, Decoding(3)).pixels
    )


def test_a_registered_codec_decodes():
    data = b"LVLS\x01\x02\x07\x09"
    with pytest.raises(BadImage, match="not an image"):
        decode(data, Decoding(1))
    assert register_codec(LEVELS) is LEVELS
    assert decode(data, Decoding(1)).tolist() == [[[7], [9]]]
    with pytest.raises(BadImage, match="cut off"):
        decode(data[:-1], Decoding(1))
    assert registered_codecs() == (LEVELS,)


def test_registered_codecs_come_first_and_replace_their_namesakes():
    register_codec(Codec("png", b"\x89PNG", lambda *_: Raster(np.zeros((1, 1, 1)))))
    register_codec(LEVELS)
    register_codec(Codec("levels", (b"lvls", b"LVLS"), decode_levels))
    assert len(registered_codecs()) == 2
    assert decode(encoded(Image.new("L", (3, 3))), Decoding(1)).shape == (1, 1, 1)
    assert decode(b"lvls\x01\x01\x05", Decoding(3)).tolist() == [[[5, 5, 5]]]


def test_signatures_may_stand_behind_a_preamble():
    register_codec(
        Codec("late", b"DICM", lambda *_: Raster(np.ones((1, 1, 1))), offset=128)
    )
    assert decode(bytes(128) + b"DICM", Decoding(1)).tolist() == [[[1]]]
    with pytest.raises(BadImage):
        decode(bytes(127) + b"DICM", Decoding(1))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_pass_unchanged(dtype):
    array = gradient(4, 5, 6).astype(dtype)
    assert decode(array, Decoding(6)) is array
    assert decode(array[:, :, 0], Decoding(1)).shape == (4, 5, 1)
    with pytest.raises(UserError, match=r"\[4, 5, 6\]: expected .* since channels=3"):
        decode(array, Decoding(3))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int8", [-1, 127]),
        ("uint16", [300, 65535]),
        ("int16", [-300, 32767]),
        ("uint32", [2**31 + 5, 0]),
        ("int32", [-(2**31), 5]),
        ("float32", [0.5, -1e30]),
    ],
)
def test_values_and_dtype_are_kept(dtype, values):
    for order in ("<", ">"):
        array = np.array(values, np.dtype(dtype).newbyteorder(order)).reshape(1, 2, 1)
        for data in (array, npy(array), npy(np.asfortranarray(array))):
            decoded = decode(data, Decoding(1))
            assert decoded.dtype == np.dtype(dtype)
            assert decoded.dtype.isnative
            assert decoded.ravel().tolist() == np.array(values, dtype).tolist()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("bool", "uint8"),
        ("int64", "int32"),
        ("uint64", "uint32"),
        ("float16", "float32"),
        ("float64", "float32"),
    ],
)
def test_values_that_no_device_has_are_converted(given, taken):
    decoded = decode(np.array([[1, 0]], given), Decoding(1))
    assert (decoded.dtype, decoded.ravel().tolist()) == (np.dtype(taken), [1, 0])


def test_a_range_becomes_8_bits():
    values = np.array([[-5, 0, 300, 4095, 9000]], np.int16)
    decoded = decode(values, Decoding(1, value_range=(0, 4095)))
    assert decoded.dtype == np.uint8
    assert decoded.ravel().tolist() == [0, 0, 19, 255, 255]
    assert decode(
        np.array([[np.nan, -1, 1]], np.float32), Decoding(1, value_range=(-1, 1))
    ).ravel().tolist() == [0, 0, 255]


def test_pixels_without_data_are_black_in_8_bits():
    pixels = np.array([[0, 4000, 65535]], np.uint16)
    image = BandArray.of(Raster(pixels[..., None], nodata=65535.0))
    decoded = decode(image, Decoding(1, value_range=(0, 4000)))
    assert decoded.ravel().tolist() == [0, 255, 0]


class Bands:
    """Images whose first byte is a value, of two named bands, with nodata 9."""

    @staticmethod
    def decode(data, decoding):
        pixels = np.array(list(data[4:]), np.uint8).reshape(1, -1, 2)
        return Raster(pixels, ("red", "nir"), nodata=9)


def test_bands_are_chosen_by_name():
    register_codec(Codec("bands", b"BAND", Bands.decode))
    data = b"BAND\x01\x02\x03\x09"
    assert decode(data, Decoding(2)).tolist() == [[[1, 2], [3, 9]]]
    wanted = Decoding(2, bands=("nir", "red"), nodata=0)
    assert decode(data, wanted).tolist() == [[[2, 1], [0, 3]]]
    assert registry.read(data, wanted).bands == ("nir", "red")
    with pytest.raises(UserError, match=r"no band 'ni': it has red, nir. Did you mean"):
        decode(data, Decoding(bands=("ni",)))
    with pytest.raises(UserError, match="an image names none of its 1 bands"):
        decode(np.zeros((2, 2), np.uint8), Decoding(bands=("nir",)))


def test_bands_that_a_file_lacks_have_no_measurement():
    register_codec(Codec("bands", b"BAND", Bands.decode))
    data = b"BAND\x01\x02\x03\x09"
    wanted = Decoding(3, bands=("nir", "swir", "red"), fill_bands=True)
    assert decode(data, wanted).tolist() == [[[2, 9, 1], [9, 9, 3]]]
    marked = dataclasses.replace(wanted, nodata=-9999.0)
    found = decode(data, marked)
    assert found.tolist() == [[[2, -9999, 1], [-9999, -9999, 3]]]
    assert found.dtype == np.int16  # which has that value
    with pytest.raises(UserError, match="no band 'swir': it has red, nir"):
        decode(data, Decoding(bands=("swir",), fill_bands=True))
    unmarked = Raster(np.zeros((1, 1, 2), np.uint8), ("red", "nir"))
    register_codec(Codec("bands", b"BAND", lambda *_: unmarked))
    with pytest.raises(UserError, match="uint8 has no value for pixels without"):
        decode(data, wanted)
