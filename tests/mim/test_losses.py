"""Pixel and class losses against official numbers and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.mim.losses import (
    PIXEL_LOSSES,
    cross_entropy,
    masked_cross_entropy,
    masked_l1,
    masked_l2,
    masked_smooth_l1,
    smooth_labels,
)
from simmim_jax.mim.masking import upsample


@pytest.fixture(scope="module")
def example():
    """Prediction and target, [b h w c], and pixel mask, [b h w]."""
    target = (np.arange(96) / 10).reshape(2, 3, 4, 4).transpose(0, 2, 3, 1)
    masks = jnp.array([[[1, 0], [0, 0]], [[1, 1], [0, 1]]], bool)
    target = jnp.asarray(target, jnp.float32)
    return jnp.full_like(target, 1.5), target, upsample(masks, 4, 4)


def loss(prediction, target, mask):
    return masked_l1(prediction, target, mask)[0]


def test_masked_l1_matches_the_official_value_and_counts_masked_pixels(example):
    value, pixels = masked_l1(*example)
    # Sum of |x - 1.5| over the 48 values of 16 masked pixels, over 16.00001 * 3.
    np.testing.assert_allclose(value, 4.4583306, rtol=1e-7)
    assert pixels == 16


def test_visible_pixels_of_target_and_prediction_are_ignored(example):
    prediction, target, mask = example
    noise = 100.0 * ~mask[..., None]
    assert loss(prediction + noise, target, mask) == loss(prediction, target, mask)
    assert loss(prediction, target + noise, mask) == loss(prediction, target, mask)
    hidden = 100.0 * mask[..., None]
    assert loss(prediction, target + hidden, mask) > loss(prediction, target, mask)


def test_empty_mask_gives_zero_not_nan(example):
    prediction, target, mask = example
    value, pixels = masked_l1(prediction, target, jnp.zeros_like(mask))
    assert value == 0
    assert pixels == 0
    grads = jax.grad(loss)(prediction, target, jnp.zeros_like(mask))
    assert (grads == 0).all()


def test_duplicating_the_batch_keeps_the_loss(example):
    twice = [jnp.concatenate([x, x]) for x in example]
    np.testing.assert_allclose(loss(*twice), loss(*example), rtol=1e-6)


def test_gradient_is_zero_on_visible_and_of_equal_size_on_masked_pixels(example):
    grads = jax.grad(loss)(*example)
    prediction, target, mask = example
    mask = np.broadcast_to(mask[..., None], grads.shape)
    assert (grads[~mask] == 0).all()
    expected = jnp.sign(prediction - target)[mask] / (3 * (16 + 1e-5))
    np.testing.assert_allclose(grads[mask], expected, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_masked_l1_averages_over_any_number_of_channels(channels):
    target = jnp.zeros((2, 4, 4, channels))
    value = loss(target + 0.25, target, jnp.ones((2, 4, 4), bool))
    np.testing.assert_allclose(value, 0.25, rtol=1e-6)


def test_masked_l1_accepts_weights_instead_of_a_mask(example):
    prediction, target, mask = example
    first_only = mask * jnp.array([1.0, 0.0])[:, None, None]
    value, pixels = masked_l1(prediction, target, first_only)
    alone, alone_pixels = masked_l1(prediction[:1], target[:1], mask[:1])
    assert value == alone
    assert pixels == alone_pixels == 4


def test_losses_of_bfloat16_inputs_are_float32(example):
    prediction, target, mask = example
    value, _ = masked_l1(prediction.astype(jnp.bfloat16), target, mask)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 4.4583306, rtol=1e-7)  # 1.5 is exact
    logits = jnp.array([[1, 2, 3]], jnp.bfloat16)
    entropy = cross_entropy(logits, jnp.array([[0.0, 0.0, 1.0]]))
    assert entropy.dtype == jnp.float32
    np.testing.assert_allclose(entropy, [0.40760596], rtol=1e-6)


def test_label_smoothing_spreads_over_all_classes_as_in_torch():
    targets = smooth_labels(jnp.array([1, 0]), 4, 0.1)
    expected = [[0.025, 0.925, 0.025, 0.025], [0.925, 0.025, 0.025, 0.025]]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
    np.testing.assert_allclose(smooth_labels(jnp.array([2]), 10, 0.1)[0, 2], 0.91)


def test_no_smoothing_gives_one_hot():
    np.testing.assert_array_equal(smooth_labels(jnp.array([2]), 3, 0.0), [[0, 0, 1]])


def test_cross_entropy_with_smoothing_matches_torch():
    # torch.nn.functional.cross_entropy([[1, 2, 3]], [2], label_smoothing=0.1)
    targets = smooth_labels(jnp.array([2]), 3, 0.1)
    value = cross_entropy(jnp.array([[1.0, 2.0, 3.0]]), targets)
    np.testing.assert_allclose(value, [0.9 * 0.40760596 + 0.1 * 1.40760596], rtol=1e-6)


def test_cross_entropy_returns_one_value_per_sample():
    logits = jnp.array([[0.0, 0.0], [0.0, np.log(3.0)]])
    values = cross_entropy(logits, jnp.array([[1.0, 0.0], [0.5, 0.5]]))
    expected = [np.log(2), 0.5 * np.log(4) + 0.5 * np.log(4 / 3)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_cross_entropy_of_huge_logits_is_finite():
    value = cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([[0.0, 1.0]]))
    np.testing.assert_allclose(value, [2e4])


# ---- Other pixel losses --------------------------------------------------------------


def errors(example):
    """Return the differences on masked pixels, float64."""
    prediction, target, mask = (np.asarray(x) for x in example)
    return (target.astype(np.float64) - prediction)[mask]


def test_l2_is_the_mean_squared_error_over_masked_pixels(example):
    value, pixels = masked_l2(*example)
    np.testing.assert_allclose(value, np.square(errors(example)).mean(), rtol=1e-5)
    assert pixels == 16


def test_smooth_l1_is_quadratic_for_small_errors_and_linear_for_large_ones(example):
    d = np.abs(errors(example))
    assert (d < 1).any()
    assert (d > 1).any()
    expected = np.where(d < 1, d**2 / 2, d - 0.5).mean()
    np.testing.assert_allclose(masked_smooth_l1(*example)[0], expected, rtol=1e-5)
    # Value and slope are continuous at 1.
    one, mask = jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1))
    slope = jax.grad(lambda x: masked_smooth_l1(x, 0 * one, mask)[0])
    for x in (0.9999, 1.0001):
        np.testing.assert_allclose(slope(x * one), 1, atol=1e-3)


@pytest.mark.parametrize("bins", [8, 256])
def test_uniform_logits_have_a_loss_of_log_bins(example, bins):
    _, target, mask = example
    logits = jnp.full((*target.shape, bins), 3.0)
    target = target.astype(jnp.int32) % bins
    value, pixels = masked_cross_entropy(logits, target, mask)
    np.testing.assert_allclose(value, np.log(bins), rtol=1e-5)
    assert pixels == 16


def test_pixel_cross_entropy_is_the_mean_over_masked_values(example):
    _, target, mask = example
    target = (target * 10).astype(jnp.int32) % 5
    logits = jax.random.normal(jax.random.key(0), (*target.shape, 5))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    chosen = np.take_along_axis(log_p, np.asarray(target)[..., None], -1)[..., 0]
    value, _ = masked_cross_entropy(logits, target, mask)
    np.testing.assert_allclose(value, -chosen[np.asarray(mask)].mean(), rtol=1e-5)
    huge, _ = masked_cross_entropy(1e5 * logits, target, mask)
    assert jnp.isfinite(huge)


@pytest.mark.parametrize("kind", PIXEL_LOSSES)
def test_pixel_losses_ignore_visible_pixels(example, kind):
    prediction, target, mask = example
    visible = ~mask[..., None]
    if kind == "bins":
        prediction = jax.random.normal(jax.random.key(0), (*target.shape, 4))
        target = jnp.zeros(target.shape, jnp.int32)
        changed = prediction + 9 * visible[..., None] * jnp.arange(4), target + visible
    else:
        changed = prediction + 9 * visible, target - 9 * visible
    pixel_loss = PIXEL_LOSSES[kind]
    assert pixel_loss(*changed, mask)[0] == pixel_loss(prediction, target, mask)[0] > 0
    assert pixel_loss(prediction, target, jnp.zeros_like(mask)) == (0, 0)
