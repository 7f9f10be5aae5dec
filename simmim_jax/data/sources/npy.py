"""NumPy arrays: folders of .npy files with one image each, or one file with all."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import BadImage, array_dtype, native
from simmim_jax.data.codecs.npy import Header, decode_array, read_header
from simmim_jax.data.sources.base import NO_LABEL, check_labels, numbered_classes
from simmim_jax.data.sources.folders import (
    Files,
    FolderSource,
    check_folder,
    first_file,
    open_folder,
)
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import (
    ARRAY_ENDINGS,
    find_split,
    hashed_split,
    is_array,
    is_image,
)
from simmim_jax.data.sources.remote import MAX_BYTES, is_url
from simmim_jax.errors import UserError

ARRAY_FILES = Files(is_array, ARRAY_ENDINGS, "arrays 1")
_LABELS_ENDING = "_labels.npy"


# ---- A folder of arrays --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ArrayFolderSource(FolderSource):
    """Files of one array [h, w] or [h, w, c] each; examples are [h, w, c]."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        example = super().__getitem__(index)
        try:
            image = decode_array(example["image"], repr(example["path"]))
        except BadImage as error:
            error.filename = example["path"]
            raise
        return {**example, "image": image}


def is_array_folder(place: str) -> bool:
    """Whether a folder has .npy files and no images, at any depth."""
    return (
        os.path.isdir(place)
        and first_file(place, is_image, skip_forbidden=True) is None
        and first_file(place, is_array, skip_forbidden=True) is not None
    )


def open_array_folder(
    root: str, split: str, *, max_bytes: int = MAX_BYTES
) -> ArrayFolderSource:
    """Open one split of a folder of .npy files, laid out like a folder of images.

    raises: NotFoundError without arrays, UserError for a split that does not exist.
    """
    found = open_folder(root, split, ARRAY_FILES, max_bytes=max_bytes)
    return ArrayFolderSource(
        found.root,
        found.paths,
        found.labels,
        found.class_names,
        found.unlabelled,
        found.max_bytes,
    )


def check_array_folder(root: str, split: str) -> None:
    """Raise the errors of `open_array_folder`, and those of one array's dtype."""
    path = check_folder(root, split, ARRAY_FILES)
    try:
        with open(path, "rb") as file:
            header = read_header(file)
    except (OSError, BadImage):
        return  # one bad example
    array_dtype(header.dtype, repr(path))


# ---- One file ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ArrayFileSource:
    """Images of one memory-mapped .npy file [n, h, w, c].

    indices int [m]: the images of the split; labels int32 [m] or None.
    """

    file: str
    indices: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        image = self._images[self.indices[index]]
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        image = np.ascontiguousarray(native(image, repr(self.file)))
        return {"image": image, "label": label}

    @functools.cached_property
    def _images(self) -> np.ndarray:
        # As a plain array: indexing np.memmap takes 10 times as long.
        return np.asarray(np.load(self.file, mmap_mode="r", allow_pickle=False))

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes map the file themselves.
        fields = dataclasses.fields(self)
        return ArrayFileSource, tuple(getattr(self, field.name) for field in fields)


def is_array_file(place: str) -> bool:
    """Whether a place is a .npy file, here or at a URL."""
    return is_array(os.fsencode(place)) and (is_url(place) or os.path.isfile(place))


def open_array_file(file: str, split: str) -> ArrayFileSource:
    """Open one split of a .npy file [n, h, w, c].

    Labels int [n] come from the neighbouring NAME_labels.npy, if it exists. Splits are
    made by the hash of an image's index.
    raises: UserError if a file is damaged or has another shape or dtype, or for a split
    that does not exist.
    """
    header = _check_header(file, split)
    num_images = header.shape[0]
    labels = _read_labels(file, num_images)
    class_names = () if labels is None else numbered_classes(labels)
    paths = [str(index).encode() for index in range(num_images)]
    chosen = hashed_split(paths, split, file)
    return ArrayFileSource(
        file, chosen, None if labels is None else labels[chosen], class_names
    )


def check_array_file(file: str, split: str) -> None:
    """Raise the errors of `open_array_file`, except those of the labels' values."""
    _check_header(file, split)


def _check_header(file: str, split: str) -> Header:
    if is_url(file):
        raise UserError(
            f"dataset={file!r} is an array at a URL: expected a local file, which can "
            "be memory-mapped. Copy it here, or mount the bucket (Cloud Storage: "
            "gcsfuse)."
        )
    find_split(split, file, lambda name: False)
    try:
        with open(file, "rb") as opened:
            header = read_header(opened)
    except BadImage as error:
        raise UserError(f"dataset={file!r}: {error}") from error
    array_dtype(header.dtype, repr(file))
    shape = ", ".join(map(str, header.shape))
    if len(header.shape) != 4 or min(header.shape) < 1:
        raise UserError(
            f"{file!r} has shape [{shape}]: expected images [n, h, w, c]. Add the "
            "missing axis (images[..., None] for gray images), or name the folder if "
            "each of its files is one image."
        )
    size = os.path.getsize(file)
    if size < header.num_bytes:
        raise UserError(
            f"{file!r} is truncated: it has {size:,} bytes, expected "
            f"{header.num_bytes:,} for shape [{shape}]. Copy it again."
        )
    return header


def _read_labels(file: str, num_images: int) -> np.ndarray | None:
    path = os.path.splitext(file)[0] + _LABELS_ENDING
    try:
        labels = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy evaluates a literal: damage raises many types
        raise UserError(
            f"{path!r} cannot be read ({error!s:.100}): expected integers "
            f"[{num_images}]. "
            "Write it again with np.save."
        ) from error
    return check_labels(labels, num_images, repr(path))


ARRAY_FOLDER = Format(
    "a folder of .npy arrays",
    is_array_folder,
    check_array_folder,
    open_array_folder,
    takes_max_bytes=True,
)
ARRAY_FILE = Format(
    "a .npy array [n, h, w, c]", is_array_file, check_array_file, open_array_file
)
