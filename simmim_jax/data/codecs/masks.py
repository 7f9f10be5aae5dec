"""Masks, the classes of an image's pixels, and whether they fit the image."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import MAX_PIXELS, BadImage, Decoding
from simmim_jax.data.codecs.registry import decode


def decode_pair(
    example: Mapping[str, Any],
    decoding: Decoding,
    *,
    num_classes: int,
    ignore_index: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return image [h w c] and mask, uint16 [h w 1], of an example.

    num_classes: number of classes, 0 for any; ignore_index: value of pixels that count
    as none of them.
    raises: as `decode` and `decode_mask`; BadImage for a mask of another size or with
    other classes.
    """
    image = decode(example["image"], decoding)
    mask = decode_mask(example["mask"], decoding.max_pixels)
    if image.shape[:2] != mask.shape[:2]:
        sizes = [f"{each.shape[0]}x{each.shape[1]}" for each in (image, mask)]
        raise _wrong(f"has {sizes[1]} pixels, its image {sizes[0]}", "equal sizes")
    classes = mask[mask != ignore_index]
    if num_classes and classes.size and classes.max() >= num_classes:
        raise _wrong(
            f"has the value {classes.max()}",
            f"classes below {num_classes}, or {ignore_index} for none, which are "
            "config.data.num_classes and config.data.ignore_index",
        )
    return image, mask


def decode_mask(data: bytes | np.ndarray, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the indices in a mask, uint16 [h w 1].

    data: a file, or an array [h w] or [h w 1] of integers. Palettes are not applied.
    raises: BadImage for colours, and for values that are no indices.
    """
    if isinstance(data, bytes) and data.startswith(b"\xff\xd8"):
        raise _wrong("is a JPEG, which alters values", "a PNG or TIFF file")
    mask = decode(data, Decoding(max_pixels=max_pixels, indices=True))
    if mask.shape[2] != 1 or mask.dtype.kind not in "iu":
        raise _wrong(
            f"is {mask.dtype} {list(mask.shape)}",
            "one channel of whole numbers, the indices of classes. Save it as a PNG in "
            "grey or with a palette",
        )
    if mask.size and (mask.min() < 0 or mask.max() > np.iinfo(np.uint16).max):
        raise _wrong(
            f"has values from {mask.min()} to {mask.max()}", "indices from 0 to 65535"
        )
    return mask.astype(np.uint16)


def _wrong(what: str, expected: str) -> BadImage:
    return BadImage("wrong mask", f"A mask {what}: expected {expected}.")
