"""Pure functions of segmentation: what a step prepares, its loss, and its counts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.augment import basic
from simmim_jax.augment.normalization import Normalization
from simmim_jax.mim import losses
from simmim_jax.models.segmenter import Segmenter, resized
from simmim_jax.training.steps import Batch, Loss, Metrics, Prepare, purpose


def segment_prepare(
    *, normalization: Normalization, flip: bool, ignore_index: int
) -> Prepare:
    """Return the preparation of a batch: flip, normalisation, pixels that count.

    Masks become ignore_index where no band of the image has a measurement.
    """

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        images, masks = batch["image"], batch["mask"].astype(jnp.int32)[..., None]
        if flip:  # the same images of both
            images, masks = (
                basic.random_flip(purpose(key, "flip"), x) for x in (images, masks)
            )
        masks = masks[..., 0]
        valid = normalization.valid(images)
        if valid is not None:
            masks = jnp.where(valid.any(-1), masks, ignore_index)
        return {"image": normalization(images), "mask": masks}

    return prepare


def segment_loss(
    model: Segmenter,
    *,
    auxiliary_weight: float,
    ignore_index: int,
    train: bool = True,
) -> Loss:
    """Return the cross-entropy of the pixels that count, of both heads.

    train: with drop path and dropout.
    """

    def loss(params: Any, inputs: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        rngs = {"drop_path": key, "dropout": purpose(key, "dropout")}
        masks = inputs["mask"]
        both = model.apply({"params": params}, inputs["image"], train, rngs=rngs)
        head, auxiliary = (
            losses.pixel_cross_entropy(
                resized(logits, masks.shape[1:]), masks, ignore_index
            )
            for logits in both
        )
        value = head / counted(masks, ignore_index)
        extra = auxiliary / counted(masks, ignore_index)
        return value + auxiliary_weight * extra, {"loss": value}

    return loss


def counted(masks: jax.Array, ignore_index: int) -> jax.Array:
    """Return how many pixels of masks count, at least 1."""
    return jnp.maximum((masks != ignore_index).sum(), 1).astype(jnp.float32)


def confusion(
    truth: jax.Array, predicted: jax.Array, num_classes: int, ignore_index: int
) -> jax.Array:
    """Return int32[k k]: how many pixels of a class (row) are predicted as another.

    truth, predicted: int[...]; pixels of ignore_index do not count.
    """
    place = truth * num_classes + predicted
    place = jnp.where(truth == ignore_index, num_classes**2, place)
    counts = jnp.bincount(place.ravel(), length=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes)


def intersection_over_union(counts: np.ndarray) -> np.ndarray:
    """Return float64[k] of a confusion int[k k]; NaN for a class that never occurs.

    Neither in truth nor in predictions, that is: mIoU is the mean of all others.
    """
    hits = np.diagonal(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
