"""Folders of images, found through an index that is kept between runs."""

import dataclasses
import errno
import os
import stat
import time
from typing import Any

import numpy as np

from simmim_jax.data.sources import cache
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.paths import (
    IMAGE_ENDINGS,
    SPLIT_FOLDERS,
    Paths,
    by_rule,
    class_folders,
    find_split,
    is_hidden,
    is_image,
    name_classes,
    no_images,
    number,
    pack,
    split_paths,
    unpack,
)
from simmim_jax.data.sources.remote import is_url, list_url, read_file

# A folder that changed so shortly before it was read may change again without a new
# time: file systems count in up to 2 s (FAT), and clocks of servers differ.
_SETTLED_NS = 2 * 10**9


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files under `root`, a folder or URL: paths relative to it or absolute.

    labels int[n] or None; unlabelled: why there are none, where that may surprise.
    """

    root: str
    paths: Paths = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    unlabelled: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        path = self.paths[index]
        if not is_url(path):
            path = os.path.join(self.root, path)
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": read_file(path), "label": label, "path": path}


def open_folder(root: str, split: str) -> FolderSource:
    """Open one split of a folder; see `open_source` for how it may be laid out.

    raises: FileNotFoundError without images, ValueError for a split that does not
    exist.
    """
    name = find_split(split, root, lambda name: os.path.isdir(os.path.join(root, name)))
    folder = os.path.join(root, name or "")
    paths = list_images(folder)
    if not paths:
        raise no_images(folder)
    folders = class_folders(paths)
    class_names: list[str] = []
    unlabelled = ""
    if folders is not None:
        # The classes of all splits together, lest a class that is missing in
        # one of them shifts its labels.
        splits = {*SPLIT_FOLDERS, name} if name else {""}
        places = [os.path.join(root, split) for split in splits]
        class_names = sorted({name for place in places for name in subfolders(place)})
        empty = set(class_names) - set(map(os.fsdecode, set(folders)))
        if empty and (name is None or split == "train"):
            found = [os.path.join(place, name) for place in places for name in empty]
            unlabelled = (
                "There are class folders without images to learn from: "
                f"{', '.join(sorted(filter(os.path.isdir, found)))}. Expected "
                f"{'/'.join(IMAGE_ENDINGS)} files in folders of these names in "
                f"{folder!r}: convert other formats, or remove the folders. Images "
                "without a class go right into the folder of their split."
            )
            folders, class_names = None, []
    elif any(b"/" in path for path in paths):
        stray = next(os.fsdecode(path) for path in paths if b"/" not in path)
        unlabelled = (
            f"{os.path.join(folder, stray)!r} lies in no class folder, others do: "
            "move it into one, or away."
        )
    labels = None if folders is None else number(folders, class_names)
    if name is None:
        chosen = by_rule(paths, split, root)
        paths = [paths[i] for i in chosen]
        labels = None if labels is None else labels[chosen]
    return FolderSource(folder, Paths(paths), labels, tuple(class_names), unlabelled)


def open_url(url: str, split: str) -> FolderSource:
    """Open one split of a folder at a URL, which is listed anew each time.

    raises: FileNotFoundError without images, ValueError for a split that does not
    exist.
    """
    paths = list_url(url)
    if not paths:
        raise no_images(url)
    below, splits = split_paths(paths, split) or (paths, [None])
    name = find_split(split, url, splits.__contains__)
    if name is None:
        chosen = by_rule(paths, split, url)
    else:
        chosen = np.array([i for i, s in enumerate(splits) if s == name])
    labels, class_names = name_classes(below, chosen)
    return FolderSource(url, Paths([paths[i] for i in chosen]), labels, class_names)


def check_folder(root: str, split: str) -> None:
    """Raise what `open_folder` would if there is no data; looks for the first image."""
    name = find_split(split, root, lambda name: os.path.isdir(os.path.join(root, name)))
    folder = os.path.join(root, name or "")
    if not _has_image(os.fsencode(folder), frozenset()):
        raise no_images(folder)


def subfolders(folder: str) -> list[str]:
    """Names of the folders in a folder, unsorted; none if it does not exist."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return [
            entry.name
            for entry in entries
            if not is_hidden(os.fsencode(entry.name)) and is_folder(entry)
        ]


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one."""
    # entry.is_dir() raises for a link to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _has_image(folder: bytes, above: frozenset[str | bytes]) -> bool:
    real = os.path.realpath(folder)
    if real in above:
        return False
    inner = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if is_folder(entry):
                    inner.append(entry.path)
                elif is_image(entry.name):
                    return True
    except PermissionError as error:
        raise _forbidden(folder) from error
    return any(_has_image(path, above | {real}) for path in inner)


def _forbidden(folder: bytes) -> ValueError:
    return ValueError(
        f"{os.fsdecode(folder)!r} must not be read: permission denied. Change its "
        "mode, or move it away."
    )


# ---- The index -----------------------------------------------------------------------


@dataclasses.dataclass
class _Folder:
    """One folder as it was read; mtime_ns is -1 where that cannot be relied on."""

    mtime_ns: int
    images: list[bytes] = dataclasses.field(default_factory=list)
    folders: list[bytes] = dataclasses.field(default_factory=list)


def list_images(root: str) -> list[bytes]:
    """Return the sorted paths of all images under root, relative to it.

    An index of them is kept. A folder is read again if its time of modification has
    changed, which adding, removing and renaming a file does; links are followed, but
    not into a folder from within itself.
    """
    key = f"folder 2 {os.path.realpath(root)}"
    known = _load(key)
    folders = _walk(os.fsencode(root), known)
    images = sorted(image for folder in folders.values() for image in folder.images)
    if folders != known:
        index = {
            "folders": pack(list(folders)),
            "mtimes": np.array([f.mtime_ns for f in folders.values()], np.int64),
            "images": pack(images),
        }
        cache.save(key, len(images), index)
    return images


def _load(key: str) -> dict[bytes, _Folder]:
    index = cache.load(key)
    if index is None:
        return {}
    names = unpack(index["folders"])
    mtimes = index["mtimes"].tolist()
    folders = {n: _Folder(m) for n, m in zip(names, mtimes, strict=True)}
    for name in names[1:]:  # The first is root itself.
        folders[name.rpartition(b"/")[0]].folders.append(name)
    for image in unpack(index["images"]):
        folders[image.rpartition(b"/")[0]].images.append(image)
    return folders


def _walk(root: bytes, known: dict[bytes, _Folder]) -> dict[bytes, _Folder]:
    """Return all folders under root, by their paths relative to it."""
    now = time.time_ns()
    found = {}
    todo: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
    while todo:
        name, above = todo.pop()
        try:
            status = os.stat(os.path.join(root, name))
            identity = (status.st_dev, status.st_ino)
            if not stat.S_ISDIR(status.st_mode) or identity in above:
                continue
            folder = known.get(name)
            if folder is None or folder.mtime_ns != status.st_mtime_ns:
                folder = _read(root, name)
                if status.st_mtime_ns < now - _SETTLED_NS:
                    folder.mtime_ns = status.st_mtime_ns
        except OSError as error:
            if isinstance(error, PermissionError):
                raise _forbidden(os.path.join(root, name)) from error
            # A link to nowhere or to itself, or a folder removed meanwhile.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            found[name] = _Folder(-1)
            continue
        found[name] = folder
        todo += [(inner, above | {identity}) for inner in folder.folders]
    return found


def _read(root: bytes, name: bytes) -> _Folder:
    folder = _Folder(-1)
    with os.scandir(os.path.join(root, name)) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = os.path.join(name, entry.name)
            if is_folder(entry):
                folder.folders.append(path)
            elif is_image(entry.name) and (entry.is_symlink() or entry.is_file()):
                folder.images.append(path)
            elif entry.is_symlink():
                folder.folders.append(path)  # Perhaps a folder not mounted yet.
    return folder
