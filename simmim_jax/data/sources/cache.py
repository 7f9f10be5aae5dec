"""What takes long to find out, kept between runs in ~/.cache/simmim_jax.

Indexes of large data sets are in indexes/, unpacked arrays in arrays/. $XDG_CACHE_HOME
replaces ~/.cache. The files contain arrays and are never unpickled. A file that is
missing, corrupt or cannot be written only costs time.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection
from typing import IO

import numpy as np

# Indexing smaller data sets takes milliseconds and is not worth a file.
_MIN_IMAGES = 1000


def load(key: str, names: Collection[str]) -> dict[str, np.ndarray] | None:
    """Return the arrays of these names saved under `key`, None if they cannot be read.

    Checksums are verified: what can be read is what was saved.
    """
    try:
        with np.load(_file(key), allow_pickle=False) as arrays:
            if arrays.zip.testzip() is not None:
                return None
            # NumPy returns members that are no arrays as bytes.
            found = {name: arrays[name] for name in names}
            are_arrays = all(isinstance(x, np.ndarray) for x in found.values())
            return found if are_arrays else None
    except Exception:  # zipfile, zlib and NumPy raise exceptions of many types
        return None


def save(key: str, num_images: int, arrays: dict[str, np.ndarray]) -> None:
    """Save the index of `num_images` images, if it is worth it and possible."""
    if num_images < _MIN_IMAGES:
        return
    _write(_file(key), lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def mapped(key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array kept under `key`, memory-mapped; it is made if there is none.

    Where it cannot be written, the array that `make` returns is in memory.
    """
    path = _file(key, "arrays", ".npy")
    with contextlib.suppress(OSError, ValueError):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    array = make()
    _write(path, lambda file: np.save(file, array))
    with contextlib.suppress(OSError, ValueError):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _write(path: str, write: Callable[[IO[bytes]], None]) -> None:
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Renamed when complete: neither a reader nor another run sees half a file.
        descriptor, part = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".part")
        try:
            with open(descriptor, "wb") as file:
                write(file)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise


def _file(key: str, kind: str = "indexes", ending: str = ".npz") -> str:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.blake2b(os.fsencode(key), digest_size=16).hexdigest()
    return os.path.join(folder, "simmim_jax", kind, name + ending)
