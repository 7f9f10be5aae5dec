"""Pure functions of a fine-tuning step: its augmentation and its loss."""

from typing import Any

import jax

from simmim_jax.augment import basic, randaugment
from simmim_jax.augment.normalization import Normalization
from simmim_jax.config.schema import Augment
from simmim_jax.errors import UserError
from simmim_jax.mim import losses
from simmim_jax.models.classifier import Classifier
from simmim_jax.training.steps import Batch, Loss, Metrics, Prepare, purpose


def finetune_prepare(
    augment: Augment,
    *,
    num_classes: int,
    label_smoothing: float,
    normalization: Normalization,
    flip: bool,
) -> Prepare:
    """Return the augmentation, in the order of the official code, with soft targets.

    Flip, RandAugment, normalisation, erasing, mixing; see `randaugment` and `basic`.
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
        targets = losses.smooth_labels(batch["label"], num_classes, label_smoothing)
        if augment.mixup_alpha or augment.cutmix_alpha:
            images, targets = basic.mix(
                purpose(key, "mix"),
                images,
                targets,
                group=min(augment.mix_group or len(images), len(images)),
                mixup_alpha=augment.mixup_alpha,
                cutmix_alpha=augment.cutmix_alpha,
                prob=augment.mix_prob,
                switch_prob=augment.mix_switch_prob,
            )
        return {"image": images, "target": targets}

    return prepare


def finetune_loss(model: Classifier, *, drop_paths: bool = True) -> Loss:
    """Cross-entropy with soft targets; drop_paths: stochastic depth in the encoder."""

    def loss(params: Any, inputs: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        logits = model.apply(
            {"params": params}, inputs["image"], drop_paths, rngs={"drop_path": key}
        )
        value = losses.cross_entropy(logits, inputs["target"]).mean()
        return value, {"loss": value}

    return loss
