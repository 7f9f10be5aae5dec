"""Tar and zip files of images, read at random through an index and never unpacked."""

import dataclasses
import itertools
import os
import re
import zipfile
from typing import Any

import numpy as np

from simmim_jax.data.sources.archive_index import (
    broken,
    index_archive,
    read_member,
    tar_members,
)
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.folders import is_folder
from simmim_jax.data.sources.paths import (
    SPLIT_FOLDERS,
    Paths,
    by_rule,
    find_split,
    is_hidden,
    is_image,
    name_classes,
    no_images,
    split_paths,
)
from simmim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ArchiveSource:
    """Images in archives: of each, which file it is in, where, and how long.

    archive int[n]: position in `archives`; offsets, sizes int[n]: bytes, as stored;
    deflated bool[n]; paths: within the archive; labels int[n] or None.
    """

    archives: tuple[str, ...]
    archive: np.ndarray = dataclasses.field(repr=False)
    paths: Paths = dataclasses.field(repr=False)
    offsets: np.ndarray = dataclasses.field(repr=False)
    sizes: np.ndarray = dataclasses.field(repr=False)
    deflated: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        archive = self.archives[self.archive[index]]
        data = read_member(
            archive,
            int(self.offsets[index]),
            int(self.sizes[index]),
            bool(self.deflated[index]),
        )
        path = f"{archive}/{self.paths[index]}"
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": data, "label": label, "path": path}


def open_archives(files: list[str], split: str, place: str) -> ArchiveSource:
    """Open one split of what lies in one or more .tar or .zip files together.

    place: what to call them in errors; see `open_source` for how they may be laid out.
    raises: ValueError for a file that is no archive, compressed or cut off, and for a
    split that does not exist; FileNotFoundError without images.
    """
    parts = [index_archive(file) for file in files]
    archive = np.repeat(
        np.arange(len(files), dtype=np.int32), [len(part.paths) for part in parts]
    )
    members = [path for part in parts for path in part.paths]
    if not members:
        raise no_images(place)
    paths, splits = _splits(members, archive, files, split, place)
    name = find_split(split, place, set(splits).__contains__)
    if name is None:
        chosen = by_rule(paths, split, place)
    else:
        chosen = np.array([i for i, s in enumerate(splits) if s == name])

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    labels, class_names = _labels(paths, column("labels"), chosen, place)
    return ArchiveSource(
        tuple(files),
        archive[chosen],
        Paths([members[i] for i in chosen]),
        column("offsets")[chosen],
        column("sizes")[chosen],
        column("deflated")[chosen],
        labels,
        class_names,
    )


def check_archive(file: str) -> None:
    """Raise what `open_archives` would for a file that is no archive."""
    with open(file, "rb") as opened:
        if file.lower().endswith(".zip"):
            if not zipfile.is_zipfile(opened):
                raise broken(file, "is no zip file")
        elif next(tar_members(opened, file), None) is None:
            raise no_images(file)


def find_shards(folder: str) -> list[str]:
    """Return the .tar files of a folder that has no images or folders beside them.

    They may be in split folders as well.
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
    """Return paths from where classes begin, and the split that each image is in."""
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
        # Archives are often made of one folder, which has everything in it.
        parts = [path.partition(b"/") for path in paths]
        inner = [rest for _, _, rest in parts]
        if len({top for top, _, _ in parts}) > 1 or not all(b"/" in p for p in inner):
            return paths, [None] * len(paths)
        paths = inner


def _labels(
    paths: list[bytes], numbers: np.ndarray, chosen: np.ndarray, place: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels int[m] of the chosen images, and the names of all classes."""
    if (numbers[chosen] != NO_LABEL).any():
        lacking = chosen[numbers[chosen] == NO_LABEL]
        if len(lacking):
            raise UserError(
                f"{os.fsdecode(paths[lacking[0]])!r} in {place!r} has no .cls file "
                "beside it, others have: expected one for each image, or none."
            )
        return numbers[chosen], tuple(map(str, range(numbers.max() + 1)))
    return name_classes(paths, chosen)
