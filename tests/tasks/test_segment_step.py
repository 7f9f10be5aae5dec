"""Segmentation: what a step prepares, its loss, and its counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from simmim_jax.augment.normalization import Normalization
from simmim_jax.mim import losses
from simmim_jax.tasks.segment_step import (
    confusion,
    intersection_over_union,
    segment_prepare,
)

IGNORED = 255


def test_counts_and_iou_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 2, 9, 7))
    truth[0, :3] = IGNORED
    counts = np.asarray(confusion(truth, predicted, 6, IGNORED))
    pairs = truth[truth != IGNORED], predicted[truth != IGNORED]
    np.testing.assert_array_equal(
        counts, metrics.confusion_matrix(*pairs, labels=range(6))
    )
    iou = intersection_over_union(counts)
    expected = metrics.jaccard_score(*pairs, labels=range(4), average=None)
    np.testing.assert_allclose(iou[:4], expected)
    assert np.isnan(iou[4:]).all()  # classes that never occur


def test_loss_is_the_mean_over_pixels_that_count():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    classes = rng.integers(0, 5, (2, 3, 4))
    classes[1, :, :2] = IGNORED
    counts = classes != IGNORED
    expected = metrics.log_loss(
        classes[counts],
        np.asarray(jax.nn.softmax(logits))[counts],
        labels=range(5),
        normalize=False,
    )
    total = losses.pixel_cross_entropy(logits, classes, IGNORED)
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_images_and_masks_are_flipped_together():
    images = np.random.default_rng(0).integers(0, 9, (16, 4, 6, 1), np.uint8)
    prepare = segment_prepare(
        normalization=Normalization(scale=1), flip=True, ignore_index=IGNORED
    )
    batch = {"image": jnp.asarray(images), "mask": jnp.asarray(images[..., 0])}
    out = prepare(batch, jax.random.key(0))
    np.testing.assert_array_equal(out["image"][..., 0], out["mask"])
    flipped = (np.asarray(out["mask"]) != images[..., 0]).any((1, 2))
    assert 0 < flipped.sum() < 16


def test_pixels_without_data_do_not_count():
    images = np.full((1, 2, 2, 2), 7.0, np.float32)
    images[0, 0] = np.nan  # both bands
    images[0, 1, 0, 0] = np.nan  # one of them
    prepare = segment_prepare(
        normalization=Normalization((0, 0), (1, 1), 1.0),
        flip=False,
        ignore_index=IGNORED,
    )
    masks = np.ones((1, 2, 2), np.uint16)
    out = prepare({"image": images, "mask": masks}, jax.random.key(0))
    np.testing.assert_array_equal(out["mask"], [[[IGNORED, IGNORED], [1, 1]]])
    assert np.isfinite(out["image"]).all()
