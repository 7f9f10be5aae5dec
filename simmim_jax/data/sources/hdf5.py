"""HDF5 files: images in one data set [n, h, w] or [n, h, w, c], opened by h5py."""

import functools
import os
from types import ModuleType
from typing import Any

from simmim_jax.data.codecs.base import array_dtype
from simmim_jax.data.sources.base import numbered_classes
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.groups import choose_images, choose_split, labels_of
from simmim_jax.data.sources.planes import (
    ArrayPlanes,
    PlaneSource,
    open_planes,
    parse_selection,
)
from simmim_jax.errors import MissingPackageError, UserError

_ENDINGS = (".h5", ".hdf5")
# By the number of axes of a data set.
_AXES = {3: "nyx", 4: "nyxc"}


def is_hdf5(place: str) -> bool:
    """Whether a place is an HDF5 file, with or without ":NAME"."""
    path = parse_selection(place).path
    return path.lower().endswith(_ENDINGS) and os.path.isfile(path)


def open_hdf5(place: str, split: str) -> PlaneSource:
    """Open one split of an HDF5 file; see `open_source`.

    A process keeps the file open, with HDF5's own cache of chunks (8 MiB a data set in
    HDF5 2.0, 1 MiB before): chunks of one image each are read fastest.
    raises: UserError for a damaged file, or one without or with several sets of images.
    """
    selection = parse_selection(place)
    with open_file(selection.path) as file:
        arrays = data_sets(file)
        prefix, mine = choose_split(arrays, split, place)
        name = choose_images(mine, selection, place, tuple(_AXES))
        array_dtype(mine[name].dtype, f"{name!r} of {selection.path!r}")
        axes = _AXES[mine[name].ndim]
        labels = labels_of(mine, name, len(mine[name]), place)
    return open_planes(
        place,
        split,
        functools.partial(_planes, selection.path, prefix + name, axes),
        window=selection.window,
        is_split=bool(prefix),
        labels=labels,
        class_names=() if labels is None else numbered_classes(labels),
    )


def check_hdf5(place: str, split: str) -> None:
    """Raise the errors of `open_hdf5`, except those of labels."""
    selection = parse_selection(place)
    with open_file(selection.path) as file:
        _, mine = choose_split(data_sets(file), split, place)
        name = choose_images(mine, selection, place, tuple(_AXES))
        array_dtype(mine[name].dtype, f"{name!r} of {selection.path!r}")


def import_h5py() -> ModuleType:
    """Return h5py."""
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError(
            "HDF5 files need the package h5py: pip install 'simmim_jax[arrays]'."
        ) from error
    return h5py


def open_file(path: str) -> Any:
    """Return an open h5py.File; raises UserError if it is damaged."""
    h5py = import_h5py()
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if error.errno is not None:  # of the file system
            raise
        raise UserError(
            f"{path!r} cannot be opened by h5py ({error!s:.200}): expected an HDF5 "
            "file. Copy or write it again."
        ) from error


def data_sets(file: Any) -> dict[str, Any]:
    """Return all data sets of an open file by their paths."""
    h5py = import_h5py()
    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    file.visititems(visit)
    return found


def _planes(path: str, name: str, axes: str) -> ArrayPlanes:
    return ArrayPlanes(open_file(path)[name], axes)


FORMAT = Format(
    "a .h5 file, or FILE:NAME of one of its arrays", is_hdf5, check_hdf5, open_hdf5
)
