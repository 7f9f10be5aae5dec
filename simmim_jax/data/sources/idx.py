"""Folders of four idx files, as MNIST has them."""

import gzip
import math
import os
import struct
import zlib

import numpy as np

from simmim_jax.data.sources.base import ArraySource, numbered_classes
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import NAME_A_SPLIT
from simmim_jax.errors import NotFoundError, UserError


def is_idx_folder(folder: str) -> bool:
    """Whether a folder has the images of a split in an idx file."""
    return os.path.isdir(folder) and any(
        os.path.exists(os.path.join(folder, f"{part}-images-idx3-ubyte{gz}"))
        for part in ("train", "t10k")
        for gz in (".gz", "")
    )


def idx_paths(folder: str, split: str) -> tuple[str, str]:
    """Return the paths of the images and the labels of a split.

    raises: UserError for a split, NotFoundError for a file that does not exist.
    """
    part = {"train": "train", "validation": "t10k", "test": "t10k"}.get(split)
    if part is None:
        raise UserError(
            f"split={split!r} of the idx files in {folder!r} does not exist: expected "
            f"train (train-*) or validation or test (both t10k-*). {NAME_A_SPLIT}"
        )
    paths = []
    for content in ("images-idx3", "labels-idx1"):
        path = os.path.join(folder, f"{part}-{content}-ubyte")
        existing = [p for p in (f"{path}.gz", path) if os.path.exists(p)]
        if not existing:
            raise NotFoundError(
                f"{path}.gz does not exist: split={split!r} needs it. Copy it there, "
                "or use another split."
            )
        paths.append(existing[0])
    return paths[0], paths[1]


def open_idx(folder: str, split: str) -> ArraySource:
    """Read one split: train-* for "train", t10k-* for "validation" and "test"."""
    images_path, labels_path = idx_paths(folder, split)
    images = _read_idx(images_path, 3)[..., None]
    labels = _read_idx(labels_path, 1).astype(np.int32)
    if len(images) != len(labels):
        raise UserError(
            f"{images_path!r} has {len(images)} images but {labels_path!r} has "
            f"{len(labels)} labels: expected equally many. Download both again."
        )
    return ArraySource(images, labels, numbered_classes(labels))


def _read_idx(path: str, num_axes: int) -> np.ndarray:
    """Read uint8 [...] (format: end of http://yann.lecun.com/exdb/mnist)."""
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            data = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path!r} is not a complete gzip file ({error}): expected an idx file, "
            "compressed. Download it again."
        ) from error
    # Two zero bytes, 8 for uint8, the number of axes, then their sizes in big-endian.
    header = struct.Struct(f">4s{num_axes}I")
    start = bytes((0, 0, 8, num_axes))
    if not data.startswith(start) or len(data) < header.size:
        raise UserError(
            f"{path!r} starts with {data[:4]!r}: expected an idx file of uint8, "
            f"{start.hex(' ')} and the sizes of {num_axes} axes. Download it again."
        )
    _, *shape = header.unpack_from(data)
    if len(data) - header.size != math.prod(shape):
        raise UserError(
            f"{path!r} has {len(data) - header.size:,} bytes of values: expected "
            f"{math.prod(shape):,} for the shape {shape}. Download it again."
        )
    return np.frombuffer(data, np.uint8, offset=header.size).reshape(shape)


def _check_idx(folder: str, split: str) -> None:
    idx_paths(folder, split)


FORMAT = Format("a folder of idx files", is_idx_folder, _check_idx, open_idx)
