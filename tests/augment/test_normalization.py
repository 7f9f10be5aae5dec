"""Values of every dtype to what the model sees, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.augment.normalization import Normalization

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Normalization(MEAN, STD)


def test_photographs_get_imagenet_values():
    images = jnp.array([[[[0, 128, 255]]]], jnp.uint8)
    out = IMAGENET(images)
    assert out.dtype == jnp.float32
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, 0.594 / 0.225]
    np.testing.assert_allclose(out[0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_channel_has_its_own_mean_and_std(channels):
    images = jnp.full((1, 2, 2, channels), 51, jnp.uint8)  # 0.2
    mean = [0.1 * i for i in range(channels)]
    std = [1.0 + i for i in range(channels)]
    out = Normalization(mean, std)(images)
    expected = [(0.2 - m) / s for m, s in zip(mean, std, strict=True)]
    np.testing.assert_allclose(out[0, 1, 1], expected, rtol=1e-6, atol=1e-7)


def test_the_inverse_recovers_all_256_pixel_values():
    images = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    np.testing.assert_allclose(IMAGENET.inverse(IMAGENET(images)), images, atol=1e-4)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(
    ("dtype", "offset"),
    [
        ("float32", 29_000),
        ("uint16", 29_000),
        ("int16", -29_000),
        ("int32", 2**31 - 20),
        ("int32", -(2**31) + 20),
        ("uint32", 2**32 - 20),
        ("uint32", 2**31),
    ],
)
def test_large_offsets_are_subtracted_exactly(dtype, offset, jitted):
    values = offset + np.linspace(-10, 10, 256)
    if dtype != "float32":
        values = values.round()
    values = values.astype(dtype)
    exact = values.astype(np.float64)
    mean, std = exact.mean() + 1e-3, exact.std()
    normalize = Normalization((mean,), (std,), scale=1)
    if jitted:
        normalize = jax.jit(normalize)
    found = normalize(values.reshape(1, 16, 16, 1)).ravel()
    np.testing.assert_allclose(found, (exact - mean) / std, atol=1e-5)


def test_values_far_apart_do_not_overflow():
    ends = np.array([-(2**31), 2**31 - 1], np.int32).reshape(1, 1, 2, 1)
    found = Normalization((2.0**31,), (2.0**31,), scale=1)(ends).ravel()
    np.testing.assert_allclose(found, [-2, 0], atol=1e-6)


def test_clipping_is_in_units_of_the_result():
    values = np.array([-100, 0, 40, 240, 3000], np.int16).reshape(1, 1, 5, 1)
    window = Normalization((40.0,), (200.0,), scale=1, clip=(-1, 1))  # -160 to 240 HU
    found = window(values).ravel()
    np.testing.assert_allclose(found, [-0.7, -0.2, 0, 1, 1], rtol=1e-6)


def test_decibels_are_those_of_power_and_come_back():
    power = np.array([1, 10, 0.001], np.float32).reshape(1, 1, 3, 1)
    normalize = Normalization((-10.0,), (5.0,), scale=1, decibel=True)
    found = normalize(power)
    np.testing.assert_allclose(found.ravel(), [2, 4, -4], atol=1e-5)
    np.testing.assert_allclose(normalize.inverse(found), power, rtol=1e-5)


# ---- Pixels without data -------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "nodata", "decibel"),
    [
        ("float32", None, False),
        ("float32", -9999.0, False),
        ("int16", -32768.0, False),
        ("uint8", 0.0, False),
        ("float32", None, True),
    ],
)
def test_pixels_without_data_become_0_and_are_known(dtype, nodata, decibel):
    mark = np.nan if nodata is None else nodata
    values = np.array([5, mark, 7, 9]).astype(dtype).reshape(1, 2, 2, 1)
    normalize = Normalization((1.0,), (2.0,), 1.0, decibel=decibel, nodata=nodata)
    np.testing.assert_array_equal(
        normalize.valid(values).ravel(), [True, False, True, True]
    )
    found = normalize(values).ravel()
    assert found[1] == 0
    assert (found[jnp.array([0, 2, 3])] > 1).all()


def test_values_without_a_logarithm_are_no_data():
    power = jnp.array([0, -1, 2.0], jnp.float32).reshape(1, 1, 3, 1)
    normalize = Normalization((0.0,), (1.0,), 1.0, decibel=True)
    assert normalize.valid(power).ravel().tolist() == [False, False, True]
    slopes = jax.grad(lambda x: normalize(x).sum())(power)
    assert jnp.isfinite(slopes).all()


def test_gradients_pass_pixels_without_data_by():
    values = jnp.array([jnp.nan, 3.0]).reshape(1, 1, 2, 1)
    normalize = Normalization((1.0,), (2.0,), 1.0)
    slopes = jax.grad(lambda x: normalize(x).sum())(values)
    np.testing.assert_array_equal(slopes.ravel(), [0, 0.5])


def test_integers_without_a_mark_have_data_everywhere():
    assert IMAGENET.valid(np.zeros((1, 2, 2, 3), np.uint8)) is None
    # A mark that the dtype cannot hold marks nothing.
    marked = Normalization(MEAN, STD, nodata=-9999.0)
    assert marked.valid(np.zeros((1, 2, 2, 3), np.uint8)) is None
