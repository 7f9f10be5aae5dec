"""Folders of images with masks of their pixels: images/ and masks/, of equal names.

    images/a/1.jpg   masks/a/1.png   classes.txt

Both folders, or train/ and validation/ with both in each. Endings may differ.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.endings import check_package
from simmim_jax.data.sources.folders import Files, first_file, list_files
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import (
    ARRAY_ENDINGS,
    IMAGE_ENDINGS,
    SPLIT_FOLDERS,
    Paths,
    find_split,
    hashed_split,
    is_array,
    is_image,
    no_images,
)
from simmim_jax.data.sources.remote import MAX_BYTES, read_file
from simmim_jax.errors import UserError

IMAGES, MASKS = "images", "masks"
# Names of the classes, one a line, that of index 0 first.
CLASSES = "classes.txt"


def is_image_or_array(name: bytes) -> bool:
    """Whether a file name has the ending of an image or of a NumPy array."""
    return is_image(name) or is_array(name)


FILES = Files(is_image_or_array, (*IMAGE_ENDINGS, *ARRAY_ENDINGS), "masks 1")


@dataclasses.dataclass(frozen=True)
class MaskedSource:
    """Images under `root`, each with a mask or "" in `masks`; paths are relative to it.

    mask_classes: names by index, () where nobody names them. Examples have "mask", the
    bytes of its file, beside "image"; without a mask they have none.
    """

    root: str
    images: Paths = dataclasses.field(repr=False)
    masks: Paths = dataclasses.field(repr=False)
    mask_classes: tuple[str, ...]
    max_bytes: int = MAX_BYTES

    @property
    def class_names(self) -> tuple[str, ...]:
        """Images as a whole have no classes."""
        return ()

    @property
    def labels(self) -> None:
        """Images as a whole have no labels."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        path = os.path.join(self.root, IMAGES, self.images[index])
        image = read_file(path, self.max_bytes)
        example = {"image": image, "label": NO_LABEL, "path": path}
        if mask := self.masks[index]:
            path = os.path.join(self.root, MASKS, mask)
            example["mask"] = read_file(path, self.max_bytes)
        return example

    @property
    def has_mask(self) -> np.ndarray:
        """bool [n]."""
        return np.array([bool(mask) for mask in self.masks])


def is_masked_folder(place: str) -> bool:
    """Whether a folder, or one of its splits, has images/ and masks/."""
    return any(_has_both(folder) for folder in _folders(place))


def open_masked_folder(
    root: str, split: str, *, max_bytes: int = MAX_BYTES
) -> MaskedSource:
    """Open one split of a folder of images and masks.

    raises: NotFoundError without images or masks, UserError for a split that does not
    exist and for two masks of one image.
    """
    name = _find_split(root, split)
    folder = os.path.join(root, name or "")
    found = []
    for part in (IMAGES, MASKS):
        found.append(list_files(os.path.join(folder, part), FILES))
        if not found[-1]:
            raise no_images(os.path.join(folder, part))
    images, masks = found
    by_stem: dict[bytes, bytes] = {}
    for mask in masks:
        stem = _stem(mask)
        if stem in by_stem:
            pair = f"{os.fsdecode(by_stem[stem])!r} and {os.fsdecode(mask)!r}"
            raise UserError(
                f"{os.path.join(folder, MASKS)!r} has {pair}: expected one mask for an "
                "image. Remove one of them."
            )
        by_stem[stem] = mask
    if name is None:
        images = [images[i] for i in hashed_split(images, split, root)]
    matching = [by_stem.get(_stem(image), b"") for image in images]
    return MaskedSource(
        folder, Paths(images), Paths(matching), _classes(root), max_bytes
    )


def check_masked_folder(root: str, split: str) -> None:
    """Raise the errors of `open_masked_folder` for missing files."""
    folder = os.path.join(root, _find_split(root, split) or "")
    for part in (IMAGES, MASKS):
        first = first_file(os.path.join(folder, part), is_image_or_array)
        if first is None:
            raise no_images(os.path.join(folder, part))
        check_package(first, folder)


def _folders(root: str) -> Iterator[str]:
    yield root
    yield from (os.path.join(root, split) for split in SPLIT_FOLDERS)


def _has_both(folder: str) -> bool:
    return all(os.path.isdir(os.path.join(folder, part)) for part in (IMAGES, MASKS))


def _find_split(root: str, split: str) -> str | None:
    return find_split(split, root, lambda name: _has_both(os.path.join(root, name)))


def _stem(path: bytes) -> bytes:
    return os.path.splitext(path)[0]


def _classes(root: str) -> tuple[str, ...]:
    """Return the names in classes.txt, () where there is none."""
    path = os.path.join(root, CLASSES)
    if not os.path.exists(path):
        return ()
    with open(path, encoding="utf-8") as file:
        return tuple(line.strip() for line in file if line.strip())


FORMAT = Format(
    "a folder with images/ and masks/",
    is_masked_folder,
    check_masked_folder,
    open_masked_folder,
    takes_max_bytes=True,
)
