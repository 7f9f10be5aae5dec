"""LMDB environments of encoded images, by key.

py-lmdb can open an environment once a process, and not pickle it.
"""

import dataclasses
import os
import re
import threading
from types import ModuleType
from typing import Any

import numpy as np

from simmim_jax.data.sources import tf_example
from simmim_jax.data.sources.base import NO_LABEL, check_labels, numbered_classes
from simmim_jax.data.sources.folders import is_folder
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import (
    Classes,
    Paths,
    find_split,
    hashed_split,
    is_image,
    label_by_folder,
    named_splits,
    split_paths,
)
from simmim_jax.data.sources.remote import MAX_BYTES, file_too_large
from simmim_jax.errors import MissingPackageError, NotFoundError, UserError

_DATA = "data.mdb"
_ENDINGS = (".lmdb", ".mdb")
# Of keys that describe a set: __len__, __keys__, num-samples, length.
_NOT_IMAGES = re.compile(rb"__.*__|num-samples|length|keys|meta")
# Sets of text recognition.
_NUMBERED = re.compile(rb"image-(\d+)")
_PICKLES = tuple(b"\x80%c" % protocol for protocol in range(2, 6))
# Fields of Caffe's Datum: channels, height, width.
_DATUM = {1, 2, 3}


@dataclasses.dataclass(frozen=True)
class LmdbSource:
    """Values of an LMDB environment that are encoded images.

    file: with the data; keys: of the images; labels int32 [n] or None; unlabelled,
    max_bytes: as in `FolderSource`.
    """

    file: str
    keys: Paths = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    unlabelled: str = ""
    max_bytes: int = MAX_BYTES

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        key = self.keys[index]
        name = f"{self.file}:{key}"
        with _environment(self.file).begin(buffers=True) as transaction:
            value = transaction.get(os.fsencode(key))
            size = -1 if value is None else len(value)
            image = bytes(value) if 0 <= size <= self.max_bytes else b""
        if size < 0:
            raise FileNotFoundError(f"{name!r} does not exist any more")
        if size > self.max_bytes:
            error = file_too_large("An image of an LMDB set", self.max_bytes)
            error.filename = name
            raise error
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": image, "label": label, "path": name}


def open_lmdb(place: str, split: str, *, max_bytes: int = MAX_BYTES) -> LmdbSource:
    """Open one split of an LMDB environment, or of a folder with one for each split.

    raises: UserError for a damaged environment, and for values that are no encoded
    images; NotFoundError without any.
    """
    file, name = _find(place, split)
    keys = _keys(file)
    if not keys:
        raise NotFoundError(f"{place!r} is empty: expected encoded images by key.")
    if numbered := [key for key in keys if _NUMBERED.fullmatch(key)]:
        labels, unlabelled = _numbered_labels(file, numbered, set(keys))
        images = numbered
    else:
        images = [key for key in keys if not _NOT_IMAGES.fullmatch(key)]
        labels, unlabelled = None, ""
    if not images:
        raise NotFoundError(f"{place!r} has no images: expected them by key.")
    _check_value(file, images[0])
    below, splits = split_paths(images, split) or (images, [None])
    if name is not None:
        chosen, below = np.arange(len(images)), images
    else:
        name = find_split(split, place, set(splits).__contains__)
        if name is None:
            chosen = hashed_split(images, split, place)
        else:
            chosen = np.array([i for i, s in enumerate(splits) if s == name])
    if numbered:
        classes = Classes(unlabelled=unlabelled)
        if labels is not None:
            classes = Classes(labels[chosen], numbered_classes(labels))
    else:
        classes = label_by_folder(below, chosen, name, place)
    return LmdbSource(file, Paths([images[i] for i in chosen]), *classes, max_bytes)


def _numbered_labels(
    file: str, images: list[bytes], keys: set[bytes]
) -> tuple[np.ndarray | None, str]:
    """Return labels int32 [n] of label-000000001 …, or why there are none."""
    wanted = [key.replace(b"image-", b"label-") for key in images]
    if not keys.issuperset(wanted):
        return None, ""
    with _environment(file).begin() as transaction:
        texts = [transaction.get(key) for key in wanted]
    if not all(text.isdigit() and len(text) < 10 for text in texts):
        return None, f"{file!r} has labels that are text, not numbers of classes."
    return check_labels(list(map(int, texts)), len(texts), f"Labels of {file!r}"), ""


def _check_value(file: str, key: bytes) -> None:
    """Raise UserError if a value is known to be no encoded image."""
    with _environment(file).begin() as transaction:
        value = transaction.get(key)
    what = ""
    if value.startswith(_PICKLES):
        what = "pickled Python objects, which are never unpickled"
    elif value[:1] == b"\x08" and _is_datum(value):
        what = "Datum messages of Caffe, which are not read"
    if what:
        raise UserError(
            f"{file!r} has values that are {what}: expected encoded images, such as "
            "the bytes of JPEG files. Write them so, or as files in folders."
        )


def _is_datum(value: bytes) -> bool:
    try:
        return {n for n, _ in tf_example.fields(memoryview(value))} >= _DATUM
    except ValueError:
        return False


# ---- Environments --------------------------------------------------------------------

_lock = threading.Lock()
# By file: its size and time of change when it was opened, and the environment.
_open: dict[str, tuple[tuple[int, int], Any]] = {}


def _environment(file: str) -> Any:
    """Return an open environment; raises UserError if the file is damaged."""
    status = os.stat(file)
    stamp = (status.st_size, status.st_mtime_ns)
    file = os.path.realpath(file)
    with _lock:
        if file in _open and _open[file][0] != stamp:
            _open.pop(file)[1].close()  # a file that was replaced is opened again
        if file not in _open:
            _open[file] = stamp, _open_environment(file, status.st_size)
        return _open[file][1]


def _close_in_child() -> None:
    """Close what the parent process has open: lmdb refuses to open it again."""
    if _lock.locked():  # by a thread that the child does not have
        _lock.release()
    for _, environment in _open.values():
        environment.close()
    _open.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _open_environment(file: str, size: int) -> Any:
    lmdb = _import_lmdb()
    try:
        environment = lmdb.open(
            file, subdir=False, readonly=True, lock=False, readahead=False
        )
        pages = environment.info()["last_pgno"] + 1
        expected = pages * environment.stat()["psize"]
    except lmdb.Error as error:
        raise UserError(
            f"{file!r} cannot be opened by lmdb ({error!s:.200}): expected the file of "
            "an LMDB environment. Copy it again."
        ) from error
    # Reading a page that is not there would kill the process with SIGBUS.
    if size < expected:
        environment.close()
        raise UserError(
            f"{file!r} is truncated: it has {size:,} bytes, expected {expected:,}. "
            "Copy it again."
        )
    return environment


def _keys(file: str) -> list[bytes]:
    """Return all keys, sorted; values are not read."""
    with _environment(file).begin() as transaction:
        return [bytes(key) for key in transaction.cursor().iternext(values=False)]


def _import_lmdb() -> ModuleType:
    try:
        import lmdb
    except ImportError as error:
        raise MissingPackageError(
            "LMDB sets need the package lmdb: pip install 'simmim_jax[arrays]'."
        ) from error
    return lmdb


# ---- The format ----------------------------------------------------------------------


def _data_file(place: str) -> str | None:
    """Return the file of an environment, None if a place is none."""
    if os.path.isdir(place):
        file = os.path.join(place, _DATA)
        return file if os.path.isfile(file) else None
    is_file = place.lower().endswith(_ENDINGS) and os.path.isfile(place)
    return place if is_file else None


def _environments(folder: str) -> dict[str, str]:
    """Return the files of the environments in a folder, by name."""
    if not os.path.isdir(folder):
        return {}
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(os.fsencode(entry.name)):
                return {}  # one of perhaps a million
            if is_folder(entry) or entry.name.lower().endswith(_ENDINGS):
                found[entry.name] = _data_file(entry.path)
    return {name: file for name, file in sorted(found.items()) if file}


def _find(place: str, split: str) -> tuple[str, str | None]:
    """Return the file of a split and the name of the split, None for a whole set."""
    if file := _data_file(place):
        return file, None
    found = _environments(place)
    splits = named_splits(list(found))
    name = find_split(split, place, splits.__contains__, list(splits))
    chosen = list(found) if name is None else splits[name]
    if len(chosen) > 1:
        raise UserError(
            f"{place!r} has the LMDB sets {', '.join(chosen)}: expected one for a "
            "split. Name one of them, or several as a list."
        )
    return found[chosen[0]], name


def _is_lmdb(place: str) -> bool:
    return _data_file(place) is not None or bool(_environments(place))


def _check_lmdb(place: str, split: str) -> None:
    _find(place, split)
    _import_lmdb()


FORMAT = Format(
    "an LMDB environment", _is_lmdb, _check_lmdb, open_lmdb, takes_max_bytes=True
)
