"""Folders of DICOM files whose names have no ending, as scanners and archives write."""

import os

from simmim_jax.data.sources.folders import (
    Files,
    FolderSource,
    check_folder,
    first_file,
    open_folder,
)
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import is_array, is_image
from simmim_jax.data.sources.remote import MAX_BYTES

_INDEX = b"dicomdir"  # lists the files of a medium
_PREAMBLE = 128
# Files that are opened to find one of DICOM.
_MAX_OPENED = 16


def is_unnamed(name: bytes) -> bool:
    """Whether a file name has no ending, or a number as in a UID, and may be DICOM."""
    name = os.path.basename(name)
    ending = os.path.splitext(name)[1]
    return name.lower() != _INDEX and (not ending or ending[1:].isdigit())


_FILES = Files(is_unnamed, ("DICOM",), "dicom 1")


def is_dicom_folder(place: str) -> bool:
    """Whether a folder has neither images nor arrays by name, and a file of DICOM."""
    if not os.path.isdir(place) or first_file(
        place, lambda name: is_image(name) or is_array(name), skip_forbidden=True
    ):
        return False
    left = iter(range(_MAX_OPENED))

    def is_found(path: bytes) -> bool:
        if not is_unnamed(path) or next(left, None) is None:
            return False
        try:
            with open(path, "rb") as file:
                return file.read(_PREAMBLE + 4).endswith(b"DICM")
        except OSError:
            return False

    return first_file(place, is_found, skip_forbidden=True) is not None


def open_dicom_folder(
    root: str, split: str, *, max_bytes: int = MAX_BYTES
) -> FolderSource:
    """Open one split of a folder of DICOM files, laid out like a folder of images.

    raises: NotFoundError without files, UserError for a split that does not exist.
    """
    return open_folder(root, split, _FILES, max_bytes=max_bytes)


def _check(root: str, split: str) -> None:
    check_folder(root, split, _FILES)


FORMAT = Format(
    "a folder of DICOM files",
    is_dicom_folder,
    _check,
    open_dicom_folder,
    takes_max_bytes=True,
)
