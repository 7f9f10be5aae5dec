"""Pixels without data in a training step: they neither count nor spread."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config
from step_cases import MODEL, PREPARE, random_params

from simmim_jax.augment.normalization import Normalization
from simmim_jax.mim import losses, masking
from simmim_jax.mim.objective import Objective
from simmim_jax.tasks.api import finetune, pretrain
from simmim_jax.tasks.pretrain_step import pretrain_loss, pretrain_prepare

NORMALIZATION = Normalization((5.0,) * 3, (2.0,) * 3, scale=1)
OBJECTIVES = [
    Objective(normalization=NORMALIZATION),
    Objective(loss="l2", normalization=NORMALIZATION),
    Objective(area="all", normalization=NORMALIZATION),
    Objective(target="normalized", window=5, normalization=NORMALIZATION),
    Objective(target="normalized", window=5, area="all", normalization=NORMALIZATION),
    Objective(downsample=2, normalization=NORMALIZATION),
]


def images(count=8, channels=3):
    """Measured values [count 16 16 channels]."""
    rng = np.random.default_rng(0)
    return rng.normal(5, 2, (count, 16, 16, channels)).astype(np.float32)


def prepared(values, normalization=NORMALIZATION):
    prepare = pretrain_prepare(**PREPARE | {"normalization": normalization}, flip=False)
    return jax.jit(prepare)({"image": values}, jax.random.key(0))


def loss_and_slopes(inputs, objective):
    """Return the loss of a batch and its gradient."""
    model = dataclasses.replace(MODEL, downsample=objective.downsample)
    params = random_params(model, inputs["image"], inputs["mask"])
    return compiled(model, objective, params, inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def compiled(model, objective, params, inputs):
    def loss(params):
        return pretrain_loss(model, objective)(params, inputs, jax.random.key(0))[0]

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_trains_as_the_one_with_those_images_cut_out(objective):
    whole = images()
    gone = whole.copy()
    gone[5:] = np.nan
    value, slopes = loss_and_slopes(prepared(gone), objective)
    inputs = jax.tree.map(lambda x: x[:5], prepared(whole))
    expected, expected_slopes = loss_and_slopes(inputs, objective)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for one, other in zip(
        jax.tree.leaves(slopes), jax.tree.leaves(expected_slopes), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_that_of_the_images_with_the_gap_cut_out(objective):
    values = images()
    gone = values.copy()
    gone[:, :, 8:] = np.nan  # whole patches: 8 of 16 columns
    inputs = prepared(gone)
    mask, valid = inputs["mask"], inputs["valid"]
    assert not mask[:, :, 2:].any()  # patches without data are not masked
    side = 16 // objective.downsample
    rng = np.random.default_rng(1)
    prediction = rng.normal(size=(8, side, side, 3)).astype(np.float32)
    found = objective(prediction, inputs["image"], mask, valid=valid)
    cut = NORMALIZATION(values[:, :, :8])
    expected = objective(prediction[:, :, : side // 2], cut, mask[:, :, :2])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("mark", [np.nan, -9999.0, 0.0])
def test_scattered_gaps_leave_loss_and_gradients_finite(objective, mark):
    values = images()
    values[np.random.default_rng(2).random(values.shape) < 0.45] = mark
    nodata = None if np.isnan(mark) else mark
    inputs = prepared(values, dataclasses.replace(NORMALIZATION, nodata=nodata))
    assert 0.5 < inputs["valid"].mean() < 0.6
    value, slopes = loss_and_slopes(inputs, objective)
    assert 0.3 < value < 30
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(slopes))
    assert any((x != 0).any() for x in jax.tree.leaves(slopes))


def test_a_batch_without_any_data_has_no_loss_and_no_gradient():
    value, slopes = loss_and_slopes(
        prepared(np.full((8, 16, 16, 3), np.nan, np.float32)), OBJECTIVES[0]
    )
    assert value == 0
    assert all((x == 0).all() for x in jax.tree.leaves(slopes))


def test_complete_measurements_count_as_before():
    inputs = prepared(images())
    assert inputs["valid"].all()
    mask = inputs["mask"]
    assert mask.sum() == 8 * 8  # of 16 patches each
    prediction = np.zeros((8, 16, 16, 3), np.float32)
    objective = OBJECTIVES[0]
    found = objective(prediction, inputs["image"], mask, valid=inputs["valid"])
    pixels = masking.upsample(mask, 16, 16)
    expected = losses.masked_l1(prediction, inputs["image"], pixels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_bands_with_their_own_gaps_count_by_themselves():
    values = images()
    values[..., 0] = np.nan
    inputs = prepared(values)
    prediction = np.zeros((8, 16, 16, 3), np.float32)
    args = inputs["image"], inputs["mask"]
    found, pixels = OBJECTIVES[0](prediction, *args, valid=inputs["valid"])
    expected, whole = OBJECTIVES[0](prediction[..., 1:], args[0][..., 1:], args[1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(pixels, whole * 2 / 3, rtol=1e-6)


# ---- Whole runs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "mark"), [("float32", np.nan), ("int16", -32768), ("uint16", 0)]
)
def test_fields_with_gaps_pre_train_and_classify(dtype, mark, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    slope = np.linspace(-1, 1, 28)[:, None] * (1 - 2 * labels)[:, None, None]
    fields = 29_000 + 10 * slope[..., None] + rng.normal(size=(80, 28, 28, 2))
    fields = fields.astype(dtype)
    fields[rng.random((80, 28, 28)) < 0.2] = mark  # both bands
    fields[:, :, :14] = mark  # and half of each image
    config = tiny_config.get_config("pretrain")
    config.data.update({"channels": 2, "dtype": "auto", "mean": (), "std": ()})
    config.data.nodata = () if dtype == "float32" else (float(mark),)
    config.duration, config.optim.warmup = "4 steps", "1 steps"
    trained = pretrain(config, tmp_path / "pre", data=fields, held_out=fields[:20])
    assert 0.3 < trained.last["eval_loss"] < 2
    assert (tmp_path / "pre/reconstructions/0000004.png").exists()
    later = tiny_config.get_config("finetune")
    later.data.update({"channels": 2, "dtype": "auto", "mean": (), "std": ()})
    later.data.num_labels, later.init_from = 0, str(tmp_path / "pre")
    later.duration, later.optim.lr, later.pictures = "60 steps", 0.1, 4
    pair = (fields, labels)
    trained = finetune(later, tmp_path / "fine", data=pair, held_out=pair)
    assert trained.last["top1"] > 0.9
