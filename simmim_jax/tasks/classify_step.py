"""Pure functions of a fine-tuning step: its augmentation and its loss."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from simmim_jax.augment import basic, randaugment
from simmim_jax.augment.normalization import Normalization
from simmim_jax.config.schema import Augment
from simmim_jax.errors import UserError
from simmim_jax.mim import losses
from simmim_jax.models.classifier import Classifier
from simmim_jax.training.steps import Batch, Loss, Metrics, Prepare, purpose

Targets = Callable[[Batch], jax.Array]


def class_targets(num_classes: int, smoothing: float) -> Targets:
    """Return what makes soft targets of labels: one class an image."""
    return lambda batch: losses.smooth_labels(batch["label"], num_classes, smoothing)


def several_targets(smoothing: float) -> Targets:
    """Return what makes soft targets of any number of classes: 1 is 1 - smoothing/2."""
    return lambda batch: batch["target"] * (1 - smoothing) + smoothing / 2


def number_targets(mean: Sequence[float], std: Sequence[float]) -> Targets:
    """Return what standardises numbers."""
    return lambda batch: (batch["target"] - jnp.array(mean)) / jnp.array(std)


def finetune_prepare(
    augment: Augment,
    *,
    targets: Targets,
    normalization: Normalization,
    flip: bool,
) -> Prepare:
    """Return the augmentation, in the order of the official code.

    targets: of a batch, float[b k], which are mixed with its images. Flip, RandAugment,
    normalisation, erasing, mixing; see `randaugment` and `basic`.
    raises: UserError for images that RandAugment is not defined for.
    """
    channels = len(normalization.mean)
    what = ""
    if normalization.scale != 255:
        what = "measured values"
    elif channels not in (1, 3):
        what = f"{channels} channels"
    elif normalization.nodata is not None:
        what = "pixels without data"
    if augment.num_ops and what:
        raise UserError(
            f"config.augment.num_ops={augment.num_ops} with images of {what}: "
            "RandAugment is defined for grey and colour photographs, set it to 0."
        )
    fill = tuple(min(255, round(255 * level)) for level in normalization.mean)

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        images = batch["image"]
        if flip:
            images = basic.random_flip(purpose(key, "flip"), images)
        if augment.num_ops:
            images = randaugment.randaugment(
                purpose(key, "randaugment"),
                images,
                num_ops=augment.num_ops,
                magnitude=augment.magnitude,
                magnitude_std=augment.magnitude_std,
                fill=fill,
            )
        images = normalization(images)
        if augment.erase_prob:
            images = basic.random_erase(
                purpose(key, "erase"), images, augment.erase_prob
            )
        target = targets(batch)
        if augment.mixup_alpha or augment.cutmix_alpha:
            images, target = basic.mix(
                purpose(key, "mix"),
                images,
                target,
                group=min(augment.mix_group or len(images), len(images)),
                mixup_alpha=augment.mixup_alpha,
                cutmix_alpha=augment.cutmix_alpha,
                prob=augment.mix_prob,
                switch_prob=augment.mix_switch_prob,
            )
        return {"image": images, "target": target}

    return prepare


def finetune_loss(
    model: Classifier, kind: str = "softmax", *, drop_paths: bool = True
) -> Loss:
    """Return the loss of one of `HEAD_LOSSES`; drop_paths: in the encoder."""
    error = losses.HEAD_LOSSES[kind]

    def loss(params: Any, inputs: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        logits = model.apply(
            {"params": params}, inputs["image"], drop_paths, rngs={"drop_path": key}
        )
        value = error(logits, inputs["target"]).mean()
        return value, {"loss": value}

    return loss
