"""Files of several images each: a file or a folder of them as one set."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources.base import NO_LABEL, Source, SubsetSource
from simmim_jax.data.sources.folders import (
    Files,
    FolderSource,
    check_folder,
    first_file,
    open_folder,
)
from simmim_jax.data.sources.paths import (
    ALL,
    Paths,
    find_split,
    hashed_split,
    is_array,
    is_image,
)
from simmim_jax.data.sources.planes import Planes, reading, with_bands
from simmim_jax.errors import NotFoundError, UserError

# Neighbouring images of a file are alike: those of a single file are split in blocks.
_BLOCK = 8
# Files that a process keeps open.
_OPEN_FILES = 64


class Reader(Protocol):
    """How the images of one kind of file are counted and read."""

    def count(self, path: str) -> int:
        """Return the number of images in a file, by its header."""

    def read(self, path: str, index: int) -> np.ndarray:
        """Return an image [h, w, c]."""


@dataclasses.dataclass(frozen=True)
class PlanesReader:
    """Planes of arrays in files; open(path): returns them, and raises BadImage.

    A process keeps the files open that it has read last.
    """

    open: Callable[[str], Planes]

    def count(self, path: str) -> int:
        """Return the number of planes."""
        return self._planes(path).shape[0]

    def read(self, path: str, index: int) -> np.ndarray:
        """Return a plane [h, w, c]."""
        planes = self._planes(path)
        _, height, width = planes.shape
        with reading(path, "its library"):
            image = planes.read(index, slice(0, height), slice(0, width))
        return with_bands(image, planes.bands, repr(path))

    def _planes(self, path: str) -> Planes:
        status = os.stat(path)
        return _opened(self.open, path, (status.st_size, status.st_mtime_ns))


@functools.lru_cache(_OPEN_FILES)
def _opened(open: Callable[[str], Planes], path: str, stamp: tuple[int, int]) -> Planes:
    del stamp  # a file that was replaced is opened again
    return open(path)


@dataclasses.dataclass(frozen=True)
class StackSource:
    """All images of files that have several each.

    ends int64 [files]: number of images in a file and those before it; labels int32
    [files] or None.
    """

    root: str
    paths: Paths = dataclasses.field(repr=False)
    ends: np.ndarray = dataclasses.field(repr=False)
    reader: Reader
    file_labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    unlabelled: str = ""

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        index = range(len(self))[index]
        file = int(np.searchsorted(self.ends, index, side="right"))
        within = index - (int(self.ends[file - 1]) if file else 0)
        path = os.path.join(self.root, self.paths[file])
        label = NO_LABEL if self.file_labels is None else int(self.file_labels[file])
        name = f"{path}:{within}"
        try:
            image = self.reader.read(path, within)
        except BadImage as error:
            error.filename = name
            raise
        return {"image": image, "label": label, "path": name}

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [n]: each image has the label of its file; None if unlabelled."""
        if self.file_labels is None:
            return None
        return np.repeat(self.file_labels, np.diff(self.ends, prepend=0))


def _stack(found: FolderSource, reader: Reader) -> StackSource:
    """Return the images in the files that a folder has."""
    counts = [_count(os.path.join(found.root, path), reader) for path in found.paths]
    return StackSource(
        found.root,
        found.paths,
        np.cumsum(counts, dtype=np.int64),
        reader,
        found.labels,
        found.class_names,
        found.unlabelled,
    )


def _count(path: str, reader: Reader) -> int:
    try:
        return reader.count(path)
    except (OSError, BadImage):
        return 1  # one bad example


def open_stack(place: str, split: str, reader: Reader, files: Files) -> Source:
    """Open one split of a file or folder.

    All images of a file are in one split, unless it is the only one: then blocks of
    them are.
    """
    if os.path.isdir(place):
        return _stack(open_folder(place, split, files), reader)
    find_split(split, place, lambda name: False)
    try:
        count = reader.count(place)
    except BadImage as error:
        raise UserError(f"dataset={place!r}: {error}") from error
    blocks = np.arange(count) // _BLOCK
    names = [str(block).encode() for block in range(blocks[-1] + 1)]
    if len(names) < 2 and split != ALL:
        raise NotFoundError(
            f"{place!r} has {count} images: expected more than {_BLOCK}, since "
            f"blocks of {_BLOCK} are divided into training and validation. Name a "
            "folder of several files."
        )
    chosen = np.flatnonzero(np.isin(blocks, hashed_split(names, split, place)))
    root, name = os.path.split(place)
    only = FolderSource(root, Paths([os.fsencode(name)]), None, ())
    return SubsetSource(_stack(only, reader), chosen)


def check_stack(place: str, split: str, reader: Reader, files: Files) -> None:
    """Raise the errors of `open_stack`, those of files for the first one alone."""
    path = place
    if os.path.isdir(place):
        path = check_folder(place, split, files)
    else:
        find_split(split, place, lambda name: False)
    _count(path, reader)


def has_files(folder: str, files: Files) -> bool:
    """Whether a folder has such files, and neither images nor arrays."""
    return os.path.isdir(folder) and (
        first_file(folder, lambda n: is_image(n) or is_array(n), skip_forbidden=True)
        is None
        and first_file(folder, files.wanted, skip_forbidden=True) is not None
    )
