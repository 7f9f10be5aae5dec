"""Large arrays in files that each process opens itself: whole planes, or windows."""

import contextlib
import dataclasses
import errno
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from simmim_jax.data.codecs.base import (
    MAX_PIXELS,
    BadImage,
    BandArray,
    Raster,
    as_image,
)
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.paths import Classes, hashed_split
from simmim_jax.data.sources.selections import split_selection
from simmim_jax.errors import UserError

# Planes with a longer side are read in windows of `WINDOW` pixels.
MAX_SIDE = 1024
WINDOW = 512
_MAX_COUNT = 10**8
_UNLABELLED = Classes()


@contextlib.contextmanager
def reading(path: str, library: str) -> Iterator[None]:
    """Raise BadImage for what a library raises because a file is damaged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # h5py, Zarr and SciPy raise many types
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system
        text = " ".join(str(error).split())
        raise BadImage(
            "corrupt", f"{path!r} cannot be read by {library} ({text:.200})."
        ) from error


class Planes(Protocol):
    """An open array of planes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of planes, height, width."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the channels, () if they have none."""

    def read(self, plane: int, rows: slice, columns: slice) -> np.ndarray:
        """Return a part of a plane, [h, w] or [h, w, c]."""


class Selection(NamedTuple):
    """What PATH:NAMES@WINDOW#LABEL asks for.

    names: of arrays or variables; window: side of windows [pixels], 0 for none; label:
    what labels stand for.
    """

    path: str
    names: tuple[str, ...] = ()
    window: int = 0
    label: str = ""


def parse_selection(place: str) -> Selection:
    """Return the parts of a place; raises UserError for a window that is no number."""
    path, what = split_selection(place)
    what, _, label = what.partition("#")
    names, at, window = what.partition("@")
    if at and not (window.isdecimal() and int(window) > 0):
        raise UserError(
            f"dataset={place!r} has windows of {window!r}: expected their side in "
            f"pixels, such as @{WINDOW}."
        )
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    return Selection(path, chosen, int(window or 0), label)


@dataclasses.dataclass(frozen=True)
class ArrayPlanes:
    """Planes of an array with NumPy's indexing, such as h5py's or Zarr's.

    axes: a letter for each axis, "y" and "x" of the plane, at most one "c" of channels;
    all others are counted through, the last one fastest.
    """

    array: Any = dataclasses.field(repr=False)
    axes: str
    bands: tuple[str, ...] = ()

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """Number of planes, height, width."""
        size = dict(zip(self.axes, self.array.shape, strict=True))
        return math.prod(self._leading), size["y"], size["x"]

    @functools.cached_property
    def _leading(self) -> tuple[int, ...]:
        sizes = zip(self.axes, self.array.shape, strict=True)
        return tuple(size for axis, size in sizes if axis not in "yxc")

    def read(self, plane: int, rows: slice, columns: slice) -> np.ndarray:
        """Return a part of a plane, [h, w] or [h, w, c]."""
        counted = iter(np.unravel_index(plane, self._leading) if self._leading else ())
        parts = {"y": rows, "x": columns, "c": slice(None)}
        index = tuple(
            parts[axis] if axis in parts else int(next(counted)) for axis in self.axes
        )
        part = np.asarray(self.array[index])
        left = [axis for axis in self.axes if axis in "yxc"]
        return part.transpose([left.index(axis) for axis in "yxc" if axis in left])


@dataclasses.dataclass(frozen=True)
class PlaneSource:
    """Planes of an array, or windows of them that do not overlap.

    open: returns the planes, in each process; shape: of what it returns; window: side
    [pixels], 0 for whole planes; indices int [m]: windows or planes of the split;
    plane_labels int32 [planes] or None; unlabelled: why there are none, if that may be
    a mistake.
    """

    place: str
    open: Callable[[], Planes] = dataclasses.field(repr=False)
    shape: tuple[int, int, int]
    window: int
    indices: np.ndarray = dataclasses.field(repr=False)
    plane_labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    unlabelled: str = ""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        plane, row, column = np.unravel_index(self.indices[index], self._grid)
        rows = self._part(int(row), self.shape[1])
        columns = self._part(int(column), self.shape[2])
        try:
            image = self._planes.read(int(plane), rows, columns)
        except OSError:
            raise
        except Exception as error:  # from h5py, Zarr and its codecs
            what = f"example {index}: {error}"
            raise OSError(errno.EIO, what, self.place) from error
        labels = self.plane_labels
        label = NO_LABEL if labels is None else int(labels[plane])
        image = with_bands(image, self._planes.bands, repr(self.place))
        where = f"{self.place}:{plane}"
        if self.window:
            where += f",{rows.start},{columns.start}"
        return {"image": image, "label": label, "path": where}

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [m], or None if unlabelled."""
        if self.plane_labels is None:
            return None
        return self.plane_labels[np.unravel_index(self.indices, self._grid)[0]]

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes open the file themselves.
        fields = dataclasses.fields(self)
        return PlaneSource, tuple(getattr(self, field.name) for field in fields)

    @functools.cached_property
    def _planes(self) -> Planes:
        return self.open()

    @property
    def _grid(self) -> tuple[int, int, int]:
        return grid_of(self.shape, self.window)

    def _part(self, number: int, side: int) -> slice:
        """Return where a window is along a side; the last one ends with it."""
        if not self.window:
            return slice(0, side)
        start = max(0, min(number * self.window, side - self.window))
        return slice(start, min(start + self.window, side))


def with_bands(image: np.ndarray, bands: tuple[str, ...], where: str) -> np.ndarray:
    """Return an image as [h, w, c] of one of DTYPES, as a BandArray if it has bands.

    where: the file, for messages.
    """
    image = np.ascontiguousarray(as_image(image, where))
    return BandArray.of(Raster(image, bands)) if bands else image


def grid_of(shape: tuple[int, int, int], window: int) -> tuple[int, int, int]:
    """Return the numbers of planes, and of windows down and across each."""
    count, height, width = shape
    return (
        (count, -(-height // window), -(-width // window)) if window else (count, 1, 1)
    )


def open_planes(
    place: str,
    split: str,
    open: Callable[[], Planes],
    *,
    window: int = 0,
    is_split: bool = False,
    classes: Classes = _UNLABELLED,
) -> PlaneSource:
    """Return one split of an array: all of it with `is_split`, else by hash.

    raises: NotFoundError for a single plane or window without splits.
    """
    shape = open().shape
    count = math.prod(grid_of(shape, window))
    if min(shape) < 1 or count > _MAX_COUNT:
        raise UserError(
            f"dataset={place!r} has {shape[0]:,} planes of {shape[2]:,} x {shape[1]:,} "
            f"pixels: expected 1 to {_MAX_COUNT:,} planes or windows."
        )
    if not window and shape[1] * shape[2] > MAX_PIXELS:
        raise UserError(
            f"dataset={place!r} has planes of {shape[2]:,} x {shape[1]:,} pixels: "
            f"expected at most {MAX_PIXELS:,}. Read windows of them: "
            f"{place}{'' if ':' in place else ':'}@{WINDOW}."
        )
    if is_split:
        chosen = np.arange(count)
    else:
        names = [str(i).encode() for i in range(count)]
        chosen = hashed_split(names, split, place)
    return PlaneSource(place, open, shape, window, chosen, *classes)
