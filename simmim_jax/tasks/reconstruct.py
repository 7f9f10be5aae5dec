"""What a pre-trained model makes of images of which most is hidden."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from simmim_jax.config.schema import Pretrain
from simmim_jax.errors import UserError
from simmim_jax.mim import masking
from simmim_jax.models import plain
from simmim_jax.tasks import pretrain
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.examples import BATCH
from simmim_jax.training import steps


class Reconstruction(NamedTuple):
    """Images, what was hidden of them, and what the model predicts.

    images: [n h w c], as the model sees them before they are normalised; masks: bool
    [n h w], True where hidden; pixels: float32 [n h w c], in units of the images, at
    every pixel. Visible ones are not trained, unless config.loss.area says so.
    """

    images: np.ndarray
    masks: np.ndarray
    pixels: np.ndarray


def reconstruct(
    encoder: Encoder, images: Sequence[Any] | np.ndarray, *, seed: int = 0
) -> Reconstruction:
    """Hide parts of images as in pre-training, and predict them.

    images: as in `Encoder.embed`; seed: of the masks.
    raises: UserError if the run learned no decoder.
    """
    config = encoder.config
    if not isinstance(config, Pretrain) or not encoder.decoder:
        raise UserError(
            "This run has no decoder to reconstruct images with: expected the workdir "
            "of a run with config.mode='pretrain'."
        )
    if jax.default_backend() == "cpu":
        config = dataclasses.replace(config, dtype="float32")
    parts = pretrain.Parts(config)
    model, prepare = plain(parts.model), parts.prepare(flip=False)

    @jax.jit
    def predicted(params: Any, batch: dict[str, Any], index: int) -> tuple:
        key = steps.purpose(jax.random.fold_in(jax.random.key(seed), index), "eval")
        found = prepare(batch, key)
        pixels, mask, valid = found["image"], found["mask"], found.get("valid")
        prediction = model.apply({"params": params}, pixels, mask)
        masks = masking.upsample(mask, *pixels.shape[1:3])
        return masks, parts.objective.to_pixels(prediction, pixels, valid)

    params = {"encoder": encoder.params, **encoder.decoder}
    whole = encoder.prepare(images)
    results = []
    for index, first in enumerate(range(0, len(whole), BATCH)):
        part = whole[first : first + BATCH]
        padded = np.zeros((BATCH, *part.shape[1:]), part.dtype)
        padded[: len(part)] = part
        found = jax.device_get(predicted(params, {"image": padded}, index))
        results.append([array[: len(part)] for array in found])
    masks, pixels = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
    return Reconstruction(whole, masks, pixels)
