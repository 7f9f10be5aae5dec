"""Pre-training objective: the prediction target and its loss."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from simmim_jax.augment.normalization import PIXELS, Normalization
from simmim_jax.errors import UserError
from simmim_jax.mim import losses, masking, targets


@dataclasses.dataclass(frozen=True)
class Objective:
    """Design space of the paper's ablations; the defaults are SimMIM's own.

    target: "pixels", or "normalized" by the `window` around each (Swin V2's recipe).
    downsample: factor by which the target is smaller; its pixels are means of cells.
    loss: a key of `losses.PIXEL_LOSSES`; "bins" classifies every value of a pixel into
    `bins` equal intervals of 0..255.
    area: "masked" pixels, or "all", visible ones included.
    normalization: of the images.
    Raises UserError for other values.
    """

    target: str = "pixels"
    window: int = 47
    downsample: int = 1
    loss: str = "l1"
    bins: int = 8
    area: str = "masked"
    normalization: Normalization = PIXELS

    def __post_init__(self) -> None:
        choices = {
            "target.kind": (self.target, ("pixels", "normalized")),
            "loss.kind": (self.loss, tuple(losses.PIXEL_LOSSES)),
            "loss.area": (self.area, ("masked", "all")),
        }
        for name, (value, expected) in choices.items():
            if value not in expected:
                raise UserError(f"config.{name}={value!r}: expected one of {expected}.")
        if self.downsample < 1:
            raise UserError(
                f"config.target.downsample={self.downsample}: expected 1 (full size) "
                "or more."
            )
        targets.check_window(self.window)
        if self.loss == "bins" and self.target != "pixels":
            raise UserError(
                f"config.target.kind={self.target!r} has no colour bins: expected "
                "'pixels' with config.loss.kind='bins'."
            )
        if not 2 <= self.bins <= 256:
            raise UserError(f"config.loss.bins={self.bins}: expected 2 to 256.")

    def __call__(
        self,
        prediction: jax.Array,
        images: jax.Array,
        mask: jax.Array,
        weight: jax.Array | float = 1.0,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return the loss, and the number of pixels that it averages.

        prediction: output of SimMIM; images: float[b h w c], normalised; mask:
        bool[b gh gw] of patches, True = masked; weight: [b], per image; valid:
        bool[b h w c], values that were measured, None for all of them. Others do not
        count.
        """
        pixels = masking.upsample(mask, *images.shape[1:3])
        if self.area == "all":
            pixels = jnp.ones_like(pixels)
        # Mask units are multiples of target pixels: see `check_mask`.
        pixels = pixels[:, :: self.downsample, :: self.downsample]
        weights = pixels * jnp.reshape(weight, (-1, 1, 1))
        if valid is not None:
            weights = weights[..., None] * targets.any_in_cell(valid, self.downsample)
        loss = losses.PIXEL_LOSSES[self.loss]
        return loss(prediction, self.of(images, valid), weights)

    def of(self, images: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Return the target, [b h' w' c], of normalised images, float[b h w c].

        valid: as in `__call__`; the target of a cell is the mean of its valid pixels.
        """
        if self.loss == "bins":
            pixels = jnp.round(self.normalization.inverse(images))
            cells = targets.downsample(pixels, self.downsample, valid)
            return targets.to_bins(cells, self.bins)
        if self.target == "normalized":
            images = targets.normalize_windows(images, self.window, valid)
        return targets.downsample(images, self.downsample, valid)

    def to_pixels(
        self, prediction: jax.Array, images: jax.Array, valid: jax.Array | None = None
    ) -> jax.Array:
        """Convert predictions to the units of pixels, float32[b h w c].

        Normalised predictions get the true mean and standard deviation of each window
        back, as in MAE's figures, and so colours that were not predicted. Downsampled
        ones are upsampled, and bins give their expected value.
        """
        if self.loss == "bins":
            return targets.upsample(targets.from_bins(prediction), self.downsample)
        pixels = targets.upsample(prediction, self.downsample)
        if self.target == "normalized":
            mean, std = targets.window_moments(images, self.window, valid)
            pixels = pixels * std + mean
        return self.normalization.inverse(pixels)

    def check_mask(self, unit: Sequence[int], ratio: float) -> None:
        """Raise UserError if masks leave no loss, or hide part of a target pixel."""
        if self.area == "masked" and ratio <= 0:
            raise UserError(
                f"config.mask.ratio={ratio} hides nothing, which leaves no loss: "
                "expected a higher ratio, or config.loss.area='all'."
            )
        if self.area == "masked" and any(side % self.downsample for side in unit):
            raise UserError(
                f"config.target.downsample={self.downsample} must divide both sides of "
                f"config.mask.unit_size={tuple(unit)}, so that masks do not hide part "
                "of a target pixel."
            )


# L1 loss on masked pixels.
SIMMIM = Objective()
