"""Zarr 2 and 3 and OME-Zarr: stacks of images, or windows of large arrays."""

import base64
import dataclasses
import functools
import os
import struct
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import MAX_PIXELS, array_dtype
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.groups import (
    check_chunks,
    choose_images,
    choose_split,
    classes_of,
)
from simmim_jax.data.sources.netcdf import values_of
from simmim_jax.data.sources.paths import Classes
from simmim_jax.data.sources.planes import (
    MAX_SIDE,
    WINDOW,
    ArrayPlanes,
    PlaneSource,
    Selection,
    open_planes,
    parse_selection,
    reading,
)
from simmim_jax.errors import MissingPackageError, UserError

_AXES = {2: "yx", 3: "nyx", 4: "nyxc", 5: "tczyx"}
_METADATA = ("zarr.json", ".zarray", ".zgroup")
# Names of axes, in lower case.
_NAMES = {
    **dict.fromkeys(("y", "lat", "latitude", "row", "height", "h"), "y"),
    **dict.fromkeys(("x", "lon", "longitude", "column", "col", "width", "w"), "x"),
    **dict.fromkeys(("c", "channel", "channels", "band", "bands"), "c"),
}
# Names of axes as xarray has them in version 2.
_DIMENSIONS = "_ARRAY_DIMENSIONS"
# Attributes with which stored numbers are not the values.
_PACKED = {
    *("scale_factor", "add_offset", "_Unsigned", "_FillValue", "missing_value"),
    *("valid_range", "valid_min", "valid_max"),
}
# Large planes of which there are at most as many are channels.
_MAX_CHANNELS = 64


def is_zarr(place: str) -> bool:
    """Whether a place is a folder of a Zarr array or group, with or without ":NAME"."""
    path = parse_selection(place).path
    return any(os.path.isfile(os.path.join(path, name)) for name in _METADATA)


def open_zarr(place: str, split: str) -> PlaneSource:
    """Open one split of a Zarr array, or of one in a group; see `open_source`.

    Axes are those that OME-Zarr, Zarr 3 or xarray name. Without names, [y, x] is one
    plane, [n, y, x] many and [n, y, x, c] many of several channels; of planes with a
    side of more than 1024 pixels, at most 64 of them are channels. Planes that large
    are read in windows of 512 pixels, or of those behind "@". Chunks are not cached.
    Scales, offsets and missing values that xarray stores are those of `open_netcdf`.
    raises: UserError for a damaged store, or one without or with several images.
    """
    with reading(place, "zarr"):
        selection, prefix, name, arrays, axes = _chosen(place, split)
        planes = ArrayPlanes(arrays[prefix + name], axes)
        classes = Classes()
        if axes[0] == "n":
            classes = classes_of(arrays, prefix, name, axes, place)
        window = selection.window
        if not window and max(planes.shape[1:]) > MAX_SIDE and axes != "nyxc":
            window = WINDOW
        largest = {
            "y": window or MAX_PIXELS,
            "x": window or MAX_PIXELS,
            "c": MAX_PIXELS,
        }
        part = [
            min(size, largest.get(axis, 1))
            for axis, size in zip(axes, planes.array.shape, strict=True)
        ]
        check_chunks(planes.array, part, f"{name!r} of {selection.path!r}")
    return open_planes(
        place,
        split,
        functools.partial(_planes, selection.path, prefix + name, axes),
        window=window,
        is_split=bool(prefix),
        classes=classes,
    )


def check_zarr(place: str, split: str) -> None:
    """Raise the errors of `open_zarr`, except those of labels."""
    with reading(place, "zarr"):
        _chosen(place, split)


def import_zarr() -> ModuleType:
    """Return zarr."""
    try:
        import zarr
    except ImportError as error:
        raise MissingPackageError(
            "Zarr arrays need the package zarr: pip install 'simmim_jax[arrays]'."
        ) from error
    return zarr


def _open(path: str) -> Any:
    """Return the array or group at a path; raises BadImage if it is damaged."""
    zarr = import_zarr()
    with reading(path, "zarr"):
        return zarr.open(path, mode="r")


def _chosen(place: str, split: str) -> tuple[Selection, str, str, dict[str, Any], str]:
    """Return the selection, the group of the split, the name, all arrays and axes."""
    zarr = import_zarr()
    selection = parse_selection(place)
    opened = _open(selection.path)
    if isinstance(opened, zarr.Array):
        arrays, scales = {"": opened}, []
    else:
        arrays = {
            name: item
            for name, item in opened.members(max_depth=None)
            if isinstance(item, zarr.Array)
        }
        scales = _multiscales(opened.attrs)
    prefix, mine = choose_split(arrays, split, place)
    if scales and not selection.names:
        selection = selection._replace(names=(scales[0]["datasets"][0]["path"],))
    if isinstance(opened, zarr.Array):
        name = ""
    else:
        name = choose_images(mine, selection, place, _AXES)
    array = mine[name]
    array_dtype(array.dtype, f"{name!r} of {selection.path!r}")
    return selection, prefix, name, arrays, _axes(array, name, scales, place)


def _multiscales(attributes: Mapping[str, Any]) -> list[Any]:
    """Return the multiscales of OME-Zarr 0.4 or 0.5, [] for other groups."""
    return list(attributes.get("ome", attributes).get("multiscales", []))


def _axes(array: Any, name: str, scales: Sequence[Any], place: str) -> str:
    """Return a letter for each axis of an array; see `ArrayPlanes`."""
    names: Sequence[Any] = ()
    for scale in scales:
        if name in [each["path"] for each in scale["datasets"]]:
            # Version 0.3 has strings.
            given = scale.get("axes", ())
            names = [a["name"] if isinstance(a, dict) else a for a in given]
    names = names or getattr(array.metadata, "dimension_names", None) or ()
    names = names or array.attrs.get(_DIMENSIONS, ())
    if len(names) == len(array.shape):
        letters = [_NAMES.get(str(n).lower(), "n") for n in names]
        if letters.count("y") == letters.count("x") == 1 and letters.count("c") < 2:
            return "".join(letters)
    return _unnamed(array.shape, place)


def _unnamed(shape: tuple[int, ...], place: str) -> str:
    if len(shape) == 3:
        is_large = max(shape[1:]) > MAX_SIDE and shape[0] <= _MAX_CHANNELS
        return "cyx" if is_large else "nyx"
    if len(shape) not in (2, 4):
        raise UserError(
            f"dataset={place!r} has an array of shape {list(shape)} without names for "
            "its axes: expected [y, x], [n, y, x] or [n, y, x, c]. Write it with "
            "dimension_names (Zarr 3), or select another one with PATH:NAME."
        )
    return _AXES[len(shape)]


def _planes(path: str, name: str, axes: str) -> ArrayPlanes:
    opened = _open(path)
    array = opened[name] if name else opened
    labels = _labels(opened.attrs, array, axes) if name else ()
    return ArrayPlanes(_decoded(array), axes, labels)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An array of stored numbers, which attributes of CF turn into values."""

    array: Any
    attributes: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.array.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        return values_of(np.asarray(self.array[index]), self.attributes)


def _decoded(array: Any) -> Any:
    """Return an array whose attributes are those of CF as one of values."""
    attributes = dict(array.attrs)
    if _DIMENSIONS in attributes and array.fill_value is not None:
        # Where xarray keeps the attribute in version 2.
        attributes.setdefault("_FillValue", array.fill_value)
    if isinstance(fill := attributes.get("_FillValue"), str):  # of floats in version 3
        (attributes["_FillValue"],) = struct.unpack("<d", base64.b64decode(fill))
    return Decoded(array, attributes) if _PACKED & attributes.keys() else array


def _labels(attributes: Mapping[str, Any], array: Any, axes: str) -> tuple[str, ...]:
    """Return the names of channels that OME-Zarr gives, () unless each has its own."""
    channels = attributes.get("ome", attributes).get("omero", {}).get("channels", [])
    names = tuple(str(each.get("label", "")) for each in channels)
    count = array.shape[axes.index("c")] if "c" in axes else 1
    is_complete = len(set(names)) == count == len(names) and all(names)
    return names if is_complete else ()


FORMAT = Format(
    "a Zarr array, or GROUP:NAME of one in a group", is_zarr, check_zarr, open_zarr
)
