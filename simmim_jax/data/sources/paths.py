"""What the paths of images tell: which are images, their splits and their classes.

Paths are bytes, as the file system has them, relative to where a data set lies, with
"/" between folders; names that are not valid UTF-8 are paths like any other.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from simmim_jax.errors import NotFoundError, UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
SPLIT_FOLDERS = ("train", "validation", "val", "test")
# Of a set without splits, one image in 20 is for validation.
_VALIDATION_SHARE = 20
_ENDINGS = tuple(ending.encode() for ending in IMAGE_ENDINGS)


class Paths(Sequence[str]):
    """Paths in one block of bytes: half of a tuple of texts, and fast to pickle."""

    def __init__(self, paths: Sequence[bytes]):
        self.block = b"\0".join(paths)
        lengths = np.fromiter(map(len, paths), np.int64, len(paths))
        self.ends = np.cumsum(lengths + 1) - 1

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        index %= len(self)
        start = self.ends[index - 1] + 1 if index else 0
        return os.fsdecode(self.block[start : self.ends[index]])


def pack(paths: Sequence[bytes]) -> np.ndarray:
    """uint8[...] of many paths, for a file."""
    return np.frombuffer(b"\0".join(paths), np.uint8)


def unpack(block: np.ndarray) -> list[bytes]:
    """Return the paths of `pack`, of which there was at least one."""
    return block.tobytes().split(b"\0")


def is_image(name: bytes) -> bool:
    """Whether a file's name has the ending of an image; capitals do not matter."""
    return name.lower().endswith(_ENDINGS)


def is_hidden(name: bytes) -> bool:
    """Whether a file or folder is to be passed over."""
    return name.startswith(b".") or name == b"lost+found"  # of every Linux disk


def no_images(place: str) -> FileNotFoundError:
    """Return the error for a place where images were expected."""
    return FileNotFoundError(
        f"{place!r} has no images: expected {'/'.join(IMAGE_ENDINGS)} files in it or "
        "in class folders."
    )


# ---- Splits --------------------------------------------------------------------------


def find_split(
    split: str,
    place: str,
    exists: Callable[[str], bool],
    known: Sequence[str] = SPLIT_FOLDERS,
) -> str | None:
    """Return the split folder to read, None if `place` is to be divided by rule.

    exists: whether there is a folder of that name in `place`; known: names of splits.
    raises: FileNotFoundError if only other splits have folders, ValueError for a split
    that no rule makes.
    """
    names = ("validation", "val") if split in ("validation", "val") else (split,)
    for name in names:
        if exists(name):
            return name
    present = [name for name in known if exists(name)]
    if present:
        raise NotFoundError(
            f"split={split!r} of {place!r} is not there: found "
            f"{', '.join(present)}. Make a folder {names[0]}/ "
            f"(among shards {names[0]}-*.tar, in a manifest rows of that split), name "
            "another one in config.data.train_split or eval_split, or give data "
            f"without splits to have one image in {_VALIDATION_SHARE} set aside for "
            "validation."
        )
    if split not in ("train", "validation", "val"):
        raise UserError(
            f"split={split!r} of {place!r} does not exist: expected train or "
            "validation for data without splits. Make a folder "
            f"{split}/ (in a manifest rows of that split) for another one; slices such "
            "as train[:10%] are for TFDS sets."
        )
    return None


def by_rule(paths: Sequence[bytes], split: str, place: str) -> np.ndarray:
    """int[m]: the images of a split of a set that has none.

    Those whose path hashes into one part in 20 are for validation, and the one with
    the smallest hash, so that there is always one: new images move none of the others.
    raises: FileNotFoundError if a single image leaves none to train on.
    """
    hashes = np.array(
        [
            int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "big")
            for path in paths
        ],
        np.uint64,
    )
    held_out = (hashes < 2**64 // _VALIDATION_SHARE) | (hashes == hashes.min())
    chosen = np.flatnonzero(held_out if split != "train" else ~held_out)
    if not len(chosen):
        raise NotFoundError(
            f"{place!r} has a single image, which is in the validation split: "
            "expected at least two."
        )
    return chosen


def split_paths(
    paths: Sequence[bytes], split: str
) -> tuple[list[bytes], list[str | None]] | None:
    """Return paths below their split folders, and which these are; None without any.

    split: another name to look for. A path outside of split folders becomes empty.
    """
    folders = {os.fsencode(name) for name in (*SPLIT_FOLDERS, split)}
    parts = [path.partition(b"/") for path in paths]
    if not any(top in folders for top, _, _ in parts):
        return None
    return (
        [rest if top in folders else b"" for top, _, rest in parts],
        [os.fsdecode(top) if top in folders else None for top, _, _ in parts],
    )


# ---- Classes -------------------------------------------------------------------------


def class_folders(paths: Iterable[bytes]) -> list[bytes] | None:
    """Return the first folder of each path, None if one lies in no folder."""
    folders = []
    for path in paths:
        folder, slash, _ = path.partition(b"/")
        if not slash:
            return None
        folders.append(folder)
    return folders


def number(folders: Sequence[bytes], class_names: Sequence[str]) -> np.ndarray:
    """int32[n]: the label of each class folder."""
    label = {os.fsencode(name): i for i, name in enumerate(class_names)}
    return np.array([label[folder] for folder in folders], np.int32)


def name_classes(
    paths: Sequence[bytes], chosen: np.ndarray
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Label int32[m] the chosen images by class folder; classes are those of all."""
    folders = class_folders(paths[i] for i in chosen)
    if folders is None:
        return None, ()
    names = {path.partition(b"/")[0] for path in paths if b"/" in path}
    class_names = sorted(map(os.fsdecode, names))
    return number(folders, class_names), tuple(class_names)
