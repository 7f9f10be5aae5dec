"""Files of many images each: slices of NIfTI volumes, frames of DICOM files."""

import dataclasses
import functools
import os

import numpy as np

from simmim_jax.data.codecs.base import BandArray, Decoding
from simmim_jax.data.codecs.dicom import count_frames, import_pydicom, read_frame
from simmim_jax.data.codecs.nifti import (
    AXES,
    Volume,
    count_slices,
    import_nibabel,
    open_volume,
    slice_of,
)
from simmim_jax.data.sources import cache
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.folders import Files
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.selections import split_selection
from simmim_jax.data.sources.stacks import check_stack, has_files, open_stack
from simmim_jax.errors import UserError, did_you_mean

_VOLUME_ENDINGS = (".nii", ".nii.gz")
_FRAME_ENDINGS = (".dcm",)
FRAMES = "frames"
DEFAULT_AXIS = "axial"
# Volumes that a process keeps open.
_OPEN_VOLUMES = 16


@dataclasses.dataclass(frozen=True)
class Slices:
    """Slices of NIfTI volumes across one axis."""

    axis: str

    def count(self, path: str) -> int:
        """Return the number of slices."""
        return count_slices(path, self.axis)

    def read(self, path: str, index: int) -> np.ndarray:
        """Return the values of a slice."""
        status = os.stat(path)
        stamp = status.st_size, status.st_mtime_ns
        return slice_of(_volume(path, self.axis, stamp), index, repr(path))


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames of DICOM files."""

    def count(self, path: str) -> int:
        """Return the number of frames."""
        return count_frames(path)

    def read(self, path: str, index: int) -> np.ndarray:
        """Return the values of a frame, a BandArray with nodata as in the file."""
        return BandArray.of(read_frame(path, index, Decoding()))


@functools.lru_cache(_OPEN_VOLUMES)
def _volume(path: str, axis: str, stamp: tuple[int, int]) -> Volume:
    """Open a volume; a compressed one is unpacked once, into the cache.

    There the pixels of a slice follow each other, whichever axis it is across.
    stamp: size and modification time of the file.
    """
    key = f"volume 1 {os.path.realpath(path)} {axis} {stamp}"
    return open_volume(path, axis, functools.partial(cache.mapped, key))


# ---- NIfTI ---------------------------------------------------------------------------


def is_volume(name: bytes) -> bool:
    """Whether a file name has the ending of a NIfTI volume, in any case."""
    return name.lower().endswith(tuple(ending.encode() for ending in _VOLUME_ENDINGS))


VOLUME_FILES = Files(is_volume, _VOLUME_ENDINGS, "volumes 1")


def is_volumes(place: str) -> bool:
    """Whether a place is a .nii or .nii.gz file or a folder of them, with or without
    an axis behind it.
    """
    path, _ = split_selection(place)
    if os.path.isfile(path):
        return is_volume(os.fsencode(path))
    return has_files(path, VOLUME_FILES)


def open_volumes(place: str, split: str) -> Source:
    """Open one split of a NIfTI file or folder of them; see `open_source`.

    raises: UserError for an unknown axis or split, NotFoundError without volumes.
    """
    path, reader = _slices(place)
    return open_stack(path, split, reader, VOLUME_FILES)


def check_volumes(place: str, split: str) -> None:
    """Raise the errors of `open_volumes`, those of files for the first one alone."""
    path, reader = _slices(place)
    check_stack(path, split, reader, VOLUME_FILES)


def _slices(place: str) -> tuple[str, Slices]:
    path, what = split_selection(place)
    axis = dict(zip("012", AXES, strict=True)).get(what, what or DEFAULT_AXIS)
    if axis not in AXES:
        raise UserError(
            f"dataset={place!r} names the axis {what!r}: expected "
            f"{', '.join(AXES)}, or 0, 1, 2 in this order." + did_you_mean(axis, AXES)
        )
    import_nibabel()
    return path, Slices(axis)


# ---- DICOM ---------------------------------------------------------------------------

FRAME_FILES = Files(
    lambda name: name.lower().endswith(b".dcm"), _FRAME_ENDINGS, "frames 1"
)


def is_frames(place: str) -> bool:
    """Whether a place is a .dcm file, or such a file or a folder and ":frames"."""
    path, what = split_selection(place)
    if os.path.isfile(path):
        return FRAME_FILES.wanted(os.fsencode(path))
    return what == FRAMES and os.path.isdir(path)


def open_frames(place: str, split: str) -> Source:
    """Open one split of a DICOM file, or of a folder of them, frame by frame.

    raises: UserError for an unknown selection or split, NotFoundError without files.
    """
    return open_stack(_frames_path(place), split, Frames(), FRAME_FILES)


def check_frames(place: str, split: str) -> None:
    """Raise the errors of `open_frames`, those of files for the first one alone."""
    check_stack(_frames_path(place), split, Frames(), FRAME_FILES)


def _frames_path(place: str) -> str:
    path, what = split_selection(place)
    if what not in ("", FRAMES):
        raise UserError(
            f"dataset={place!r} selects {what!r}: expected {FRAMES!r}, or nothing, of "
            "a DICOM file."
        )
    import_pydicom()
    return path


VOLUMES = Format(
    "a .nii or .nii.gz volume or a folder of them, optionally with :AXIS",
    is_volumes,
    check_volumes,
    open_volumes,
)
DICOM_FRAMES = Format(
    "a .dcm file of frames, or FOLDER:frames",
    is_frames,
    check_frames,
    open_frames,
)
