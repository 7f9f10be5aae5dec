"""Indexes of large data sets, kept between runs in ~/.cache/simmim_jax/indexes.

$XDG_CACHE_HOME takes the place of ~/.cache. Files are arrays alone and never unpickled;
whatever is missing, broken or cannot be written costs time, nothing else.
"""

import contextlib
import hashlib
import os
import tempfile
import zipfile

import numpy as np

# Smaller sets are indexed in some milliseconds, and would only leave files behind.
_MIN_IMAGES = 1000


def load(key: str) -> dict[str, np.ndarray] | None:
    """Return what was saved under `key`, None if there is nothing to be read."""
    try:
        with np.load(_file(key), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def save(key: str, num_images: int, arrays: dict[str, np.ndarray]) -> None:
    """Keep the index of so many images if that is worth it and can be done."""
    if num_images < _MIN_IMAGES:
        return
    path = _file(key)
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # A file of its own that then takes the place: a reader, or another run that
        # does the same, never sees half of it.
        descriptor, part = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".part")
        try:
            with open(descriptor, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise


def _file(key: str) -> str:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.blake2b(os.fsencode(key), digest_size=16).hexdigest()
    return os.path.join(folder, "simmim_jax", "indexes", f"{name}.npz")
