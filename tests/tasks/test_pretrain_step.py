"""Preparation and loss of a pre-training step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_cases
from step_cases import DROPPING, MODEL, PREPARE, prepare_pretrain, random_params

from simmim_jax.augment import basic
from simmim_jax.mim import masking
from simmim_jax.mim.objective import Objective
from simmim_jax.tasks.pretrain_step import pretrain_loss, pretrain_prepare
from simmim_jax.training.steps import purpose


@pytest.fixture(scope="module")
def batch():
    return step_cases.make_batch()


def prepared(batch, step, flip=True):
    key = jax.random.fold_in(jax.random.key(0), step)
    return prepare_pretrain(flip=flip)(batch, key)


def test_prepare_normalises_and_masks_whole_units_of_each_image(batch):
    inputs = prepared(batch, 0, flip=False)
    expected = (batch["image"] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(inputs["image"], expected, rtol=1e-5, atol=1e-6)
    units = inputs["mask"].reshape(8, 2, 2, 2, 2)
    assert (units.all((2, 4)) == units.any((2, 4))).all()
    assert (units.all((2, 4)).sum((1, 2)) == 2).all()


def test_flips_and_masks_differ_between_steps_and_repeat_within_one(batch):
    first, again, other = (prepared(batch, step) for step in (0, 0, 1))
    for name in ("image", "mask"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any(), name


def test_flips_and_masks_have_their_own_keys(batch):
    inputs = prepared(batch, 5)
    key = jax.random.fold_in(jax.random.key(0), 5)
    mask = masking.random_mask(purpose(key, "mask"), 8, (4, 4), (2, 2), 0.5)
    np.testing.assert_array_equal(inputs["mask"], mask)
    flipped = basic.random_flip(purpose(key, "flip"), jnp.asarray(batch["image"]))
    expected = PREPARE["normalization"](flipped)
    np.testing.assert_array_equal(inputs["image"], expected)


def test_flipping_does_not_change_the_masks(batch):
    flipped, straight = prepared(batch, 0), prepared(batch, 0, flip=False)
    np.testing.assert_array_equal(flipped["mask"], straight["mask"])
    mirrored = straight["image"][:, :, ::-1]
    same = (flipped["image"] == straight["image"]).all((1, 2, 3))
    swapped = (flipped["image"] == mirrored).all((1, 2, 3))
    assert (same ^ swapped).all()
    assert 0 < swapped.sum() < 8


def test_units_need_not_be_square(batch):
    prepare = pretrain_prepare(
        **PREPARE | {"patch_size": (4, 2), "mask_unit": (4, 8)}, flip=False
    )
    mask = prepare(batch, jax.random.key(0))["mask"]
    assert mask.shape == (8, 4, 8)
    units = mask.reshape(8, 4, 2, 4)
    assert (units.all(3) == units.any(3)).all()
    assert (units.all(3).sum((1, 2)) == 4).all()


@pytest.mark.parametrize("unit", [(6, 8), (8, 7), (2, 8)])
def test_units_that_are_no_multiple_of_the_patch_raise(unit):
    expected = rf"unit_size=\({unit[0]}, {unit[1]}\).*patch_size=\(4, 4\)"
    with pytest.raises(ValueError, match=expected):
        pretrain_prepare(**PREPARE | {"mask_unit": unit}, flip=True)


@pytest.mark.parametrize("kind", masking.MASKS)
def test_masks_are_of_the_configured_kind(batch, kind):
    prepare = pretrain_prepare(**PREPARE | {"mask_kind": kind}, flip=False)
    key = jax.random.key(0)
    expected = masking.MASKS[kind](purpose(key, "mask"), 8, (4, 4), (2, 2), 0.5)
    np.testing.assert_array_equal(prepare(batch, key)["mask"], expected)


def test_unknown_mask_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"config\.mask\.kind='grid': .*'block'"):
        pretrain_prepare(**PREPARE | {"mask_kind": "grid"}, flip=False)


def test_a_ratio_that_leaves_nothing_visible_is_refused(batch):
    prepare = pretrain_prepare(**PREPARE | {"mask_ratio": 0.8}, flip=False)
    with pytest.raises(ValueError, match=r"mask\.ratio=0\.8 hides all 4 units"):
        prepare(batch, jax.random.key(0))


def test_pre_training_loss_is_that_of_its_objective(batch):
    objective = Objective(target="normalized", window=5, downsample=2, loss="l2")
    model = dataclasses.replace(MODEL, downsample=2)
    inputs = prepared(batch, 0)
    params = random_params(model, inputs["image"], inputs["mask"])
    loss = jax.jit(pretrain_loss(model, objective))
    value, metrics = loss(params, inputs, jax.random.key(0))
    prediction = model.apply({"params": params}, inputs["image"], inputs["mask"])
    expected, _ = objective(prediction, inputs["image"], inputs["mask"])
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert metrics["loss"] == value


def test_paths_drop_in_training_and_not_in_evaluation(batch):
    inputs = prepared(batch, 0)
    params = random_params(DROPPING, inputs["image"], inputs["mask"])

    loss = jax.jit(pretrain_loss(DROPPING))
    first, second, again = (
        float(loss(params, inputs, jax.random.key(k))[0]) for k in (0, 1, 0)
    )
    assert first == again != second
    # Without `train` there is no key to drop by, and none is asked for.
    args = {"params": params}, inputs["image"], inputs["mask"]
    np.testing.assert_array_equal(DROPPING.apply(*args), DROPPING.apply(*args))
