"""The objective of pre-training: what is predicted, and the loss on it."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from simmim_jax.augment import basic
from simmim_jax.errors import UserError
from simmim_jax.mim import losses, masking, targets


@dataclasses.dataclass(frozen=True)
class Objective:
    """The design space of the paper's ablations; the defaults are SimMIM's own.

    target: "pixels", or "normalized" by the `window` around each (Swin V2's recipe).
    downsample: the target is so many times smaller, each pixel the mean of a cell.
    loss: a name of `losses.PIXEL_LOSSES`; "bins" classifies every value of a pixel into
    `bins` equal parts of 0..255.
    area: "masked", or "all" pixels, visible ones included.
    mean, std: how images were normalised, one value a channel.
    ValueError for values other than these.
    """

    target: str = "pixels"
    window: int = 47
    downsample: int = 1
    loss: str = "l1"
    bins: int = 8
    area: str = "masked"
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    scale: float = 255.0

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
                f"config.target.downsample={self.downsample}: expected 1, the size of "
                "the image, or more."
            )
        targets.check_window(self.window)
        if self.loss == "bins" and self.target != "pixels":
            raise UserError(
                f"config.target.kind={self.target!r} has no colour bins: expected "
                "'pixels' where config.loss.kind='bins'."
            )
        if not 2 <= self.bins <= 256:
            raise UserError(f"config.loss.bins={self.bins}: expected 2 to 256.")

    def __call__(
        self,
        prediction: jax.Array,
        images: jax.Array,
        mask: jax.Array,
        weight: jax.Array | float = 1.0,
    ) -> tuple[jax.Array, jax.Array]:
        """The loss, and the number of pixels it is over.

        prediction: as SimMIM gives it; images: float[b h w c], normalised; mask: bool
        [b gh gw] of patches, True = masked; weight: [b], of each image.
        """
        pixels = masking.upsample(mask, *images.shape[1:3])
        if self.area == "all":
            pixels = jnp.ones_like(pixels)
        # A mask unit is a multiple of a target's pixel: see `check_mask`.
        pixels = pixels[:, :: self.downsample, :: self.downsample]
        weights = pixels * jnp.reshape(weight, (-1, 1, 1))
        loss = losses.PIXEL_LOSSES[self.loss]
        return loss(prediction, self.of(images), weights)

    def of(self, images: jax.Array) -> jax.Array:
        """What is to be predicted: float[b h w c], normalised -> [b h' w' c]."""
        if self.loss == "bins":
            pixels = jnp.round(basic.denormalize(images, self.mean, self.std, self.scale))
            return targets.to_bins(self._smaller(pixels), self.bins)
        if self.target == "normalized":
            images = targets.normalize_windows(images, self.window)
        return self._smaller(images)

    def to_pixels(self, prediction: jax.Array, images: jax.Array) -> jax.Array:
        """Predictions as pictures, float32[b h w c] in 0..255 where they are right.

        Normalised ones get the true mean and standard deviation of each window back,
        as in pictures of MAE: they lend them colours that were not predicted. Smaller
        ones are enlarged, and bins give their expected value.
        """
        if self.loss == "bins":
            return targets.upsample(targets.from_bins(prediction), self.downsample)
        pixels = targets.upsample(prediction, self.downsample)
        if self.target == "normalized":
            mean, std = targets.window_moments(images, self.window)
            pixels = pixels * std + mean
        return basic.denormalize(pixels, self.mean, self.std, self.scale)

    def check_mask(self, unit: Sequence[int], ratio: float) -> None:
        """ValueError where masks leave no loss, or hide parts of a target's pixels."""
        if self.area == "masked" and ratio <= 0:
            raise UserError(
                f"config.mask.ratio={ratio} hides nothing, and nothing else counts: "
                "expected a higher one, or config.loss.area='all'."
            )
        if self.area == "masked" and any(side % self.downsample for side in unit):
            raise UserError(
                f"config.target.downsample={self.downsample} must divide both sides of "
                f"config.mask.unit_size={tuple(unit)}: a pixel of the target is hidden "
                "as a whole, or visible."
            )

    def _smaller(self, images: jax.Array) -> jax.Array:
        return targets.downsample(images, self.downsample)


# L1 on the pixels that are masked.
SIMMIM = Objective()
