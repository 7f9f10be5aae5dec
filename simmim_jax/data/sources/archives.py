"""Tar and zip files of images: random access through an index, without unpacking."""

import dataclasses
import itertools
import os
import re
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources.archive_index import (
    archive_members,
    check_zip,
    file_names,
    index_archive,
    read_member,
)
from simmim_jax.data.sources.base import NO_LABEL, numbered_classes
from simmim_jax.data.sources.endings import check_package
from simmim_jax.data.sources.folders import is_folder
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import (
    SPLIT_FOLDERS,
    TRAIN,
    Classes,
    Paths,
    find_split,
    hashed_split,
    is_hidden,
    is_image,
    label_by_folder,
    no_images,
    nothing_to_learn_from,
    split_paths,
)
from simmim_jax.data.sources.remote import MAX_BYTES, is_url
from simmim_jax.errors import UserError

_ARCHIVE_ENDINGS = (".tar", ".zip")
_COMPRESSED_ENDINGS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclasses.dataclass(frozen=True)
class ArchiveSource:
    """Images in archives, with the archive, offset and size of each.

    archive int [n]: position in `archives`; offsets, sizes, unpacked int [n]: as in
    `ArchiveIndex`; paths: within the archive; labels int [n] or None; unlabelled,
    max_bytes: as in `FolderSource`.
    """

    archives: tuple[str, ...]
    archive: np.ndarray = dataclasses.field(repr=False)
    paths: Paths = dataclasses.field(repr=False)
    offsets: np.ndarray = dataclasses.field(repr=False)
    sizes: np.ndarray = dataclasses.field(repr=False)
    unpacked: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    unlabelled: str = ""
    max_bytes: int = MAX_BYTES

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        archive = self.archives[self.archive[index]]
        path = f"{archive}/{self.paths[index]}"
        try:
            data = read_member(
                archive,
                int(self.offsets[index]),
                int(self.sizes[index]),
                int(self.unpacked[index]),
                self.max_bytes,
            )
        except BadImage as error:
            error.filename = path
            raise
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": data, "label": label, "path": path}


def open_archives(
    files: list[str], split: str, place: str, *, max_bytes: int = MAX_BYTES
) -> ArchiveSource:
    """Open one split of one or more .tar or .zip files, taken as one data set.

    place: their name in errors. See `open_source` for the layouts.
    raises: UserError for a file that is not an archive, or is compressed or truncated,
    and for a split that does not exist; NotFoundError without images.
    """
    parts = [index_archive(file) for file in files]
    archive = np.repeat(
        np.arange(len(files), dtype=np.int32), [len(part.paths) for part in parts]
    )
    members = [path for part in parts for path in part.paths]
    if not members:
        raise no_images(place, itertools.chain(*map(file_names, files)))
    paths, splits = _splits(members, archive, files, split, place)
    name = find_split(split, place, set(splits).__contains__)
    if name is None:
        chosen = hashed_split(paths, split, place)
    else:
        chosen = np.array([i for i, s in enumerate(splits) if s == name])

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    classes = _classes(paths, column("labels"), chosen, name, place)
    return ArchiveSource(
        tuple(files),
        archive[chosen],
        Paths([members[i] for i in chosen]),
        column("offsets")[chosen],
        column("sizes")[chosen],
        column("unpacked")[chosen],
        *classes,
        max_bytes,
    )


def check_archive(file: str) -> None:
    """Raise the error of `open_archives` for a file that is not an archive."""
    if file.lower().endswith(".zip"):
        check_zip(file)  # listing it takes seconds for a million files
        return
    first = next(archive_members(file), None)
    if first is None:
        raise no_images(file, file_names(file))
    check_package(first[0], file)


def find_shards(folder: str) -> list[str]:
    """Return the .tar shards of a folder or of its split folders.

    A folder with images or other folders beside the .tar files has no shards.
    """
    places = [folder, *(os.path.join(folder, name) for name in SPLIT_FOLDERS)]
    top, *inner = [_tars(place) for place in places if os.path.isdir(place)]
    return sorted(top or itertools.chain(*inner))


def _tars(folder: str) -> list[str]:
    tars = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if is_hidden(name):
                continue
            if is_image(name) or is_folder(entry):
                return []
            if name.lower().endswith(b".tar"):
                tars.append(entry.path)
    return tars


# ---- Splits and classes --------------------------------------------------------------


def _splits(
    paths: list[bytes], archive: np.ndarray, files: list[str], split: str, place: str
) -> tuple[list[bytes], list[str | None]]:
    """Return paths that start at the class folder, and the split of each image."""
    names = (os.path.relpath(file, place).lower() for file in files)
    named = [
        next((s for s in re.findall("[a-z]+", name) if s in SPLIT_FOLDERS), None)
        for name in names
    ]
    if any(named):
        return paths, [named[i] for i in archive]
    while True:
        found = split_paths(paths, split)
        if found:
            return found
        # Archives often have a single folder at the top.
        parts = [path.partition(b"/") for path in paths]
        inner = [rest for _, _, rest in parts]
        if len({top for top, _, _ in parts}) > 1 or not all(b"/" in p for p in inner):
            return paths, [None] * len(paths)
        paths = inner


def _classes(
    paths: list[bytes],
    numbers: np.ndarray,
    chosen: np.ndarray,
    split: str | None,
    place: str,
) -> Classes:
    """Return the classes of the chosen images; other images also name classes."""
    if (numbers[chosen] != NO_LABEL).any():
        lacking = chosen[numbers[chosen] == NO_LABEL]
        if len(lacking):
            raise UserError(
                f"{os.fsdecode(paths[lacking[0]])!r} in {place!r} has no .cls file "
                "beside it, but other images have: expected one for each image, or "
                "none. Write the archive again."
            )
        used = np.setdiff1d(numbers, NO_LABEL)
        lacking = np.setdiff1d(used, numbers[chosen])
        if len(lacking) and split == TRAIN:
            listed = list(map(str, lacking))
            return Classes(unlabelled=nothing_to_learn_from(listed, place))
        return Classes(numbers[chosen], numbered_classes(numbers))
    return label_by_folder(paths, chosen, split, place)


# ---- Formats -------------------------------------------------------------------------


def _is_archive(place: str) -> bool:
    endings = (*_ARCHIVE_ENDINGS, *_COMPRESSED_ENDINGS)
    return place.lower().endswith(endings) and (is_url(place) or os.path.isfile(place))


def _check_archive(place: str, split: str) -> None:
    del split
    _check_readable(place)
    check_archive(place)


def _open_archive(place: str, split: str, *, max_bytes: int) -> ArchiveSource:
    _check_readable(place)
    return open_archives([place], split, place, max_bytes=max_bytes)


def _check_readable(place: str) -> None:
    """Raise UserError for an archive that does not allow random access."""
    if is_url(place):
        raise UserError(
            f"dataset={place!r} is an archive at a URL: expected a folder or a "
            "manifest there. Copy the archive here, or mount the bucket (Cloud "
            "Storage: gcsfuse)."
        )
    if place.lower().endswith(_COMPRESSED_ENDINGS):
        raise UserError(
            f"dataset={place!r} is compressed, which prevents random access: expected "
            f"a .tar. Decompress it, images hardly grow: gunzip {place} (or bunzip2, "
            "unxz, unzstd), then name the .tar."
        )


def _is_shard_folder(place: str) -> bool:
    return os.path.isdir(place) and bool(find_shards(place))


def _check_shards(place: str, split: str) -> None:
    del split
    check_archive(find_shards(place)[0])


def _open_shards(place: str, split: str, *, max_bytes: int) -> ArchiveSource:
    return open_archives(find_shards(place), split, place, max_bytes=max_bytes)


ARCHIVE = Format(
    "a .tar or .zip of images",
    _is_archive,
    _check_archive,
    _open_archive,
    takes_max_bytes=True,
)
SHARDS = Format(
    "a folder of .tar shards",
    _is_shard_folder,
    _check_shards,
    _open_shards,
    takes_max_bytes=True,
)
