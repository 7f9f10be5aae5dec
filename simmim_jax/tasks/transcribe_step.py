"""Pure functions of a step of speech to text: its augmentation and its loss."""

from typing import Any

import jax
import jax.numpy as jnp

from simmim_jax.augment.normalization import Normalization
from simmim_jax.augment.specaugment import spec_augment
from simmim_jax.config.schema import SpecAugment
from simmim_jax.models.transcriber import Transcriber
from simmim_jax.tasks.ctc import ctc_loss
from simmim_jax.training.steps import Batch, Loss, Metrics, Prepare, purpose


def transcribe_prepare(augment: SpecAugment, normalization: Normalization) -> Prepare:
    """Return normalisation, then SpecAugment."""

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        images = spec_augment(
            purpose(key, "specaugment"),
            normalization(batch["image"]),
            batch["num_frames"],
            time_masks=augment.time_masks,
            time_width=augment.time_width,
            band_masks=augment.band_masks,
            band_width=augment.band_width,
        )
        return batch | {"image": images}

    return prepare


def character_loss(model: Transcriber, logits: jax.Array, batch: Batch) -> jax.Array:
    """Return the CTC loss of each utterance, a character of its text, float32[b]."""
    loss = ctc_loss(
        logits,
        model.num_tokens(batch["num_frames"]),
        batch["text"],
        batch["num_labels"],
    )
    return loss / jnp.maximum(batch["num_labels"], 1)


def transcribe_loss(model: Transcriber, *, drop_paths: bool = True) -> Loss:
    """Return the mean of `character_loss`; drop_paths: stochastic depth."""

    def loss(params: Any, inputs: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        logits = model.apply(
            {"params": params},
            inputs["image"],
            inputs["num_frames"],
            drop_paths,
            rngs={"drop_path": key},
        )
        value = character_loss(model, logits, inputs).mean()
        return value, {"loss": value}

    return loss
