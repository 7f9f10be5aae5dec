"""Files of more than 8 bits a sample, and of bands that are no colours.

Written by Pillow 13.0.0, OpenCV 5.0.0 and imagecodecs 2026.3.6.
"""

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.registry import decode
from tests.images import encoded

GREY = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def written(pixels, ending):
    """The file that OpenCV writes for RGB or RGBA."""
    if pixels.ndim == 3:
        order = [2, 1, 0, 3][: pixels.shape[2]]
        pixels = np.ascontiguousarray(pixels[:, :, order])
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    options = lossless if ending == ".jp2" else []
    return cv2.imencode(ending, pixels, options)[1].tobytes()


@pytest.mark.parametrize("ending", [".png", ".jp2", ".ppm"])
@pytest.mark.parametrize("bits", [16, 12])
def test_samples_keep_their_values(ending, bits):
    # Pillow gives 16-bit colours as their upper byte: 4095 becomes 15.
    grey, rgb = GREY >> (16 - bits), RGB >> (16 - bits)
    by_pillow = encoded(Image.fromarray(grey))
    for file in (written(grey, ending.replace("ppm", "pgm")), by_pillow):
        found = decode(file, Decoding(1))
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found[:, :, 0], grey)
        np.testing.assert_array_equal(decode(file, Decoding()), found)
        three = decode(file, Decoding(3))
        np.testing.assert_array_equal(three, np.repeat(found, 3, axis=2))
    np.testing.assert_array_equal(decode(written(rgb, ending), Decoding(3)), rgb)
    np.testing.assert_array_equal(decode(written(rgb, ending), Decoding()), rgb)


def test_12_bit_jpeg_2000_is_not_stretched():
    # Pillow 13.0.0 shifts it to 16 bits: 4095 becomes 65520.
    grey = GREY >> 4
    file = imagecodecs.jpeg2k_encode(grey, level=0, reversible=True, bitspersample=12)
    np.testing.assert_array_equal(decode(file, Decoding(1))[:, :, 0], grey)


def test_luma_of_deep_colours():
    file = written(np.full((4, 4, 3), (1000, 2000, 3000), np.uint16), ".png")
    # 0.299 * 1000 + 0.587 * 2000 + 0.114 * 3000
    assert (decode(file, Decoding(1)) == 1815).all()


def test_a_range_of_12_bit_values():
    values = np.array([[0, 300, 4095]], np.uint16)
    file = encoded(Image.fromarray(values))
    found = decode(file, Decoding(1, value_range=(0, 4095)))
    assert found[0, :, 0].tolist() == [0, 19, 255]


@pytest.mark.parametrize("deep", [False, True])
def test_a_fourth_band_is_transparency_only_where_it_is_a_mask(deep):
    def file(pixels):
        pixels = np.array(pixels, np.uint8)
        if deep:
            return written(pixels.astype(np.uint16) * 257, ".png")
        return encoded(Image.fromarray(pixels))

    unit = 257 if deep else 1
    # Red, green, blue and near infrared in an RGBA PNG.
    bands = np.full((6, 6, 4), (200, 100, 50, 51))
    found = decode(file(bands), Decoding(3)) // unit
    np.testing.assert_array_equal(found, bands[:, :, :3])
    np.testing.assert_array_equal(decode(file(bands), Decoding(4)) // unit, bands)
    # A logo with a soft edge.
    logo = np.full((6, 6, 4), (200, 100, 50, 0))
    logo[2:, :, 3], logo[2, :, 3] = 255, 51
    found = decode(file(logo), Decoding(3)) // unit
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[2, 0].tolist() == [244, 224, 214]
    assert found[3, 0].tolist() == [200, 100, 50]


def test_grey_with_alpha_has_two_channels():
    pixels = np.stack([GREY >> 8, 255 - (GREY >> 8)], axis=2).astype(np.uint8)
    file = encoded(Image.fromarray(pixels, "LA"))
    np.testing.assert_array_equal(decode(file, Decoding(2)), pixels)
    np.testing.assert_array_equal(decode(file, Decoding(1)), pixels[:, :, :1])


def test_as_many_channels_as_the_file_has():
    for mode, channels in (("1", 1), ("L", 1), ("RGB", 3), ("CMYK", 3), ("P", 3)):
        format = "TIFF" if mode == "CMYK" else "PNG"
        file = encoded(Image.new(mode, (4, 4)), format)
        assert decode(file, Decoding()).shape == (4, 4, channels)
