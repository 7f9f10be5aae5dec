"""TIFF files of many images each: their pages, or windows of large ones.

The codec, and with it Pillow, is imported when a file is opened.
"""

import dataclasses
import functools
import math
import mmap
import os
import re
from typing import TYPE_CHECKING

import numpy as np

from simmim_jax.data.codecs.base import BadImage, BandArray, Decoding
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.folders import Files
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.planes import MAX_SIDE, WINDOW, parse_selection
from simmim_jax.data.sources.selections import split_selection
from simmim_jax.data.sources.stacks import check_stack, open_stack
from simmim_jax.errors import UserError

if TYPE_CHECKING:
    from simmim_jax.data.codecs.tiff import TiffImages

PAGES = "pages"
_ENDINGS = (".tif", ".tiff")
_SELECTION = re.compile(rf"({PAGES})?(@.*)?")
# Files that a process keeps open.
_OPEN_FILES = 64


def is_tiff(name: bytes) -> bool:
    """Whether a file name has the ending of a TIFF file, in any case."""
    return name.lower().endswith(tuple(ending.encode() for ending in _ENDINGS))


TIFF_FILES = Files(is_tiff, _ENDINGS, "tiff 1")


@dataclasses.dataclass(frozen=True)
class Parts:
    """Images in TIFF files, or windows of them that do not overlap.

    window: side of windows [pixels], 0 for whole images; by_page: as in `TiffImages`.
    """

    window: int
    by_page: bool

    def count(self, path: str) -> int:
        """Return the number of images or windows in a file."""
        return sum(down * across for down, across in self._grids(path))

    def read(self, path: str, index: int) -> np.ndarray:
        """Return an image or a window of one, a BandArray."""
        images = self._images(path)
        if not self.window:
            return BandArray.of(images.read(index))
        grids = self._grids(path)
        image = 0
        while index >= math.prod(grids[image]):
            index -= math.prod(grids[image])
            image += 1
        row, column = np.unravel_index(index, grids[image])
        height, width = images.shape(image)
        rows, columns = self._part(int(row), height), self._part(int(column), width)
        return BandArray.of(images.read(image, rows, columns))

    def longest_side(self, path: str) -> int:
        """Return height or width of the first image in a file."""
        return max(self._images(path).shape(0))

    def _grids(self, path: str) -> list[tuple[int, int]]:
        """Return the numbers of windows down and across each image of a file."""
        images = self._images(path)
        if not self.window:
            return [(1, 1)] * len(images)
        shapes = map(images.shape, range(len(images)))
        return [(-(-h // self.window), -(-w // self.window)) for h, w in shapes]

    def _images(self, path: str) -> "TiffImages":
        status = os.stat(path)
        stamp = status.st_size, status.st_mtime_ns
        return _opened(path, self.by_page, self.window > 0, stamp)

    def _part(self, number: int, side: int) -> slice:
        """Return where a window is along a side; the last one ends with it."""
        start = max(0, min(number * self.window, side - self.window))
        return slice(start, min(start + self.window, side))


@functools.lru_cache(_OPEN_FILES)
def _opened(
    path: str, by_page: bool, in_parts: bool, stamp: tuple[int, int]
) -> "TiffImages":
    from simmim_jax.data.codecs.tiff import TiffImages, read_directories

    if not stamp[0]:
        raise BadImage("empty", "The file is empty.")
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with data:
        directories = read_directories(data)
    return TiffImages(path, directories, Decoding(), by_page=by_page, in_parts=in_parts)


def is_tiff_files(place: str) -> bool:
    """Whether a place is a TIFF file, or one or a folder and ":pages" or ":@WINDOW"."""
    path, what = split_selection(place)
    if os.path.isfile(path):
        return is_tiff(os.fsencode(path))
    return bool(what and _SELECTION.fullmatch(what)) and os.path.isdir(path)


def open_tiff_files(place: str, split: str) -> Source:
    """Open one split of a TIFF file, or of a folder of them; see `open_source`.

    raises: UserError for an unknown selection or split, NotFoundError without files.
    """
    path, reader = _parts(place)
    return open_stack(path, split, reader, TIFF_FILES)


def check_tiff_files(place: str, split: str) -> None:
    """Raise the errors of `open_tiff_files`, those of files for the first one alone."""
    path, reader = _parts(place)
    check_stack(path, split, reader, TIFF_FILES)


def _parts(place: str) -> tuple[str, Parts]:
    """Return the path of a place, and what is read of its files."""
    from simmim_jax.data.codecs.tiff import import_tifffile

    path, what = split_selection(place)
    if what and not _SELECTION.fullmatch(what):
        raise UserError(
            f"dataset={place!r} selects {what!r}: expected '{PAGES}', '@{WINDOW}' for "
            f"windows of {WINDOW} pixels, or '{PAGES}@{WINDOW}'."
        )
    import_tifffile()
    if what:
        selection = parse_selection(place)
        return path, Parts(selection.window, by_page=PAGES in selection.names)
    try:
        is_large = Parts(WINDOW, by_page=True).longest_side(path) > MAX_SIDE
    except BadImage as error:
        raise UserError(f"dataset={place!r}: {error}") from error
    return path, Parts(WINDOW if is_large else 0, by_page=True)


FORMAT = Format(
    "a .tif file of pages, or FILE or FOLDER:pages or :@WINDOW",
    is_tiff_files,
    check_tiff_files,
    open_tiff_files,
)
