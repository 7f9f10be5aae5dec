"""The view of an image with a mask: both are cropped alike."""

import copy
import dataclasses
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.masks import decode_pair
from simmim_jax.data.views.base import Spec, View
from simmim_jax.data.views.image import ImageView


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedView(View):
    """An image and the class of each of its pixels.

    image, mask: views that crop alike, for the same randomness; that of masks takes the
    nearest pixel. num_classes, ignore_index: see `decode_pair`.
    """

    image: ImageView
    mask: ImageView
    num_classes: int
    ignore_index: int

    @property
    def spec(self) -> dict[str, Spec]:
        """{"image": [h w c] of dtype, "mask": [h w] uint16}."""
        return {
            "image": self.image.spec["image"],
            "mask": Spec(self.mask.size, np.dtype(np.uint16)),
        }

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return the cropped image and mask."""
        decoding = self.image.decoding
        image, mask = decode_pair(
            example,
            decoding,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
        )
        # The same boxes: crops draw from a copy of the generator.
        twin = copy.deepcopy(rng)
        decoded = Decoding(channels=decoding.channels, nodata=decoding.nodata)
        view = dataclasses.replace(self.image, decoding=decoded)
        row = view(example | {"image": image}, rng)
        return {"image": row["image"], "mask": self.mask.crop(mask, twin)[:, :, 0]}
