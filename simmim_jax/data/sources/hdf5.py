"""HDF5 files: images in one data set [n, h, w] or [n, h, w, c], opened by h5py."""

import functools
import os
from types import ModuleType
from typing import Any

from simmim_jax.data.codecs.base import array_dtype
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.folders import Files
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.groups import choose_images, choose_split, classes_of
from simmim_jax.data.sources.planes import (
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
from simmim_jax.errors import MissingPackageError

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
    with reading(selection.path, "h5py"), open_file(selection.path) as file:
        arrays = data_sets(file)
        prefix, mine = choose_split(arrays, split, place)
        name = choose_images(mine, selection, place, _AXES)
        array_dtype(mine[name].dtype, f"{name!r} of {selection.path!r}")
        axes = _AXES[mine[name].ndim]
        classes = classes_of(arrays, prefix, name, axes, place)
    return open_planes(
        place,
        split,
        functools.partial(_planes, selection.path, prefix + name, axes),
        window=selection.window,
        is_split=bool(prefix),
        classes=classes,
    )


def check_hdf5(place: str, split: str) -> None:
    """Raise the errors of `open_hdf5`, except those of labels."""
    selection = parse_selection(place)
    with reading(selection.path, "h5py"), open_file(selection.path) as file:
        _, mine = choose_split(data_sets(file), split, place)
        name = choose_images(mine, selection, place, _AXES)
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
    """Return an open h5py.File; raises BadImage if it is damaged."""
    h5py = import_h5py()
    with reading(path, "h5py"):
        return h5py.File(path, "r")


def data_sets(file: Any) -> dict[str, Any]:
    """Return all data sets of an open file by their paths."""
    h5py = import_h5py()
    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    with reading(file.filename, "h5py"):
        file.visititems(visit)
    return found


def _planes(path: str, name: str, axes: str) -> ArrayPlanes:
    return ArrayPlanes(open_file(path)[name], axes)


# ---- A folder of files ---------------------------------------------------------------

_FILES = Files(
    lambda name: name.lower().endswith(tuple(map(str.encode, _ENDINGS))),
    _ENDINGS,
    "hdf5 1",
)
_FILE_AXES = {2: "yx", 3: "yxc", 4: "nyxc"}


def is_hdf5_folder(place: str) -> bool:
    """Whether a place is a folder of HDF5 files without images, or such and ":NAME"."""
    return has_files(parse_selection(place).path, _FILES)


def open_hdf5_folder(place: str, split: str) -> Source:
    """Open one split of a folder of HDF5 files, laid out like a folder of images.

    Each file has one image [h, w] or [h, w, c], or several [n, h, w, c].
    raises: NotFoundError without files, UserError for a split that does not exist.
    """
    return open_stack(*_folder(place, split))


def check_hdf5_folder(place: str, split: str) -> None:
    """Raise the errors of `open_hdf5_folder`."""
    check_stack(*_folder(place, split))


def _folder(place: str, split: str) -> tuple[str, str, PlanesReader, Files]:
    selection = parse_selection(place)
    import_h5py()
    reader = PlanesReader(functools.partial(_only_image, selection.names))
    return selection.path, split, reader, _FILES


def _only_image(names: tuple[str, ...], path: str) -> ArrayPlanes:
    with reading(path, "h5py"):
        arrays = data_sets(open_file(path))
        name = choose_images(arrays, Selection(path, names), path, _FILE_AXES)
        return ArrayPlanes(arrays[name], _FILE_AXES[arrays[name].ndim])


FORMAT = Format(
    "a .h5 file, or FILE:NAME of one of its arrays", is_hdf5, check_hdf5, open_hdf5
)
FOLDER = Format(
    "a folder of .h5 files", is_hdf5_folder, check_hdf5_folder, open_hdf5_folder
)
