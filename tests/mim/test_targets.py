"""Targets against official numbers and their definitions."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import official_cases
import pytest

from simmim_jax.mim import targets

normalize = jax.jit(targets.normalize_windows, static_argnums=1)


def golden_cases():
    for file in official_cases.files(""):
        for name, case in json.loads(file.read_text()).items():
            if match := re.fullmatch(r"norm_targets_(\d+)", name):
                yield pytest.param(
                    int(match[1]),
                    case,
                    id=f"golden-{file.parent.name}-{file.stem}-{name}",
                )


def reference(images, window):
    """Compute the definition: a loop over windows, float64."""
    images = np.asarray(images, np.float64)
    out = np.empty_like(images)
    r = window // 2
    for y in range(images.shape[1]):
        for x in range(images.shape[2]):
            around = images[:, max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1]
            mean = around.mean((1, 2))
            variance = around.var((1, 2), ddof=1)
            out[:, y, x] = (images[:, y, x] - mean) / np.sqrt(variance + 1e-6)
    return out


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# ---- Normalisation by windows --------------------------------------------------------


@pytest.mark.parametrize(("window", "case"), list(golden_cases()))
def test_official_numbers(window, case):
    arch = {"in_chans": 3, "img_size": 64}
    images = official_cases.images({"arch": arch, "batch": 2})
    target = np.asarray(normalize(images, window)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(target.mean(), case["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(target.std(), case["std"], rtol=1e-4)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(target.ravel()[:8], case["first8"], **close)
    places = {name: value for name, value in case.items() if name.startswith("y_")}
    assert places
    for name, values in places.items():
        b, c, y, x = map(int, name.split("_")[1:])
        row = target[b, c, y, x : x + np.size(values)]
        np.testing.assert_allclose(row, np.ravel(values), **close, err_msg=name)


def test_values_of_a_small_image():
    image = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1) ** 1.5
    target = normalize(image, 3)[0, :, :, 0]
    found = [target[0, 0], target[2, 2], target[4, 4]]
    np.testing.assert_allclose(found, [-0.916073, -0.0833378, 1.028964], rtol=1e-5)


@pytest.mark.parametrize("window", [3, 7, 11, 99])
def test_matches_the_definition_for_any_window(window):
    images = noise(2, 9, 14, 2) * [1, 30] + [0, 5]
    expected = reference(images, window)
    np.testing.assert_allclose(normalize(images, window), expected, atol=2e-5)


def test_a_constant_image_becomes_zero():
    images = np.full((1, 20, 20, 3), 2.64, np.float32)
    np.testing.assert_allclose(normalize(images, 7), 0, atol=1e-3)


def test_brightness_and_contrast_have_no_effect():
    images = noise(1, 24, 24, 3)
    changed = 3 * images + np.array([10, -2, 0.5], np.float32)
    np.testing.assert_allclose(
        normalize(changed, 9), normalize(images, 9), rtol=1e-3, atol=1e-4
    )


def test_bright_images_are_as_exact_as_float32_allows():
    # Without subtracting the mean of the image first, the error is 0.005.
    images = noise(1, 48, 48, 1) * 0.05 + 5
    error = np.abs(normalize(images, 11) - reference(images, 11)).max()
    assert error < 1e-4


def test_values_far_from_zero_are_normalised_exactly():
    values = 29_000 + np.linspace(-10, 10, 256, dtype=np.float32)
    image = values.reshape(1, 16, 16, 1)
    found = jax.jit(targets.normalize_windows, static_argnums=1)(image, 31)
    exact = values.astype(np.float64)  # a window that covers all of the image
    expected = (exact - exact.mean()) / exact.std(ddof=1)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-3)


# ---- Pixels without data -------------------------------------------------------------


@pytest.mark.parametrize("window", [3, 7])
def test_moments_are_those_of_the_valid_pixels_in_the_window(window):
    rng = np.random.default_rng(0)
    image = rng.normal(5, 2, (1, 12, 10, 2)).astype(np.float32)
    valid = rng.random(image.shape) < 0.6
    filled = np.where(valid, image, 1e6)
    mean, std = targets.window_moments(filled, window, valid)
    half = window // 2
    for y, x, c in np.ndindex(12, 10, 2):
        rows, columns = (slice(max(i - half, 0), i + half + 1) for i in (y, x))
        inside = image[0, rows, columns, c][valid[0, rows, columns, c]]
        if len(inside) < 2:
            continue
        expected = inside.astype(np.float64)
        np.testing.assert_allclose(mean[0, y, x, c], expected.mean(), rtol=1e-4)
        spread = np.sqrt(expected.var(ddof=1) + targets.EPS)
        np.testing.assert_allclose(std[0, y, x, c], spread, rtol=1e-3, atol=1e-4)


def test_moments_of_valid_images_are_those_without_a_mask():
    image = np.random.default_rng(0).normal(size=(2, 12, 10, 3)).astype(np.float32)
    plain = targets.window_moments(image, 5)
    masked = targets.window_moments(image, 5, np.ones(image.shape, bool))
    np.testing.assert_allclose(masked, plain, rtol=1e-5, atol=1e-6)


def test_cells_are_means_of_their_valid_pixels():
    image = np.array([[1, 3, 50, 5], [2, 4, 60, 70]], np.float32).reshape(1, 2, 4, 1)
    valid = np.array([[1, 1, 0, 1], [1, 1, 0, 0]], bool).reshape(1, 2, 4, 1)
    found = targets.downsample(image, 2, valid)
    np.testing.assert_array_equal(found.ravel(), [2.5, 5])
    assert targets.any_in_cell(valid & (image < 5), 2).ravel().tolist() == [True, False]


# --------------------------------------------------------------------------------------


def test_moments_undo_the_normalisation():
    images = noise(2, 16, 24, 3)
    mean, std = targets.window_moments(images, 5)
    np.testing.assert_allclose(
        normalize(images, 5) * std + mean, images, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("window", [2, 46, 1, -3])
def test_windows_without_a_centre_raise(window):
    with pytest.raises(ValueError, match=rf"config\.target\.window={window}: .* odd"):
        targets.normalize_windows(jnp.zeros((1, 8, 8, 1)), window)


# ---- Downsampling --------------------------------------------------------------------


def test_downsampling_is_the_mean_of_cells():
    images = noise(2, 8, 12, 3)
    small = targets.downsample(images, 4)
    assert small.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(
        small[1, 1, 2], images[1, 4:8, 8:12].mean((0, 1)), rtol=1e-5
    )
    np.testing.assert_array_equal(targets.downsample(images, 1), images)


def test_upsampling_repeats_pixels_and_downsampling_inverts_it():
    small = noise(1, 2, 3, 2)
    large = targets.upsample(small, 4)
    np.testing.assert_array_equal(large[0, :4, 4:8], np.full((4, 4, 2), small[0, 0, 1]))
    np.testing.assert_allclose(targets.downsample(large, 4), small, rtol=1e-6)


# ---- Bins ----------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [2, 8, 256])
def test_bins_are_equally_wide_and_cover_all_values(bins):
    found = targets.to_bins(jnp.arange(256.0), bins)
    np.testing.assert_array_equal(found, np.arange(256) // (256 // bins))
    assert found.dtype == jnp.int32


def test_fractional_values_have_a_bin():
    pixels = jnp.array([31.9, 32.0, 254.99])
    np.testing.assert_array_equal(targets.to_bins(pixels, 8), [0, 1, 7])


@pytest.mark.parametrize("bins", [8, 256])
def test_a_certain_prediction_gives_the_mean_of_its_bin(bins):
    values = targets.from_bins(1e4 * jnp.eye(bins))
    expected = np.arange(256).reshape(bins, -1).mean(1)
    np.testing.assert_allclose(values, expected, atol=1e-3)


def test_an_uncertain_prediction_gives_the_expected_value():
    logits = jnp.log(jnp.array([0.25, 0.75]))
    np.testing.assert_allclose(
        targets.from_bins(logits), 0.25 * 63.5 + 0.75 * 191.5, rtol=1e-6
    )
