"""NumPy's .npz files: an image or a stack of them, maybe with labels and splits.

Arrays that are stored uncompressed are memory-mapped. A compressed stack is unpacked
once, into the cache; a compressed image whenever it is read.
"""

import dataclasses
import functools
import os
import re
import struct
import zipfile
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import BadImage, array_dtype, as_image
from simmim_jax.data.codecs.npy import Header, read_header
from simmim_jax.data.sources import cache
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.folders import Files
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.groups import (
    choose_images,
    choose_split,
    classes_of,
    targets_of,
)
from simmim_jax.data.sources.paths import Classes
from simmim_jax.data.sources.planes import (
    ArrayPlanes,
    PlaneSource,
    Selection,
    open_planes,
    parse_selection,
    reading,
)
from simmim_jax.data.sources.remote import MAX_BYTES
from simmim_jax.data.sources.stacks import check_stack, has_files, open_stack
from simmim_jax.data.sources.targets import TargetSource, Wanted

_ENDINGS = (".npz",)
# By the number of axes of a file that is a data set, and of one of a folder.
_AXES = {3: "nyx", 4: "nyxc"}
_FILE_AXES = {2: "yx", 3: "yxc", 4: "nyxc"}
_IMAGES = "images"
# Other names of what counts as "images" and "labels".
_MEANINGS = {"image": _IMAGES, "x": _IMAGES, "y": "labels"}
_SPLITS = "train|validation|val|test"
# "train_images", as MedMNIST has it, and "x_train", as Keras does.
_NAME = re.compile(
    rf"((?P<before>{_SPLITS})_)?(?P<what>.+?)(_(?P<after>{_SPLITS}))?", re.DOTALL
)
# Of a compressed stack, which takes that much memory once [bytes].
_MAX_UNPACKED = 2**33
# Of a file in a .zip: its header, up to the lengths of name and extra field.
_LOCAL = struct.Struct("<26xHH")
# Files that a process keeps open.
_OPEN_FILES = 64


@dataclasses.dataclass(frozen=True)
class Member:
    """An array of an .npz file; name: of the file within; start: of that [bytes]."""

    path: str
    name: str
    header: Header
    start: int
    is_stored: bool

    chunks = None  # as HDF5 says of an array in one piece

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.header.shape

    @property
    def dtype(self) -> np.dtype:
        """As stored."""
        return self.header.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read(_MAX_UNPACKED)[index]

    def read(self, max_bytes: int) -> np.ndarray:
        """Return the array, in memory; raises BadImage if it is damaged or too large.

        The checksum of the .zip is verified.
        """
        if self.header.num_bytes > max_bytes:
            raise BadImage(
                "too large",
                f"{self.name} has {self.header.num_bytes:,} bytes: expected at most "
                f"{max_bytes:,}. Save it as .npy, which is memory-mapped.",
            )
        array_dtype(self.dtype, self.name)
        with (
            reading(self.path, "NumPy"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.name) as file,
        ):
            return np.lib.format.read_array(file, allow_pickle=False)

    def mapped(self) -> np.ndarray:
        """Return the array, memory-mapped in place or in the cache."""
        array_dtype(self.dtype, self.name)
        if self.is_stored:
            return np.memmap(
                self.path,
                self.dtype,
                "r",
                self.start + self.header.offset,
                self.shape,
                "F" if self.header.is_fortran else "C",
            )
        key = f"npz 1 {os.path.realpath(self.path)} {self.name} {_stamp(self.path)}"
        return cache.mapped(key, lambda: self.read(_MAX_UNPACKED))


def members(path: str) -> dict[str, Member]:
    """Return the arrays of a file by their names, without ".npy".

    raises: BadImage if the file or a header is damaged.
    """
    found = {}
    with reading(path, "NumPy"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                name = info.filename.removesuffix(".npy")
                found[name] = _member(path, archive, info)
    return found


def _member(path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    if info.header_offset < 0:
        raise BadImage("corrupt", f"{path!r} has {info.filename} before its start.")
    with archive.open(info) as file:
        header = read_header(file)
    if info.file_size < header.num_bytes and not header.dtype.hasobject:
        raise BadImage("truncated", f"{info.filename} of {path!r} is cut off.")
    with open(path, "rb") as raw:
        raw.seek(info.header_offset)
        name_and_extra = sum(_LOCAL.unpack(raw.read(_LOCAL.size)))
    return Member(
        path,
        info.filename,
        header,
        info.header_offset + _LOCAL.size + name_and_extra,
        info.compress_type == zipfile.ZIP_STORED,
    )


def _stamp(path: str) -> tuple[int, int]:
    """Return what changes when a file is replaced."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _by_meaning(arrays: dict[str, Member]) -> dict[str, Member]:
    """Return arrays as "images", "train/labels" and so on, where names mean that."""
    found = {}
    for name, array in arrays.items():
        match = _NAME.fullmatch(name)
        assert match is not None
        split = match["before"] or match["after"]
        what = _MEANINGS.get(match["what"], match["what"])
        found[f"{split}/{what}" if split else what] = array
    return found


def _choose(
    arrays: dict[str, Member], selection: Selection, place: str, axes: dict[int, str]
) -> str:
    """Return the name of the images: as selected, "images", or the only ones."""
    if not selection.names and _IMAGES in arrays:
        selection = selection._replace(names=(_IMAGES,))
    return choose_images(arrays, selection, place, axes)


# ---- One file ------------------------------------------------------------------------


def is_npz(place: str) -> bool:
    """Whether a place is an .npz file, with or without ":NAME"."""
    path = parse_selection(place).path
    return path.lower().endswith(_ENDINGS) and os.path.isfile(path)


def open_npz(
    place: str, split: str, *, wanted: Wanted | None = None
) -> PlaneSource | TargetSource:
    """Open one split of an .npz file; see `open_source`.

    raises: UserError for a damaged file, or one without or with several sets of images.
    """
    arrays, prefix, name = _find(place, split)
    selection = parse_selection(place)
    opened = functools.partial(
        open_planes,
        place,
        split,
        functools.partial(_planes, arrays[prefix + name]),
        window=selection.window,
        is_split=bool(prefix),
    )
    if wanted is None:
        axes = _AXES[arrays[prefix + name].ndim]
        return opened(classes=classes_of(arrays, prefix, name, axes, place))
    table, names = targets_of(arrays, prefix, name, wanted, place)
    # The number of its image, to find the targets of a window.
    source = opened(classes=Classes(np.arange(len(table))))
    return TargetSource(source, table[source.labels], names)


def check_npz(place: str, split: str) -> None:
    """Raise the errors of `open_npz`, except those of labels."""
    _find(place, split)


def _find(place: str, split: str) -> tuple[dict[str, Member], str, str]:
    """Return all arrays, the prefix of a split, and the name of its images."""
    selection = parse_selection(place)
    arrays = members(selection.path)
    if not selection.names:
        arrays = _by_meaning(arrays)
    prefix, mine = choose_split(arrays, split, place)
    name = _choose(mine, selection, place, _AXES)
    array_dtype(mine[name].dtype, f"{name!r} of {selection.path!r}")
    return arrays, prefix, name


def _planes(member: Member) -> ArrayPlanes:
    return ArrayPlanes(member.mapped(), _AXES[member.ndim])


# ---- A folder of files ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Images of .npz files: one [h, w] or [h, w, c] in each, or several [n, h, w, c].

    names: of the array in each, () for the only one.
    """

    names: tuple[str, ...]

    def count(self, path: str) -> int:
        """Return the number of images in a file."""
        member = self._member(path)
        return member.shape[0] if member.ndim == 4 else 1

    def read(self, path: str, index: int) -> np.ndarray:
        """Return an image [h, w, c]."""
        member = self._member(path)
        if member.ndim == 4:
            image = _opened(path, self.names, _stamp(path))[index]
        else:
            image = member.read(MAX_BYTES)
        return np.ascontiguousarray(as_image(image, repr(path)))

    def _member(self, path: str) -> Member:
        arrays = members(path)
        if not self.names:
            arrays = _by_meaning(arrays)
        return arrays[_choose(arrays, Selection(path, self.names), path, _FILE_AXES)]


@functools.lru_cache(_OPEN_FILES)
def _opened(path: str, names: tuple[str, ...], stamp: tuple[int, int]) -> np.ndarray:
    del stamp  # a file that was replaced is opened again
    return np.asarray(Arrays(names)._member(path).mapped())


_FILES = Files(lambda name: name.lower().endswith(b".npz"), _ENDINGS, "npz 1")


def is_npz_folder(place: str) -> bool:
    """Whether a place is a folder of .npz files without images, or such and ":NAME"."""
    return has_files(parse_selection(place).path, _FILES)


def open_npz_folder(place: str, split: str) -> Source:
    """Open one split of a folder of .npz files, laid out like a folder of images.

    raises: NotFoundError without files, UserError for a split that does not exist.
    """
    selection = parse_selection(place)
    return open_stack(selection.path, split, Arrays(selection.names), _FILES)


def check_npz_folder(place: str, split: str) -> None:
    """Raise the errors of `open_npz_folder`, those of files for the first one alone."""
    selection = parse_selection(place)
    check_stack(selection.path, split, Arrays(selection.names), _FILES)


FILE = Format(
    "an .npz file, or FILE:NAME of one of its arrays",
    is_npz,
    check_npz,
    open_npz,
    takes_wanted=True,
)
FOLDER = Format(
    "a folder of .npz files", is_npz_folder, check_npz_folder, open_npz_folder
)
