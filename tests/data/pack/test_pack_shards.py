"""How images are packed."""

import io

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.pack.shards import Options, pack_image
from simmim_jax.data.views.crop import resize_center_crop
from simmim_jax.errors import UserError
from tests.images import PHOTOS, gradient, npy


def test_a_higher_quality_is_larger_and_more_exact():
    image = PHOTOS[0].read_bytes()
    expected = pack_image(image, Options(256, "raw")).astype(int)
    sizes, errors = [], []
    for quality in (70, 90, 98):
        file = pack_image(image, Options(256, "jpeg", quality))
        sizes.append(len(file))
        errors.append(np.abs(decode(file, Decoding(3)) - expected).mean())
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 4  # of 255


def test_reduced_decoding_is_close_to_a_full_resize():
    whole = Image.open(PHOTOS[0])
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    whole.resize((1707, 1280), Image.Resampling.LANCZOS).save(file, "JPEG", exif=exif)
    expected = resize_center_crop(
        decode(file.getvalue(), Decoding(3)), (170, 128), 1, "bicubic"
    )
    got = pack_image(file.getvalue(), Options(128, "raw"))
    assert got.shape == (170, 128, 3)
    error = np.abs(got.astype(int) - expected)
    assert 0 < error.mean() < 1  # of 255; not 0, as the JPEG was reduced while decoded
    assert error.max() < 40
    broken = file.getvalue()[:50_000]
    with pytest.raises(BadImage) as caught:
        pack_image(broken, Options(128))
    assert caught.value.reason == "truncated"


def test_images_beyond_the_limits_of_jpeg_are_too_large():
    line = np.zeros((1, 65_501, 3), np.uint8)
    with pytest.raises(BadImage, match="--format=raw") as caught:
        pack_image(line, Options())
    assert caught.value.reason == "too large"
    assert pack_image(line, Options(256, "raw")).shape == line.shape


def test_gray_images_are_packed_gray():
    image = PHOTOS[0].read_bytes()
    file = pack_image(image, Options(64, "jpeg", 90, channels=1))
    assert decode(file, Decoding(1)).shape == (64, 95, 1)
    with Image.open(io.BytesIO(file)) as opened:
        assert opened.mode == "L"


VALUES = np.random.default_rng(0).normal(size=(9, 12, 5)).astype(np.float32)


@pytest.mark.parametrize("image", [VALUES, npy(VALUES)], ids=["array", "npy"])
def test_float32_images_are_packed_raw_and_resized_as_float32(image):
    whole = pack_image(image, Options(0, "raw", channels=5))
    np.testing.assert_array_equal(whole, VALUES)
    small = pack_image(image, Options(3, "raw", channels=5))
    assert small.shape == (3, 4, 5)
    assert small.dtype == np.float32
    np.testing.assert_allclose(small.mean((0, 1)), VALUES.mean((0, 1)), atol=0.2)


@pytest.mark.parametrize("image", [VALUES, gradient(9, 12, 5)], ids=["float", "uint8"])
def test_arrays_that_no_jpeg_can_store_are_refused(image):
    message = rf"cannot store {image.dtype} images of 5 channels.*--format=raw"
    with pytest.raises(UserError, match=message) as raised:
        pack_image(image, Options(3, channels=5))
    assert not isinstance(raised.value, BadImage)
