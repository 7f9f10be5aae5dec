"""Folders of files, found through an index that is kept between runs."""

import dataclasses
import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from simmim_jax.data.sources import cache
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.endings import check_package
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import (
    IMAGE_ENDINGS,
    SPLIT_FOLDERS,
    TRAIN,
    Paths,
    class_folders,
    find_split,
    folder_labels,
    hashed_split,
    is_hidden,
    is_image,
    label_by_folder,
    no_images,
    nothing_to_learn_from,
    pack,
    split_paths,
    stray_image,
    unpack,
)
from simmim_jax.data.sources.remote import (
    MAX_BYTES,
    check_url,
    is_url,
    list_url,
    read_file,
)
from simmim_jax.errors import UserError

# A folder that changed this recently may change again without a new modification time:
# file systems round it to up to 2 s (FAT), and clocks of servers differ.
_SETTLED_NS = 2 * 10**9
# Files that are counted for the error of a folder without images.
_MAX_COUNTED = 10_000


@dataclasses.dataclass(frozen=True)
class Files:
    """The files that a format reads.

    wanted: whether a file name is one of them; index: key of their index in the cache.
    """

    wanted: Callable[[bytes], bool]
    endings: tuple[str, ...]
    index: str


IMAGE_FILES = Files(is_image, IMAGE_ENDINGS, "folder 3")


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Files under `root`, a folder or URL; paths are relative to it, or absolute.

    labels int [n] or None; unlabelled: why there are none, if that may be a mistake;
    max_bytes: of a file.
    """

    root: str
    paths: Paths = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    unlabelled: str = ""
    max_bytes: int = MAX_BYTES

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        path = self.paths[index]
        if not is_url(path):
            path = os.path.join(self.root, path)
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": read_file(path, self.max_bytes), "label": label, "path": path}


def open_folder(
    root: str, split: str, files: Files = IMAGE_FILES, *, max_bytes: int = MAX_BYTES
) -> FolderSource:
    """Open one split of a local folder; see `open_source` for the layouts.

    raises: NotFoundError without files, UserError for a split that does not exist.
    """
    name = _find_split(root, split)
    folder = os.path.join(root, name or "")
    paths = list_files(folder, files)
    if not paths:
        raise no_images(folder, _some_names(folder), files.endings)
    folders = class_folders(paths)
    class_names: list[str] = []
    unlabelled = ""
    if folders is not None:
        # Classes of all splits: one that is missing in a split must not shift labels.
        splits = {*SPLIT_FOLDERS, name} if name else {""}
        places = [os.path.join(root, split) for split in splits]
        class_names = sorted({name for place in places for name in subfolders(place)})
        empty = set(class_names) - set(map(os.fsdecode, set(folders)))
        if empty and name in (None, TRAIN):
            found = [os.path.join(place, name) for place in places for name in empty]
            lacking = sorted(filter(os.path.isdir, found))
            expected = f"{'/'.join(files.endings)} files"
            unlabelled = (
                f"{nothing_to_learn_from(lacking, folder, expected)} Put images "
                "without a class directly into the folder of their split."
            )
            folders, class_names = None, []
    else:
        unlabelled = stray_image(paths, folder)
    labels = None if folders is None else folder_labels(folders, class_names)
    if name is None:
        chosen = hashed_split(paths, split, root)
        paths = [paths[i] for i in chosen]
        labels = None if labels is None else labels[chosen]
    return FolderSource(
        folder, Paths(paths), labels, tuple(class_names), unlabelled, max_bytes
    )


def check_folder(root: str, split: str, files: Files = IMAGE_FILES) -> str:
    """Raise the errors of `open_folder`; return the path of the first file found.

    raises: MissingPackageError if nothing is installed that reads this file.
    """
    folder = os.path.join(root, _find_split(root, split) or "")
    first = first_file(folder, files.wanted)
    if first is None:
        raise no_images(folder, _some_names(folder), files.endings)
    check_package(first, folder)
    return first


def open_url(url: str, split: str, *, max_bytes: int = MAX_BYTES) -> FolderSource:
    """Open one split of a folder of images at a URL, which is listed every time.

    raises: NotFoundError without images, UserError for a split that does not exist.
    """
    check_url(url)
    url = url.rstrip("/")
    paths = list_url(url, is_image)
    if not paths:
        raise no_images(url, list_url(url, lambda name: True))
    below, splits = split_paths(paths, split) or (paths, [None])
    name = find_split(split, url, splits.__contains__)
    if name is None:
        chosen = hashed_split(paths, split, url)
    else:
        chosen = np.array([i for i, s in enumerate(splits) if s == name])
    classes = label_by_folder(below, chosen, name, url)
    return FolderSource(url, Paths([paths[i] for i in chosen]), *classes, max_bytes)


def subfolders(folder: str) -> list[str]:
    """Return the names of the folders in a folder; [] if it does not exist."""
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


def first_file(
    folder: str, wanted: Callable[[bytes], bool], *, skip_forbidden: bool = False
) -> str | None:
    """Return the path of some wanted file under a folder, None if there is none.

    raises: UserError for a folder that may not be read, unless `skip_forbidden`.
    """
    files = _walk_names(os.fsencode(folder), skip_forbidden)
    return next((os.fsdecode(path) for path in files if wanted(path)), None)


def _find_split(root: str, split: str) -> str | None:
    return find_split(split, root, lambda name: os.path.isdir(os.path.join(root, name)))


def _some_names(folder: str) -> list[bytes]:
    files = _walk_names(os.fsencode(folder), skip_forbidden=True)
    return list(itertools.islice(files, _MAX_COUNTED))


def _walk_names(
    folder: bytes, skip_forbidden: bool, above: frozenset[str | bytes] = frozenset()
) -> Iterator[bytes]:
    """Yield paths of files, those of a folder before those of its subfolders."""
    real = os.path.realpath(folder)
    if real in above:
        return
    inner = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if is_folder(entry):
                    inner.append(entry.path)
                else:
                    yield entry.path
    except PermissionError as error:
        if not skip_forbidden:
            raise _forbidden(folder) from error
    for path in inner:
        yield from _walk_names(path, skip_forbidden, above | {real})


def _forbidden(folder: bytes) -> UserError:
    return UserError(
        f"{os.fsdecode(folder)!r} cannot be read: permission denied. Change its mode, "
        "or move it away."
    )


# ---- The index -----------------------------------------------------------------------


@dataclasses.dataclass
class _Folder:
    """Content of one folder; mtime_ns is -1 if it must be read again."""

    mtime_ns: int
    files: list[bytes] = dataclasses.field(default_factory=list)
    folders: list[bytes] = dataclasses.field(default_factory=list)


def list_files(root: str, files: Files = IMAGE_FILES) -> list[bytes]:
    """Return the sorted paths of all wanted files under root, relative to it.

    They are indexed. A folder is read again if its modification time has changed, as
    adding, removing or renaming a file does. Links are followed, except into a folder
    that they are in.
    """
    key = f"{files.index} {os.path.realpath(root)}"
    known = _load(key)
    folders = _walk(os.fsencode(root), known, files.wanted)
    paths = sorted(path for folder in folders.values() for path in folder.files)
    if folders != known:
        index = {
            "folders": pack(list(folders)),
            "mtimes": np.array([f.mtime_ns for f in folders.values()], np.int64),
            "images": pack(paths),
        }
        cache.save(key, len(paths), index)
    return paths


def _load(key: str) -> dict[bytes, _Folder]:
    index = cache.load(key, ("folders", "mtimes", "images"))
    if index is None:
        return {}
    try:
        names = unpack(index["folders"])
        mtimes = index["mtimes"].tolist()
        folders = {n: _Folder(m) for n, m in zip(names, mtimes, strict=True)}
        for name in names[1:]:  # The first one is root.
            folders[name.rpartition(b"/")[0]].folders.append(name)
        for path in unpack(index["images"]):
            folders[path.rpartition(b"/")[0]].files.append(path)
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}  # arrays of another kind: only the index is lost
    return folders


def _walk(
    root: bytes, known: dict[bytes, _Folder], wanted: Callable[[bytes], bool]
) -> dict[bytes, _Folder]:
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
                folder = _read(root, name, wanted)
                if status.st_mtime_ns < now - _SETTLED_NS:
                    folder.mtime_ns = status.st_mtime_ns
        except OSError as error:
            if isinstance(error, PermissionError):
                raise _forbidden(os.path.join(root, name)) from error
            # A dangling link, a link to itself, or a folder that was just removed.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            found[name] = _Folder(-1)
            continue
        found[name] = folder
        todo += [(inner, above | {identity}) for inner in folder.folders]
    return found


def _read(root: bytes, name: bytes, wanted: Callable[[bytes], bool]) -> _Folder:
    folder = _Folder(-1)
    with os.scandir(os.path.join(root, name)) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = os.path.join(name, entry.name)
            if is_folder(entry):
                folder.folders.append(path)
            elif wanted(entry.name) and (entry.is_symlink() or entry.is_file()):
                folder.files.append(path)
            elif entry.is_symlink():
                folder.folders.append(path)  # Its target may not be mounted yet.
    return folder


def _check_url(url: str, split: str) -> None:
    del split
    check_url(url)


FOLDER = Format(
    "a folder of images",
    os.path.isdir,
    check_folder,
    open_folder,
    takes_max_bytes=True,
)
URL = Format("a folder at a URL", is_url, _check_url, open_url, takes_max_bytes=True)
