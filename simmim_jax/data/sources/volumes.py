"""Files of many images each: slices of NIfTI volumes, frames of DICOM files."""

import dataclasses
import functools
import os
from typing import Any, Protocol

import numpy as np

from simmim_jax.data.codecs.base import BadImage, Decoding
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
from simmim_jax.data.sources.base import NO_LABEL, Source, SubsetSource
from simmim_jax.data.sources.folders import (
    Files,
    FolderSource,
    check_folder,
    first_file,
    open_folder,
)
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import (
    Paths,
    find_split,
    hashed_split,
    is_array,
    is_image,
)
from simmim_jax.data.sources.selections import split_selection
from simmim_jax.errors import NotFoundError, UserError, did_you_mean

_VOLUME_ENDINGS = (".nii", ".nii.gz")
_FRAME_ENDINGS = (".dcm",)
FRAMES = "frames"
DEFAULT_AXIS = "axial"
# Volumes that a process keeps open.
_OPEN_VOLUMES = 16
# Neighbouring slices are alike: those of a single file are split in blocks.
_BLOCK = 8


class Reader(Protocol):
    """How the images of one kind of file are counted and read."""

    def count(self, path: str) -> int:
        """Return the number of images in a file, by its header."""

    def read(self, path: str, index: int) -> np.ndarray:
        """Return an image [h, w, c]."""


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
        """Return the values of a frame, with nodata as in the file."""
        return read_frame(path, index, Decoding()).pixels


@functools.lru_cache(_OPEN_VOLUMES)
def _volume(path: str, axis: str, stamp: tuple[int, int]) -> Volume:
    """Open a volume; a compressed one is unpacked once, into the cache.

    There the pixels of a slice follow each other, whichever axis it is across.
    stamp: size and modification time of the file.
    """
    key = f"volume 1 {os.path.realpath(path)} {axis} {stamp}"
    return open_volume(path, axis, functools.partial(cache.mapped, key))


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


def _open(place: str, split: str, reader: Reader, files: Files) -> Source:
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
    if len(names) < 2:
        raise NotFoundError(
            f"{place!r} has {count} images: expected more than {_BLOCK}, since "
            f"blocks of {_BLOCK} are divided into training and validation. Name a "
            "folder of several files."
        )
    chosen = np.flatnonzero(np.isin(blocks, hashed_split(names, split, place)))
    root, name = os.path.split(place)
    only = FolderSource(root, Paths([os.fsencode(name)]), None, ())
    return SubsetSource(_stack(only, reader), chosen)


def _check(place: str, split: str, reader: Reader, files: Files) -> None:
    """Raise the errors of `_open`, those of files for the first one alone."""
    path = place
    if os.path.isdir(place):
        path = check_folder(place, split, files)
    else:
        find_split(split, place, lambda name: False)
    _count(path, reader)


def _has(folder: str, files: Files) -> bool:
    """Whether a folder has such files, and neither images nor arrays."""
    return os.path.isdir(folder) and (
        first_file(folder, lambda n: is_image(n) or is_array(n), skip_forbidden=True)
        is None
        and first_file(folder, files.wanted, skip_forbidden=True) is not None
    )


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
    return _has(path, VOLUME_FILES)


def open_volumes(place: str, split: str) -> Source:
    """Open one split of a NIfTI file or folder of them; see `open_source`.

    raises: UserError for an unknown axis or split, NotFoundError without volumes.
    """
    path, reader = _slices(place)
    return _open(path, split, reader, VOLUME_FILES)


def check_volumes(place: str, split: str) -> None:
    """Raise the errors of `open_volumes`, those of files for the first one alone."""
    path, reader = _slices(place)
    _check(path, split, reader, VOLUME_FILES)


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
    return _open(_frames_path(place), split, Frames(), FRAME_FILES)


def check_frames(place: str, split: str) -> None:
    """Raise the errors of `open_frames`, those of files for the first one alone."""
    _check(_frames_path(place), split, Frames(), FRAME_FILES)


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
