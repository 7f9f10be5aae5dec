"""The objective: target, loss area and pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.augment.normalization import Normalization
from simmim_jax.mim import losses, masking, targets
from simmim_jax.mim.objective import SIMMIM, Objective

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NORMALIZATION = Normalization(MEAN, STD)
CLASSES = {"loss": "bins", "normalization": NORMALIZATION}


@pytest.fixture(scope="module")
def batch():
    """uint8 images, the same normalised, and masks of patches of 4 in units of 8."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), np.uint8)
    mask = masking.random_mask(jax.random.key(0), 4, (4, 6), (2, 2), 0.5)
    return pixels, NORMALIZATION(pixels), mask


def prediction_for(objective, images):
    h, w = images.shape[1] // objective.downsample, images.shape[2]
    shape = (len(images), h, w // objective.downsample, images.shape[3])
    if objective.loss == "bins":
        shape = (*shape, objective.bins)
    return jax.random.normal(jax.random.key(1), shape)


# ---- The loss ------------------------------------------------------------------------


def test_default_is_l1_on_the_masked_pixels(batch):
    _, images, mask = batch
    prediction = prediction_for(SIMMIM, images)
    found = SIMMIM(prediction, images, mask)
    expected = losses.masked_l1(prediction, images, masking.upsample(mask, 16, 24))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("target", ["pixels", "normalized"])
@pytest.mark.parametrize("downsample", [1, 2, 8])
def test_loss_is_over_the_masked_part_of_the_target(batch, kind, target, downsample):
    _, images, mask = batch
    objective = Objective(target=target, window=5, downsample=downsample, loss=kind)
    prediction = prediction_for(objective, images)
    value, pixels = objective(prediction, images, mask)
    wanted = images
    if target == "normalized":
        wanted = targets.normalize_windows(images, 5)
    n = downsample
    wanted = np.asarray(wanted).reshape(4, 16 // n, n, 24 // n, n, 3).mean((2, 4))
    hidden = np.kron(mask, np.ones((4, 4)))[:, ::n, ::n] > 0
    d = np.abs(wanted - prediction)[hidden]
    expected = {
        "l1": d,
        "l2": d**2,
        "smooth_l1": np.where(d < 1, d**2 / 2, d - 0.5),
    }[kind].mean()
    assert pixels == hidden.sum()
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_visible_pixels_count_only_with_area_all(batch):
    _, images, mask = batch
    visible = ~masking.upsample(mask, 16, 24)[..., None]
    prediction = prediction_for(SIMMIM, images)
    everything = Objective(area="all")
    value, pixels = everything(prediction, images, mask)
    assert pixels == 4 * 16 * 24
    np.testing.assert_allclose(value, jnp.abs(prediction - images).mean(), rtol=1e-5)
    changed = images + 5 * visible
    assert everything(prediction, changed, mask)[0] != value
    masked = SIMMIM(prediction, images, mask)[0]
    assert SIMMIM(prediction, changed, mask)[0] == masked
    assert SIMMIM(prediction + 5 * visible, images, mask)[0] == masked


@pytest.mark.parametrize("area", ["masked", "all"])
@pytest.mark.parametrize("downsample", [1, 8])
def test_images_of_weight_0_do_not_count(batch, area, downsample):
    _, images, mask = batch
    objective = Objective(area=area, downsample=downsample)
    prediction = prediction_for(objective, images)
    weight = jnp.array([1.0, 1.0, 0.0, 0.0])
    found = objective(prediction, images, mask, weight)
    expected = objective(prediction[:2], images[:2], mask[:2])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("bins", [8, 256])
def test_bins_are_of_the_bytes(batch, bins):
    pixels, images, _ = batch
    objective = Objective(bins=bins, **CLASSES)
    np.testing.assert_array_equal(objective.of(images), pixels // (256 // bins))


def test_every_byte_is_recovered_before_binning():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    normalization = Normalization((0.4850,), (0.229,))
    objective = Objective(loss="bins", bins=8, normalization=normalization)
    found = jax.jit(objective.of)(normalization(pixels))
    np.testing.assert_array_equal(found, pixels // 32)


def test_bins_of_a_smaller_target_are_of_the_mean(batch):
    pixels, images, mask = batch
    objective = Objective(downsample=8, **CLASSES)
    means = pixels.reshape(4, 2, 8, 3, 8, 3).mean((2, 4))
    np.testing.assert_array_equal(objective.of(images), means // 32)
    uniform = jnp.zeros((4, 2, 3, 3, 8))
    np.testing.assert_allclose(
        objective(uniform, images, mask)[0], np.log(8), rtol=1e-5
    )


# ---- Pictures ------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["pixels", "normalized"])
def test_perfect_prediction_gives_the_image(batch, target):
    pixels, images, _ = batch
    objective = Objective(target=target, window=7, normalization=NORMALIZATION)
    found = objective.to_pixels(objective.of(images), images)
    np.testing.assert_allclose(found, pixels, atol=1e-2)


def test_perfect_smaller_prediction_gives_the_mean_of_every_cell(batch):
    pixels, images, _ = batch
    objective = Objective(downsample=4, normalization=NORMALIZATION)
    found = objective.to_pixels(objective.of(images), images)
    expected = pixels.reshape(4, 4, 4, 6, 4, 3).mean((2, 4), keepdims=True)
    expected = np.broadcast_to(expected, (4, 4, 4, 6, 4, 3)).reshape(pixels.shape)
    np.testing.assert_allclose(found, expected, atol=1e-2)


@pytest.mark.parametrize(("bins", "worst"), [(8, 15.6), (256, 0.1)])
def test_perfect_prediction_of_bins_is_within_half_a_bin(batch, bins, worst):
    pixels, images, _ = batch
    objective = Objective(bins=bins, **CLASSES)
    sure = 1e4 * jax.nn.one_hot(objective.of(images), bins)
    found = objective.to_pixels(sure, images)
    assert found.shape == pixels.shape
    assert np.abs(found - pixels).max() < worst


def test_smaller_prediction_of_bins_fills_the_picture(batch):
    pixels, images, _ = batch
    objective = Objective(downsample=8, **CLASSES)
    prediction = prediction_for(objective, images)
    assert objective.to_pixels(prediction, images).shape == pixels.shape


# ---- Errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"target": "hog"},
            r"config\.target\.kind='hog': expected one of .*normalized",
        ),
        ({"loss": "l3"}, r"config\.loss\.kind='l3': expected one of .*smooth_l1"),
        ({"area": "visible"}, r"config\.loss\.area='visible': expected one of"),
        ({"downsample": 0}, r"config\.target\.downsample=0: expected"),
        ({"loss": "bins", "bins": 1}, r"config\.loss\.bins=1: expected 2 to 256"),
        ({"loss": "bins", "target": "normalized"}, "'normalized' has no colour bins"),
    ],
)
def test_invalid_values_raise(fields, says):
    with pytest.raises(ValueError, match=says):
        Objective(**fields)


def test_units_that_would_hide_part_of_a_target_pixel_raise():
    with pytest.raises(ValueError, match=r"downsample=32 must divide .*\(32, 16\)"):
        Objective(downsample=32).check_mask((32, 16), 0.6)
    Objective(downsample=32).check_mask((32, 64), 0.6)
    Objective(downsample=32, area="all").check_mask((32, 16), 0.6)


def test_masks_without_pixels_to_count_raise():
    with pytest.raises(ValueError, match=r"config\.mask\.ratio=0\.0 hides nothing"):
        SIMMIM.check_mask((32, 32), 0.0)
    SIMMIM.check_mask((32, 32), 0.01)
    Objective(area="all").check_mask((32, 32), 0.0)


@pytest.mark.parametrize("loss", losses.PIXEL_LOSSES)
@pytest.mark.parametrize("target", ["pixels", "normalized"])
def test_gradients_are_finite(batch, loss, target):
    if loss == "bins" and target == "normalized":
        return
    _, images, mask = batch
    objective = Objective(
        target, 9, downsample=8, loss=loss, normalization=NORMALIZATION
    )
    prediction = prediction_for(objective, images)
    grads = jax.jit(jax.grad(lambda p: objective(p, images, mask)[0]))(prediction)
    assert jnp.isfinite(grads).all()
    assert (grads != 0).any()
