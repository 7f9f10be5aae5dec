"""NetCDF files: variables are channels, and each step of their other axes an image.

NetCDF 3 is read by SciPy, memory-mapped; NetCDF 4 is HDF5, read by h5py.
"""

import calendar
import dataclasses
import functools
import os
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import array_dtype
from simmim_jax.data.sources import hdf5
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.folders import Files
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import Classes, find_split
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
from simmim_jax.data.sources.stacks import (
    PlanesReader,
    check_stack,
    has_files,
    open_stack,
)
from simmim_jax.errors import UserError, did_you_mean

_ENDINGS = (".nc", ".nc4", ".cdf")
_CLASSIC = b"CDF"
_WIDE = b"CDF\x05"  # which SciPy cannot read
_MONTH = "month"
# What libraries fill unwritten floats with, unless a variable says otherwise.
_DEFAULT_FILL = 9.969209968386869e36
_FILLS = ("_FillValue", "missing_value")
# Attributes that name variables of the bounds of cells.
_BOUNDS = ("bounds", "climatology")
_DAYS = {"second": 1 / 86400, "minute": 1 / 1440, "hour": 1 / 24, "day": 1}
_SINCE = re.compile(
    r"(second|minute|hour|day)s? since (\d+)-(\d+)-(\d+)(?:[t ](\d+):(\d+))?"
)
# Days of a year in calendars of equal years.
_EQUAL_YEARS = {"noleap": 365, "365_day": 365, "all_leap": 366, "366_day": 366}


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of an open file.

    array: with NumPy's indexing; dims: names of its axes; attributes: what values mean.
    """

    array: Any
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class VariablePlanes:
    """Planes of several variables of equal axes, as channels."""

    variables: tuple[Variable, ...]
    bands: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of planes, height, width."""
        return _planes_of(self.variables[0]).shape

    def read(self, plane: int, rows: slice, columns: slice) -> np.ndarray:
        """Return the values of a part of a plane [h, w, c], NaN where missing."""
        parts = [
            values_of(_planes_of(each).read(plane, rows, columns), each.attributes)
            for each in self.variables
        ]
        return np.stack(parts, axis=-1)


def is_netcdf(place: str) -> bool:
    """Whether a place is a NetCDF file, with or without ":VARIABLE,VARIABLE"."""
    path = parse_selection(place).path
    return path.lower().endswith(_ENDINGS) and os.path.isfile(path)


def open_netcdf(place: str, split: str) -> PlaneSource:
    """Open one split of a NetCDF file; see `open_source`.

    The last two axes are an image's. scale_factor and add_offset are applied; values
    that equal _FillValue or missing_value, or are outside of valid_range, valid_min and
    valid_max, become NaN. The label "month" numbers January 0, by the units of the time
    axis.
    raises: UserError for a damaged file, unknown variables, or several that could be
    meant.
    """
    selection = parse_selection(place)
    find_split(split, place, lambda name: False)
    variables = read_variables(selection.path)
    classes = Classes()
    with reading(selection.path, "NumPy"):
        names = _chosen(variables, selection, place)
        planes = _planes_of(variables[names[0]])
        if selection.label:
            months = _months(variables, names[0], selection, place)
            classes = Classes(months, tuple(calendar.month_name)[1:])
    is_large = planes.shape[0] == 1 and max(planes.shape[1:]) > MAX_SIDE
    return open_planes(
        place,
        split,
        functools.partial(_open, selection.path, names),
        window=selection.window or (WINDOW if is_large else 0),
        classes=classes,
    )


def check_netcdf(place: str, split: str) -> None:
    """Raise the errors of `open_netcdf`, except those of labels."""
    selection = parse_selection(place)
    find_split(split, place, lambda name: False)
    _chosen(read_variables(selection.path), selection, place)


# ---- Files ---------------------------------------------------------------------------


def read_variables(path: str) -> dict[str, Variable]:
    """Return the variables of a file, which stays open as long as one is used."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start == _WIDE:
        raise UserError(
            f"{path!r} is a NetCDF 3 file of 64-bit data: expected the classic format, "
            "64-bit offsets or NetCDF 4. Convert it with `nccopy -k nc4`."
        )
    return _classic(path) if start.startswith(_CLASSIC) else _hdf5(path)


def _classic(path: str) -> dict[str, Variable]:
    from scipy.io import netcdf_file  # takes 0.2 s

    # Arrays stay mapped after it.
    warnings.filterwarnings("ignore", "Cannot close a netcdf_file", RuntimeWarning)
    with reading(path, "SciPy"):
        file = netcdf_file(path, "r", mmap=True, maskandscale=False)
        return {
            name: Variable(
                np.asarray(variable.data), variable.dimensions, variable._attributes
            )
            for name, variable in file.variables.items()
        }


def _hdf5(path: str) -> dict[str, Variable]:
    file = hdf5.open_file(path)
    with reading(path, "h5py"):
        return {
            name: Variable(array, _dims(name, array), dict(array.attrs))
            for name, array in hdf5.data_sets(file).items()
        }


def _dims(name: str, array: Any) -> tuple[str, ...]:
    """Return the names of the dimension scales of an HDF5 data set."""
    scales = [list(axis.values()) for axis in array.dims]
    return tuple(
        scale[0].name.lstrip("/") if scale else (name if array.ndim == 1 else f"{i}")
        for i, scale in enumerate(scales)
    )


def _open(path: str, names: tuple[str, ...]) -> VariablePlanes:
    variables = read_variables(path)
    return VariablePlanes(tuple(variables[name] for name in names), names)


def _planes_of(variable: Variable) -> ArrayPlanes:
    return ArrayPlanes(variable.array, "n" * (len(variable.dims) - 2) + "yx")


# ---- Values --------------------------------------------------------------------------


def values_of(stored: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    """Return what stored numbers stand for: integers, or floats with NaN."""
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    is_unsigned = _text(attributes.get("_Unsigned")) == "true"
    if is_unsigned:
        stored = stored.view(f"u{stored.dtype.itemsize}")
    is_float = stored.dtype.kind == "f"

    def as_stored(numbers: Any) -> Any:
        # Those of unsigned numbers are signed, too. Others do not fit into integers
        # where they are meant for none of them.
        return numbers.astype(stored.dtype) if is_float or is_unsigned else numbers

    fills = [np.ravel(attributes[name]) for name in _FILLS if name in attributes]
    if is_float and not fills:
        fills = [np.array([_DEFAULT_FILL])]
    scale = float(np.ravel(attributes.get("scale_factor", 1))[0])
    offset = float(np.ravel(attributes.get("add_offset", 0))[0])
    limits = _limits(attributes)
    if not fills and not limits and (scale, offset) == (1, 0):
        return stored
    values = (stored if is_float else stored.astype(np.float64)) * scale + offset
    missing = np.zeros(stored.shape, bool)
    for fill in fills:
        missing |= np.isin(stored, as_stored(fill))
    for limit, is_beyond in limits:
        # Limits of another kind than what is stored are of the values (NUG).
        is_packed = is_float or limit.dtype.kind != "f"
        missing |= (
            is_beyond(stored, as_stored(limit))
            if is_packed
            else is_beyond(values, limit)
        )
    return np.where(missing, np.nan, values).astype(np.float32)


def _limits(attributes: Mapping[str, Any]) -> list[tuple[Any, Callable[..., Any]]]:
    """Return valid_min and valid_max, with what tells that a number is beyond them."""
    given = [attributes.get(name) for name in ("valid_min", "valid_max")]
    if np.size(both := attributes.get("valid_range", ())) == 2:
        given = list(np.ravel(both))
    return [
        (np.ravel(limit)[0], is_beyond)
        for limit, is_beyond in zip(given, (np.less, np.greater), strict=True)
        if limit is not None and np.asarray(limit).dtype.kind in "iuf"
    ]


def _chosen(
    variables: Mapping[str, Variable], selection: Selection, place: str
) -> tuple[str, ...]:
    """Return the names of the channels: the selected ones, or all if axes are equal."""
    about = {
        _text(each.attributes[name])
        for each in variables.values()
        for name in _BOUNDS
        if name in each.attributes
    }
    fields = {
        name: each
        for name, each in variables.items()
        if len(each.dims) >= 2 and name not in about and each.array.dtype.kind in "iuf"
    }
    listed = ", ".join(f"{name} [{', '.join(v.dims)}]" for name, v in fields.items())
    names = selection.names or tuple(fields)
    for name in names:
        if name not in fields:
            raise UserError(
                f"dataset={place!r} names {name!r}, but it has {listed or 'no fields'}."
                + did_you_mean(name, fields)
            )
    if not names:
        raise UserError(
            f"dataset={place!r} has no variable of two axes or more: expected fields, "
            "such as [time, lat, lon]. Name another file."
        )
    if len({fields[name].dims for name in names}) > 1:
        raise UserError(
            f"dataset={place!r} has variables of different axes: expected equal ones, "
            f"which become channels. Name them behind the path, as in "
            f"{selection.path}:NAME,NAME; it has {listed or 'no fields'}."
        )
    for name in names:
        array_dtype(fields[name].array.dtype, f"{name!r} of {selection.path!r}")
    return names


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# ---- Months --------------------------------------------------------------------------


def _months(
    variables: Mapping[str, Variable], name: str, selection: Selection, place: str
) -> np.ndarray:
    """Return the month of each plane, int32 [planes], January as 0."""
    if selection.label != _MONTH:
        raise UserError(
            f"dataset={place!r} has the label {selection.label!r}: expected #{_MONTH}."
        )
    *dims, _, _ = variables[name].dims
    sizes = variables[name].array.shape[: len(dims)]
    for axis, dim in enumerate(dims):
        if dim not in variables:
            continue
        time = variables[dim]
        units = _text(time.attributes.get("units", "")).strip().lower()
        since = _SINCE.match(units)
        if since:
            kind = _text(time.attributes.get("calendar", "standard")).lower()
            steps = np.asarray(time.array[...], np.float64)
            months = _month_of(steps, since, kind)
            shape = [-1 if i == axis else 1 for i in range(len(dims))]
            return np.broadcast_to(months.reshape(shape), sizes).ravel()
    raise UserError(
        f"dataset={place!r} has no axis of time: expected units such as 'hours since "
        f"1980-01-01' of one of {', '.join(dims) or 'its axes'} for #{_MONTH}."
    )


def _month_of(steps: np.ndarray, since: re.Match[str], kind: str) -> np.ndarray:
    """Return the months of points in time, int32, January as 0.

    kind: name of the calendar. Dates before 1582 are Gregorian, too.
    """
    unit, *date = since.groups(default="0")
    year, month, day, hour, minute = map(int, date)
    days = steps * _DAYS[unit]
    if kind == "360_day":
        start = 30 * (month - 1) + day - 1 + hour / 24 + minute / 1440
        return ((start + days) % 360 // 30).astype(np.int32)
    if kind in _EQUAL_YEARS:
        length = _EQUAL_YEARS[kind]
        lengths = [
            calendar.monthrange(2000 if length == 366 else 2001, m)[1]
            for m in range(1, 13)
        ]
        ends = np.cumsum(lengths)
        start = (
            ends[month - 1] - lengths[month - 1] + day - 1 + hour / 24 + minute / 1440
        )
        return np.searchsorted(ends, (start + days) % length, "right").astype(np.int32)
    first = np.datetime64(f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:00")
    times = first + np.round(days * 86400).astype("timedelta64[s]")
    return (times.astype("datetime64[M]").astype(int) % 12).astype(np.int32)


# ---- A folder of files ---------------------------------------------------------------

_FILES = Files(
    lambda name: name.lower().endswith(tuple(map(str.encode, _ENDINGS))),
    _ENDINGS,
    "netcdf 1",
)


def is_netcdf_folder(place: str) -> bool:
    """Whether a place is a folder of NetCDF files without images, or such and names."""
    return has_files(parse_selection(place).path, _FILES)


def open_netcdf_folder(place: str, split: str) -> Source:
    """Open one split of a folder of NetCDF files, laid out like a folder of images.

    raises: NotFoundError without files, UserError for a split that does not exist, or a
    selection of windows or labels.
    """
    return open_stack(*_folder(place, split))


def check_netcdf_folder(place: str, split: str) -> None:
    """Raise the errors of `open_netcdf_folder`."""
    check_stack(*_folder(place, split))


def _folder(place: str, split: str) -> tuple[str, str, PlanesReader, Files]:
    selection = parse_selection(place)
    if selection.window or selection.label:
        raise UserError(
            f"dataset={place!r} is a folder: expected names of variables behind the "
            "colon. '@' and '#' select of single files."
        )
    reader = PlanesReader(functools.partial(_fields, selection.names))
    return selection.path, split, reader, _FILES


def _fields(names: tuple[str, ...], path: str) -> VariablePlanes:
    chosen = _chosen(read_variables(path), Selection(path, names), path)
    return _open(path, chosen)


FOLDER = Format(
    "a folder of .nc files", is_netcdf_folder, check_netcdf_folder, open_netcdf_folder
)
FORMAT = Format(
    "a NetCDF file, or FILE:VARIABLE,VARIABLE", is_netcdf, check_netcdf, open_netcdf
)
