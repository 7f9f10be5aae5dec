"""Rules for the paths of a data set: which files are images, splits and classes.

Paths are bytes, as the file system has them, relative to the data set, with "/" between
folders. Names that are not valid UTF-8 are valid paths.
"""

import collections
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from simmim_jax.data.sources.endings import count_endings, ways_in
from simmim_jax.errors import NotFoundError, UserError

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".dcm"),
)
ARRAY_ENDINGS = (".npy",)
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
TRAIN, VALIDATION = "train", "validation"
# Every image of a data set that is not divided into splits.
ALL = "all"
SPLIT_FOLDERS = (TRAIN, VALIDATION, "val", "test")
# By the words that mean them.
_SPLIT_WORDS = {
    word: split
    for split, words in {
        TRAIN: ("train", "training"),
        "validation": ("validation", "valid", "val", "dev"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for word in words
}
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}\b.*")
# Without splits, one image in 20 is held out for validation.
_VALIDATION_SHARE = 20
_IMAGE_ENDINGS = tuple(ending.encode() for ending in IMAGE_ENDINGS)
_ARRAY_ENDINGS = tuple(ending.encode() for ending in ARRAY_ENDINGS)
_AUDIO_ENDINGS = tuple(ending.encode() for ending in AUDIO_ENDINGS)
# Endings that an error lists, the most frequent ones.
_LISTED_ENDINGS = 4
_LISTED_CLASSES = 6
# What to do about a split that does not exist.
NAME_A_SPLIT = (
    "Name it in --config.data.train_split or --config.data.eval_split (simmim pack: "
    "--splits)."
)


class Paths(Sequence[str]):
    """Paths in one block of bytes: half the size of a tuple of str, fast to pickle."""

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
    """Return paths as uint8 [...], to be stored in a file."""
    return np.frombuffer(b"\0".join(paths), np.uint8)


def unpack(block: np.ndarray) -> list[bytes]:
    """Return the paths that `pack` was given, at least one."""
    return block.tobytes().split(b"\0")


def printable(path: str) -> str:
    """Return a path as valid Unicode: names of files need not be."""
    return path.encode("utf-8", "backslashreplace").decode()


def is_image(name: bytes) -> bool:
    """Whether a file name has the ending of an image, in any case."""
    return name.lower().endswith(_IMAGE_ENDINGS)


def is_array(name: bytes) -> bool:
    """Whether a file name has the ending of a NumPy array, in any case."""
    return name.lower().endswith(_ARRAY_ENDINGS)


def is_audio(name: bytes) -> bool:
    """Whether a file name has the ending of a sound, in any case."""
    return name.lower().endswith(_AUDIO_ENDINGS)


def is_hidden(name: bytes) -> bool:
    """Whether to skip a file or folder of this name."""
    return name.startswith(b".") or name == b"lost+found"  # at the root of Linux disks


def no_images(
    place: str, others: Iterable[bytes] = (), endings: Sequence[str] = IMAGE_ENDINGS
) -> NotFoundError:
    """Return the error for a place without the files that were expected.

    others: names of the files that it has; endings: those of the expected files.
    """
    named = {IMAGE_ENDINGS: "images", AUDIO_ENDINGS: "sounds"}
    what = named.get(tuple(endings), "arrays")
    text = (
        f"{place!r} has no {what}: expected {'/'.join(endings)} files in it or in "
        "class folders."
    )
    counts = count_endings(others)
    if counts:
        most = list(counts.items())[:_LISTED_ENDINGS]
        listed = ", ".join(f"{count:,} {ending}" for ending, count in most)
        more = ", and others" if len(counts) > len(most) else ""
        text += f" It has {listed}{more}.{ways_in(counts)}"
    if what == "images" and any(ending in counts for ending in ARRAY_ENDINGS):
        text += (
            " For .npy arrays, name a local folder that has arrays and no images, or a "
            "local .npy file [n, h, w, c]."
        )
    return NotFoundError(text)


# ---- Splits --------------------------------------------------------------------------


def find_split(
    split: str,
    place: str,
    exists: Callable[[str], bool],
    known: Sequence[str] = SPLIT_FOLDERS,
) -> str | None:
    """Return the split folder to read, or None if `hashed_split` divides the images.

    exists: whether `place` has a folder of that name; known: names of splits.
    raises: NotFoundError if `place` has folders of other splits alone, UserError for a
    split that `hashed_split` does not make.
    """
    present = [name for name in known if exists(name)]
    if split == ALL and not present:
        return None  # a folder "all" is no split
    names = ("validation", "val") if split in ("validation", "val") else (split,)
    for name in names:
        if exists(name):
            return name
    if present:
        raise NotFoundError(
            f"split={split!r} of {place!r} does not exist: found "
            f"{', '.join(present)}. Make a folder {names[0]}/ "
            f"(shards: {names[0]}-*.tar, a manifest: rows of that split), name another "
            "split in config.data.train_split or eval_split, or use data without "
            f"splits, of which one image in {_VALIDATION_SHARE} is held out for "
            "validation."
        )
    if split not in ("train", "validation", "val"):
        raise UserError(
            f"split={split!r} of {place!r} does not exist: expected train, validation "
            "or all for data without splits. Make a folder "
            f"{split}/ (a manifest: rows of that split) for another one; slices such "
            "as train[:10%] are for TFDS sets."
        )
    return None


def split_of(name: str) -> str:
    """Return the split that the last word that means one says, "" without any."""
    words = re.findall("[a-z]+", name.lower())
    return next((_SPLIT_WORDS[w] for w in reversed(words) if w in _SPLIT_WORDS), "")


def named_splits(files: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split, {} if the name of one does not tell.

    It is the last word of the path that `datasets` 5.2.0 takes for a split, or else the
    word in front of -00000-of-00002 where several differ.
    """
    found: dict[str, list[str]] = collections.defaultdict(list)
    for file in files:
        split = split_of(file)
        if shard := _SHARD.fullmatch(file.rpartition("/")[2]):
            split = _SPLIT_WORDS.get(shard[1].lower(), split or shard[1])
        found[split].append(file)
    is_one_set = len(found) == 1 and not found.keys() & {*_SPLIT_WORDS.values()}
    return {} if is_one_set or "" in found else dict(found)


def hashed_split(paths: Sequence[bytes], split: str, place: str) -> np.ndarray:
    """Return int [m]: the images of a split of a data set without splits.

    The validation split has every image whose path hashes into one part in 20, and the
    image with the smallest hash, so that it is never empty. New images do not move
    others between splits. `ALL` has all images.
    raises: NotFoundError if there is a single image, which leaves none to train on.
    """
    if split == ALL:
        return np.arange(len(paths))
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
            "expected at least two. Add images, or make folders train/ and validation/."
        )
    return chosen


def split_paths(
    paths: Sequence[bytes], split: str
) -> tuple[list[bytes], list[str | None]] | None:
    """Return paths below their split folders, and the names of these folders.

    split: name of a folder to look for beside the usual ones. A path outside of all
    split folders becomes empty. Returns None if there are no split folders.
    """
    folders = {os.fsencode(name) for name in {*SPLIT_FOLDERS, split} - {ALL}}
    parts = [path.partition(b"/") for path in paths]
    if not any(top in folders for top, _, _ in parts):
        return None
    return (
        [rest if top in folders else b"" for top, _, rest in parts],
        [os.fsdecode(top) if top in folders else None for top, _, _ in parts],
    )


# ---- Classes -------------------------------------------------------------------------


def class_folders(paths: Iterable[bytes]) -> list[bytes] | None:
    """Return the first folder of each path, None if a path has no folder."""
    folders = []
    for path in paths:
        folder, slash, _ = path.partition(b"/")
        if not slash:
            return None
        folders.append(folder)
    return folders


def folder_labels(folders: Sequence[bytes], class_names: Sequence[str]) -> np.ndarray:
    """Return the label of each class folder, int32 [n]."""
    label = {os.fsencode(name): i for i, name in enumerate(class_names)}
    return np.array([label[folder] for folder in folders], np.int32)


class Classes(NamedTuple):
    """Labels int32 [n] or None, the names of all classes, and `unlabelled`.

    unlabelled: why there are no labels, if that may be a mistake.
    """

    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    unlabelled: str = ""


def label_by_folder(
    paths: Sequence[bytes], chosen: np.ndarray, split: str | None, place: str
) -> Classes:
    """Return the classes of the chosen paths; other paths also name classes.

    split: the split folder that they are in, None without split folders.
    """
    mine = [paths[i] for i in chosen]
    folders = class_folders(mine)
    if folders is None:
        return Classes(unlabelled=stray_image(mine, place))
    names = {path.partition(b"/")[0] for path in paths if b"/" in path}
    class_names = sorted(map(os.fsdecode, names))
    lacking = sorted(map(os.fsdecode, names - set(folders)))
    if lacking and split == TRAIN:
        return Classes(unlabelled=nothing_to_learn_from(lacking, place))
    return Classes(folder_labels(folders, class_names), tuple(class_names))


def nothing_to_learn_from(
    lacking: Sequence[str], place: str, expected: str = "images"
) -> str:
    """Return why a training split is unlabelled that lacks images of some classes.

    lacking: their names or folders; expected: what each of them needs.
    """
    more = ", ..." if len(lacking) > _LISTED_CLASSES else ""
    return (
        f"{place!r} has classes without images to train on: "
        f"{', '.join(lacking[:_LISTED_CLASSES])}{more}. Expected {expected} of each "
        "class in the training split: add some, or remove the class from all splits."
    )


def stray_image(paths: Sequence[bytes], place: str) -> str:
    """Return why images are unlabelled of which only some are in class folders."""
    if not any(b"/" in path for path in paths):
        return ""
    stray = next(os.fsdecode(path) for path in paths if b"/" not in path)
    return (
        f"{os.path.join(place, stray)!r} is in no class folder, but other images are: "
        "move it into one, or remove it."
    )
