"""Views of images and of float32 arrays: one crop for training, one for evaluation."""

import dataclasses
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import MAX_PIXELS
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.views.base import Spec, View
from simmim_jax.data.views.crop import random_crop, resize_center_crop
from simmim_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageView(View):
    """An image of `size` and its label.

    size: (height, width) [pixels]; interpolation: a filter of Pillow; dtype: "uint8"
    for images, "float32" for arrays of measured values; max_pixels: larger images are
    bad images.
    """

    size: tuple[int, int]
    channels: int
    interpolation: str
    dtype: str = "uint8"
    max_pixels: int = MAX_PIXELS

    @property
    def spec(self) -> dict[str, Spec]:
        """{"image": [h w c] of dtype, "label": [] int32}."""
        return {
            "image": Spec((*self.size, self.channels), np.dtype(self.dtype)),
            "label": Spec((), np.dtype(np.int32)),
        }

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return the cropped image and the label, -1 where there is none."""
        image = self.crop(example["image"], rng)
        if image.dtype != self.dtype and not np.can_cast(image.dtype, self.dtype):
            raise UserError(
                f"config.data.dtype={self.dtype!r}, but an image has {image.dtype} "
                f"values: set --config.data.dtype={image.dtype}, and mean and std in "
                "the units of the data."
            )
        return {"image": image, "label": example["label"]}

    def crop(self, image: bytes | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return [h w c]: the whole image, resized exactly."""
        del rng
        return resize_center_crop(
            decode(image, self.channels, self.max_pixels),
            self.size,
            1.0,
            self.interpolation,
        )

    def is_identity(self, images: np.ndarray) -> bool:
        """Whether nothing is cropped, resized or converted."""
        return (
            images.shape[1:] == (*self.size, self.channels)
            and images.dtype == self.dtype
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCropView(ImageView):
    """A random crop, resized.

    scale, ratio, fast: see `random_crop`.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    fast: bool

    def crop(self, image: bytes | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return [h w c], as torchvision's RandomResizedCrop does."""
        return random_crop(
            image,
            channels=self.channels,
            size=self.size,
            rng=rng,
            scale=self.scale,
            ratio=self.ratio,
            interpolation=self.interpolation,
            fast=self.fast,
            max_pixels=self.max_pixels,
        )

    def is_identity(self, images: np.ndarray) -> bool:
        """Never: every example is cropped."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterCropView(ImageView):
    """The crop of evaluation.

    crop_fraction, fit, center, fill: see `resize_center_crop`.
    """

    crop_fraction: float
    fit: str = "official"
    center: str = "round"
    fill: tuple[float, ...] = (0,)

    def crop(self, image: bytes | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return [h w c]: resized to fit size / crop_fraction, then cut out."""
        del rng
        return resize_center_crop(
            decode(image, self.channels, self.max_pixels),
            self.size,
            self.crop_fraction,
            self.interpolation,
            fit=self.fit,
            center=self.center,
            fill=self.fill,
        )

    def is_identity(self, images: np.ndarray) -> bool:
        """Whether nothing is cropped, resized or converted."""
        return self.crop_fraction == 1 and super().is_identity(images)
