"""Pure functions of a pre-training step: its preparation and its loss."""

from typing import Any

import jax
import jax.numpy as jnp

from simmim_jax.augment import basic
from simmim_jax.augment.normalization import Normalization
from simmim_jax.errors import UserError
from simmim_jax.mim import masking
from simmim_jax.mim.objective import SIMMIM, Objective
from simmim_jax.models.simmim import SimMIM
from simmim_jax.training.steps import Batch, Loss, Metrics, Prepare, purpose


def pretrain_prepare(
    *,
    patch_size: tuple[int, int],
    mask_unit: tuple[int, int],
    mask_ratio: float,
    normalization: Normalization,
    flip: bool,
    mask_kind: str = "random",
    mask_span: tuple[int, int] = (1, 6),
) -> Prepare:
    """Return what flips, normalises and draws a mask for each image.

    mask_unit: height and width of what is hidden together [pixels]; mask_kind: a name
    of `masking.MASKS`, or "span" with lengths of `mask_span`. Patches without data are
    not hidden; where pixels may have none, the result tells which do, "valid"
    bool[b h w c].
    raises: UserError for invalid values; when traced, also where a mask would hide a
    whole image.
    """
    kinds = (*masking.MASKS, "span")
    if mask_kind not in kinds:
        raise UserError(f"config.mask.kind={mask_kind!r}: expected one of {kinds}.")
    if mask_unit[0] % patch_size[0] or mask_unit[1] % patch_size[1]:
        raise UserError(
            f"config.mask.unit_size={mask_unit} must be a multiple of "
            f"config.model.patch_size={patch_size}: whole patches are hidden."
        )
    unit = (mask_unit[0] // patch_size[0], mask_unit[1] // patch_size[1])

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        images = batch["image"]
        grid = (images.shape[1] // patch_size[0], images.shape[2] // patch_size[1])
        if flip:
            images = basic.random_flip(purpose(key, "flip"), images)
        units = (grid[0] // unit[0]) * (grid[1] // unit[1])
        if masking.num_masked(units, mask_ratio) >= units > 0:
            raise UserError(
                f"config.mask.ratio={mask_ratio} hides all {units} units of an image: "
                "expected a lower one, or a smaller config.mask.unit_size."
            )
        valid = normalization.valid(images)
        mask_key = purpose(key, "mask")
        if mask_kind == "span":
            everything = jnp.ones(images.shape, bool)
            measured = masking.measured_patches(
                everything if valid is None else valid, patch_size
            )
            mask = masking.span_mask(mask_key, measured, unit, mask_ratio, mask_span)
        else:
            mask = masking.MASKS[mask_kind](
                mask_key, len(images), grid, unit, mask_ratio
            )
        prepared = {
            "image": normalization(images),
            "mask": masking.where_measured(mask, valid, patch_size),
        }
        return prepared if valid is None else prepared | {"valid": valid}

    return prepare


def pretrain_loss(model: SimMIM, objective: Objective = SIMMIM) -> Loss:
    """Return the loss of reconstructions, by default masked L1."""

    def loss(params: Any, inputs: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        images, mask = inputs["image"], inputs["mask"]
        prediction = model.apply(
            {"params": params}, images, mask, True, rngs={"drop_path": key}
        )
        value, _ = objective(prediction, images, mask, valid=inputs.get("valid"))
        return value, {"loss": value}

    return loss
