"""Folders of images, and of MNIST-like idx files."""

import dataclasses
import gzip
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from simmim_jax.data.source import NO_LABEL, ArraySource, Source

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SPLIT_FOLDERS = ("train", "validation", "val", "test")
# Of a folder without split folders, one image in 20 is for validation.
_VALIDATION_SHARE = 20


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files under `root`: paths are relative to it, labels int[n] or None."""

    root: str
    paths: tuple[str, ...] = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        path = os.path.join(self.root, self.paths[index])
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        with open(path, "rb") as file:
            return {"image": file.read(), "label": label, "path": path}


def open_folder(folder: str, split: str) -> Source:
    """Open one split of a folder; see `open_source` for how it may be laid out."""
    if _is_idx_folder(folder):
        return open_idx(folder, split)
    return _open_images(folder, split)


def check_folder(folder: str, split: str) -> None:
    """Raise what `open_folder` would if there is no data; looks for the first image."""
    if _is_idx_folder(folder):
        _idx_paths(folder, split)
        return
    root, _ = _split_folder(folder, split)
    if not any(True for _ in _walk_images(root)):
        raise _no_images(root)


def subfolders(folder: str) -> list[str]:
    """Names of the folders in a folder, unsorted; none if it does not exist."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]


# ---- Images --------------------------------------------------------------------------


def _walk_images(root: str) -> Iterator[str]:
    """Yield the paths of all images under root, relative to it, in the disk's order."""
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(_EXTENSIONS) and not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root)


def _no_images(root: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{root!r} has no images: expected {'/'.join(_EXTENSIONS)} files in it or in "
        "class folders."
    )


def _split_folder(root: str, split: str) -> tuple[str, bool]:
    """Return the folder to read, and whether it has to be divided by rule."""
    names = ("validation", "val") if split in ("validation", "val") else (split,)
    for name in names:
        if os.path.isdir(os.path.join(root, name)):
            return os.path.join(root, name), False
    present = [n for n in _SPLIT_FOLDERS if os.path.isdir(os.path.join(root, n))]
    if present:
        raise FileNotFoundError(
            f"split={split!r} of {root!r} has no folder: found "
            f"{', '.join(f'{name}/' for name in present)}. Make the folder "
            f"{names[0]}/, or give a folder without split folders to have one image "
            f"in {_VALIDATION_SHARE} set aside for validation."
        )
    if split not in ("train", "validation", "val"):
        raise ValueError(
            f"split={split!r} of {root!r} does not exist: expected train or validation "
            f"for a folder without split folders. Make a folder {split}/ in it for "
            "another one; slices such as train[:10%] are for TFDS sets."
        )
    return root, True


def _open_images(root: str, split: str) -> FolderSource:
    folder, by_rule = _split_folder(root, split)
    paths = sorted(_walk_images(folder))
    if not paths:
        raise _no_images(folder)
    labelled = all(os.sep in path for path in paths)
    if labelled:
        # The classes of all splits together, lest a class that is missing in
        # one of them shifts its labels.
        siblings = (
            [folder] if by_rule else [os.path.join(root, s) for s in _SPLIT_FOLDERS]
        )
        class_names = sorted({name for path in siblings for name in subfolders(path)})
        empty = set(class_names) - {path.split(os.sep, 1)[0] for path in paths}
        if empty and (by_rule or split == "train"):
            raise ValueError(
                f"{folder!r} has class folders without images to learn from: "
                f"{', '.join(sorted(empty))}. Expected {'/'.join(_EXTENSIONS)} files "
                "in them: convert other formats, or remove the folders."
            )
    else:
        class_names = []
    if by_rule:
        held_out = _held_out(paths)
        wanted = held_out if split != "train" else ~held_out
        paths = [path for path, chosen in zip(paths, wanted, strict=True) if chosen]
        if not paths:
            raise FileNotFoundError(
                f"{root!r} has a single image, which is in the validation split: "
                "expected at least two."
            )
    labels = None
    if labelled:
        index = {name: i for i, name in enumerate(class_names)}
        labels = np.array([index[p.split(os.sep, 1)[0]] for p in paths], np.int32)
    return FolderSource(folder, tuple(paths), labels, tuple(class_names))


def _held_out(paths: list[str]) -> np.ndarray:
    """bool[n]: which images of a folder without split folders are for validation."""
    hashes = np.array(
        [
            int.from_bytes(hashlib.blake2b(p.encode(), digest_size=8).digest(), "big")
            for p in (path.replace(os.sep, "/") for path in paths)
        ],
        np.uint64,
    )
    return (hashes < 2**64 // _VALIDATION_SHARE) | (hashes == hashes.min())


# ---- MNIST-like idx files ------------------------------------------------------------


def _is_idx_folder(folder: str) -> bool:
    return any(
        os.path.exists(os.path.join(folder, f"{part}-images-idx3-ubyte{gz}"))
        for part in ("train", "t10k")
        for gz in (".gz", "")
    )


def _idx_paths(folder: str, split: str) -> tuple[str, str]:
    """Return the paths of the images and the labels of a split."""
    part = {"train": "train", "validation": "t10k", "test": "t10k"}.get(split)
    if part is None:
        raise ValueError(
            f"split={split!r} of the idx files in {folder!r} does not exist: expected "
            "train (train-*) or validation or test (both t10k-*)."
        )
    paths = []
    for content in ("images-idx3", "labels-idx1"):
        path = os.path.join(folder, f"{part}-{content}-ubyte")
        existing = [p for p in (f"{path}.gz", path) if os.path.exists(p)]
        if not existing:
            raise FileNotFoundError(
                f"{path}.gz does not exist: split={split!r} needs it. Copy it there."
            )
        paths.append(existing[0])
    return paths[0], paths[1]


def open_idx(folder: str, split: str) -> ArraySource:
    """Read one split: "train" is train-*, "validation" and "test" are t10k-*."""
    images_path, labels_path = _idx_paths(folder, split)
    images = _read_idx(images_path)[..., None]
    labels = _read_idx(labels_path).astype(np.int32)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path!r} has {len(images)} images but {labels_path!r} has "
            f"{len(labels)} labels: expected equally many. Download both again."
        )
    return ArraySource(images, labels, tuple(map(str, range(labels.max() + 1))))


def _read_idx(path: str) -> np.ndarray:
    """Read uint8[...] (format: http://yann.lecun.com/exdb/mnist, at the end)."""
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
        data = file.read()
    # Two zero bytes, 8 = uint8, the number of axes, then their sizes in big-endian.
    if data[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path!r} starts with {data[:4]!r}: expected an idx file of uint8, "
            "00 00 08 and the number of axes. Download it again."
        )
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
