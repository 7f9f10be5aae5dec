"""Flip and normalisation on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.augment import denormalize, normalize, random_flip

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_normalize_is_that_of_imagenet():
    images = jnp.array([[[[0, 128, 255]]]], jnp.uint8)
    out = normalize(images, MEAN, STD)
    assert out.dtype == jnp.float32
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, 0.594 / 0.225]
    np.testing.assert_allclose(out[0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_channel_has_its_own_mean_and_std(channels):
    images = jnp.full((1, 2, 2, channels), 51, jnp.uint8)  # 0.2
    mean = [0.1 * i for i in range(channels)]
    std = [1.0 + i for i in range(channels)]
    out = normalize(images, mean, std)
    expected = [(0.2 - m) / s for m, s in zip(mean, std, strict=True)]
    np.testing.assert_allclose(out[0, 1, 1], expected, rtol=1e-6, atol=1e-7)


def test_denormalize_gives_back_all_256_values_of_a_pixel():
    images = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    back = denormalize(normalize(images, MEAN, STD), MEAN, STD)
    np.testing.assert_allclose(back, images, atol=1e-4)


@pytest.fixture(scope="module")
def flipped():
    images = jnp.arange(4000 * 6, dtype=jnp.int32).reshape(4000, 2, 3, 1)
    return images, random_flip(jax.random.key(0), images)


def test_flip_mirrors_left_to_right_or_leaves_an_image_alone(flipped):
    images, out = flipped
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    same = (out == images).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert out.dtype == images.dtype


def test_half_of_the_images_are_flipped_each_on_its_own(flipped):
    images, out = flipped
    mirrored = np.asarray((out != images).any((1, 2, 3)))
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    changes = mirrored[1:] != mirrored[:-1]
    assert abs(changes.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_flips_follow_the_key(flipped):
    images, out = flipped
    np.testing.assert_array_equal(random_flip(jax.random.key(0), images), out)
    assert (random_flip(jax.random.key(1), images) != out).any()
