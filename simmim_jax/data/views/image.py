"""Views of images and other rasters: one crop for training, one for evaluation."""

import dataclasses
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.views.base import Spec, View
from simmim_jax.data.views.crop import random_crop, resize_center_crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageView(View):
    """An image of `size` and its label.

    size: (height, width) [pixels]; decoding: how files become arrays, with a number of
    channels; interpolation: a filter of Pillow; dtype: of the batch.
    """

    size: tuple[int, int]
    decoding: Decoding
    interpolation: str
    dtype: str = "uint8"

    @property
    def spec(self) -> dict[str, Spec]:
        """{"image": [h w c] of dtype, "label": [] int32}."""
        return {
            "image": Spec((*self.size, self._channels), np.dtype(self.dtype)),
            "label": Spec((), np.dtype(np.int32)),
        }

    @property
    def _channels(self) -> int:
        assert self.decoding.channels is not None
        return self.decoding.channels

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return the cropped image and the label, -1 where there is none."""
        image = self.crop(example["image"], rng)
        if image.dtype != self.dtype and not np.can_cast(image.dtype, self.dtype):
            raise BadImage(
                "other values",
                f"An image has {image.dtype} values: expected {self.dtype}, which is "
                f"config.data.dtype. Set --config.data.dtype={image.dtype}, or "
                "--config.data.value_range=LOW,HIGH to map these values to 0..255.",
            )
        return {"image": image, "label": example["label"]}

    def crop(self, image: bytes | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return [h w c]: the whole image, resized exactly."""
        del rng
        return resize_center_crop(
            decode(image, self.decoding),
            self.size,
            1.0,
            self.interpolation,
            nodata=self.decoding.nodata,
        )

    def is_identity(self, images: np.ndarray) -> bool:
        """Whether nothing is cropped, resized or converted."""
        return (
            images.shape[1:] == (*self.size, self._channels)
            and images.dtype == self.dtype
            and not self.decoding.value_range
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
            self.decoding,
            size=self.size,
            rng=rng,
            scale=self.scale,
            ratio=self.ratio,
            interpolation=self.interpolation,
            fast=self.fast,
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
            decode(image, self.decoding),
            self.size,
            self.crop_fraction,
            self.interpolation,
            fit=self.fit,
            center=self.center,
            fill=self.fill,
            nodata=self.decoding.nodata,
        )

    def is_identity(self, images: np.ndarray) -> bool:
        """Whether nothing is cropped, resized or converted."""
        return self.crop_fraction == 1 and super().is_identity(images)
