"""Resizing beside pixels that were not measured: they do not mix with others."""

import numpy as np
import pytest

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.views.crop import random_crop, resize_center_crop
from simmim_jax.data.views.image import CenterCropView

CASES = [
    ("float32", np.nan, None),
    ("float32", -9999.0, -9999.0),
    ("int16", -32768, -32768.0),
    ("uint16", 0, 0.0),
    ("int32", -(2**31), -(2.0**31)),
]


def holed(dtype, mark):
    """A constant 29,000 [64 64 2]; the first band has no data on the left half."""
    image = np.full((64, 64, 2), 29_000, dtype)
    image[:, :32, 0] = mark
    return image


def is_mark(values, mark):
    return np.isnan(values) if np.isnan(mark) else values == mark


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("dtype", "mark", "nodata"), CASES)
def test_measured_values_stay_what_they_are(dtype, mark, nodata, interpolation):
    image = holed(dtype, mark)
    small = resize_center_crop(image, (16, 16), 1.0, interpolation, nodata=nodata)
    assert small.dtype == dtype
    assert (small[..., 1] == 29_000).all()
    gone = is_mark(small[..., 0], mark)
    np.testing.assert_allclose(small[..., 0][~gone], 29_000, rtol=1e-6)
    np.testing.assert_array_equal(gone, np.arange(16) < np.full((16, 1), 8))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("dtype", "mark", "nodata"), [*CASES, ("uint8", 255, 255.0)])
def test_random_crops_have_only_measured_values_and_marks(dtype, mark, nodata, fast):
    image = holed(dtype, mark) if dtype != "uint8" else holed("uint16", mark) % 251
    image = image.astype(dtype)
    image[:, :32, 0] = mark
    value = image[0, 0, 1]
    for seed in range(5):
        crop = random_crop(
            image,
            Decoding(channels=2, nodata=nodata),
            size=(20, 20),
            rng=np.random.default_rng(seed),
            scale=(0.5, 1.0),
            ratio=(3 / 4, 4 / 3),
            interpolation="bilinear",
            fast=fast,
        )
        gone = is_mark(crop, mark)
        assert not gone[..., 1].any()
        np.testing.assert_allclose(crop[~gone], value, rtol=1e-6)
        assert 0.1 < gone[..., 0].mean() < 0.9


def test_weights_are_those_of_the_filter():
    image = np.array([[10, 20, np.nan, 40, 50, 60, np.nan, np.nan]], np.float32)
    found = resize_center_crop(image[..., None], (1, 4), 1.0, "box")
    np.testing.assert_allclose(found.ravel(), [15, 40, 55, np.nan])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8"])
def test_images_without_gaps_are_resized_as_before(dtype, interpolation):
    image = np.random.default_rng(0).integers(1, 200, (40, 50, 3)).astype(dtype)
    plain = resize_center_crop(image, (20, 20), 1.0, interpolation)
    marked = resize_center_crop(image, (20, 20), 1.0, interpolation, nodata=0.0)
    np.testing.assert_array_equal(plain, marked)


def test_an_image_without_any_data_stays_one():
    image = np.full((8, 8, 1), np.nan, np.float32)
    assert np.isnan(resize_center_crop(image, (4, 4), 1.0, "bicubic")).all()


def test_views_know_the_mark_of_the_data_set():
    view = CenterCropView(
        size=(16, 16),
        decoding=Decoding(channels=2, nodata=-32768.0),
        interpolation="bilinear",
        dtype="int16",
        crop_fraction=1.0,
    )
    example = {"image": holed("int16", -32768), "label": -1}
    found = view(example, np.random.default_rng(0))["image"]
    assert set(np.unique(found)) == {-32768, 29_000}
