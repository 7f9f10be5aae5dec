"""What becomes of an image in a shard."""

import io

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.codecs.image import BadImage, decode
from simmim_jax.data.pack.shards import Options, pack_image
from simmim_jax.data.views.crop import resize_center_crop
from tests.images import PHOTOS


def test_a_higher_quality_is_nearer_and_larger():
    image = PHOTOS[0].read_bytes()
    expected = pack_image(image, Options(256, "raw")).astype(int)
    sizes, errors = [], []
    for quality in (70, 90, 98):
        file = pack_image(image, Options(256, "jpeg", quality))
        sizes.append(len(file))
        errors.append(np.abs(decode(file, 3) - expected).mean())
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 4  # of 255


def test_large_photographs_are_nearly_what_they_are_at_full_size():
    whole = Image.open(PHOTOS[0])
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    whole.resize((1707, 1280), Image.Resampling.LANCZOS).save(file, "JPEG", exif=exif)
    expected = resize_center_crop(decode(file.getvalue(), 3), (170, 128), 1, "bicubic")
    got = pack_image(file.getvalue(), Options(128, "raw"))
    assert got.shape == (170, 128, 3)
    error = np.abs(got.astype(int) - expected)
    assert 0 < error.mean() < 1  # of 255; it was reduced while it was decoded
    assert error.max() < 40
    broken = file.getvalue()[:50_000]
    with pytest.raises(BadImage) as caught:
        pack_image(broken, Options(128))
    assert caught.value.reason == "truncated"


def test_images_that_no_jpeg_can_hold_are_too_large():
    line = np.zeros((1, 65_501, 3), np.uint8)
    with pytest.raises(BadImage, match="--format=raw") as caught:
        pack_image(line, Options())
    assert caught.value.reason == "too large"
    assert pack_image(line, Options(256, "raw")).shape == line.shape


def test_gray_images_are_packed_gray():
    image = PHOTOS[0].read_bytes()
    file = pack_image(image, Options(64, "jpeg", 90, channels=1))
    assert decode(file, 1).shape == (64, 95, 1)
    with Image.open(io.BytesIO(file)) as opened:
        assert opened.mode == "L"
