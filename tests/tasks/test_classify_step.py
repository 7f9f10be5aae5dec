"""Augmentation and loss of a fine-tuning step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_cases
from step_cases import (
    MODEL,
    PLAIN,
    prepare_finetune,
    prepare_pretrain,
    random_params,
)

from simmim_jax.augment import basic, randaugment
from simmim_jax.augment.normalization import Normalization
from simmim_jax.config.schema import Augment
from simmim_jax.mim import losses
from simmim_jax.models.classifier import Classifier
from simmim_jax.tasks.classify_step import (
    class_targets,
    finetune_loss,
    finetune_prepare,
)
from simmim_jax.training.steps import purpose

AUGMENT = Augment(erase_prob=0.5, mix_group=4)


@pytest.fixture(scope="module")
def batch():
    return step_cases.make_batch()


def test_fine_tuning_loss_is_cross_entropy_with_smoothed_labels(batch):
    model = Classifier(MODEL.encoder, num_classes=3)
    prepare = prepare_finetune(targets=class_targets(3, 0.3), flip=False)
    inputs = prepare(batch, jax.random.key(0))
    expected = np.full((8, 3), 0.1)
    expected[np.arange(8), batch["label"]] = 0.8
    np.testing.assert_allclose(inputs["target"], expected, rtol=1e-5)
    key = jax.random.fold_in(jax.random.key(0), 0)
    plain = prepare_pretrain(flip=False)(batch, key)
    np.testing.assert_allclose(inputs["image"], plain["image"], rtol=1e-6)
    params = random_params(model, inputs["image"])
    logits = jax.jit(model.apply)({"params": params}, inputs["image"])
    logits -= jax.scipy.special.logsumexp(logits, axis=1, keepdims=True)
    loss = jax.jit(finetune_loss(model))
    value, metrics = loss(params, inputs, jax.random.key(0))
    np.testing.assert_allclose(value, -(expected * logits).sum(1).mean(), rtol=1e-5)
    assert metrics["loss"] == value


def test_fine_tuning_flips_some_images_of_a_batch(batch):
    prepare = prepare_finetune(
        normalization=Normalization((0,) * 3, (1,) * 3), flip=True
    )
    images = np.asarray(prepare(batch, jax.random.key(1))["image"]) * 255
    swapped = np.isclose(images, batch["image"][:, :, ::-1]).all((1, 2, 3))
    same = np.isclose(images, batch["image"]).all((1, 2, 3))
    assert (same ^ swapped).all()
    assert 0 < swapped.sum() < 8


FINETUNE = {
    "targets": class_targets(3, 0.3),
    "normalization": Normalization((0.485, 0.456, 0.999), (0.25, 0.25, 0.25)),
    "flip": True,
}


def test_augmentation_follows_the_official_order_with_a_key_for_each_part(batch):
    @jax.jit
    def expected(key):
        images = basic.random_flip(purpose(key, "flip"), jnp.asarray(batch["image"]))
        images = randaugment.randaugment(
            purpose(key, "randaugment"),
            images,
            num_ops=2,
            magnitude=9.0,
            magnitude_std=0.5,
            fill=(124, 116, 255),  # the mean in grey levels
        )
        images = FINETUNE["normalization"](images)
        images = basic.random_erase(purpose(key, "erase"), images, 0.5)
        return basic.mix(
            purpose(key, "mix"),
            images,
            losses.smooth_labels(batch["label"], 3, 0.3),
            group=4,
            mixup_alpha=0.8,
            cutmix_alpha=1.0,
            prob=1.0,
            switch_prob=0.5,
        )

    key = jax.random.key(2)
    images, targets = expected(key)
    inputs = jax.jit(finetune_prepare(AUGMENT, **FINETUNE))(batch, key)
    np.testing.assert_allclose(inputs["image"], images, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(inputs["target"], targets, rtol=1e-5)
    assert len(np.unique(np.asarray(targets).round(4))) > 2  # mixed and smoothed


@pytest.mark.parametrize("field", ["num_ops", "erase_prob", "mixup_alpha"])
def test_each_augmentation_is_off_at_zero_and_changes_images_when_on(field, batch):
    off = dict.fromkeys(("num_ops", "erase_prob", "mixup_alpha", "cutmix_alpha"), 0)
    on = off | {field: getattr(AUGMENT, field)}
    plain, none, one = (
        finetune_prepare(augment, **FINETUNE)(batch, jax.random.key(0))
        for augment in (
            PLAIN,
            dataclasses.replace(AUGMENT, **off),
            dataclasses.replace(AUGMENT, **on),
        )
    )
    np.testing.assert_array_equal(none["image"], plain["image"])
    np.testing.assert_array_equal(none["target"], plain["target"])
    assert (one["image"] != plain["image"]).any()


@pytest.mark.parametrize("group", [0, 8, 128])
def test_a_batch_is_one_group_if_it_is_not_larger(group, batch):
    prepare = finetune_prepare(
        dataclasses.replace(PLAIN, cutmix_alpha=1.0, mix_group=group), **FINETUNE
    )
    whole = dataclasses.replace(PLAIN, cutmix_alpha=1.0)
    expected = finetune_prepare(whole, **FINETUNE)(batch, jax.random.key(0))
    found = prepare(batch, jax.random.key(0))
    np.testing.assert_array_equal(found["image"], expected["image"])


def test_randaugment_of_images_with_five_channels_is_refused():
    bands = FINETUNE | {"normalization": Normalization((0.5,) * 5, (0.2,) * 5)}
    with pytest.raises(ValueError, match="num_ops=2 with images of 5 channels"):
        finetune_prepare(AUGMENT, **bands)
    finetune_prepare(dataclasses.replace(AUGMENT, num_ops=0), **bands)


@pytest.mark.parametrize(
    ("fields", "what"),
    [({"scale": 1.0}, "measured values"), ({"nodata": 0.0}, "pixels without data")],
)
def test_randaugment_of_measured_values_is_refused(fields, what):
    normalization = dataclasses.replace(FINETUNE["normalization"], **fields)
    arguments = FINETUNE | {"normalization": normalization}
    with pytest.raises(ValueError, match=f"num_ops=2 with images of {what}"):
        finetune_prepare(AUGMENT, **arguments)
    prepare = finetune_prepare(PLAIN, **arguments | {"flip": False})
    values = np.random.default_rng(0).uniform(1, 2, (8, 4, 4, 3)).astype(np.float32)
    labels = np.zeros(8, np.int32)
    found = prepare({"image": values, "label": labels}, jax.random.key(0))["image"]
    np.testing.assert_array_equal(found, normalization(values))
