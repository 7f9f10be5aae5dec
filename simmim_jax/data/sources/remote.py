"""Files by path or URL; fsspec reads URLs."""

import errno
import os
from collections.abc import Callable
from typing import IO

from simmim_jax.data.sources.paths import is_hidden
from simmim_jax.errors import UserError


def is_url(path: str) -> bool:
    """Whether a path is a URL such as gs://bucket/folder."""
    return "://" in path


def check_url(url: str) -> None:
    """Raise UserError if no installed package reads such URLs."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url!r} cannot be read: {error}. Install what fsspec needs for "
            f"{protocol}:// (gs: pip install gcsfs, s3: pip install s3fs), or mount "
            "the bucket (Cloud Storage: gcsfuse) and name its folder."
        ) from error


def open_file(path: str) -> IO[bytes]:
    """Open a file for reading bytes."""
    if not is_url(path):
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def read_file(path: str) -> bytes:
    """Read a whole file, with one request if it is remote.

    raises: OSError, for every file system.
    """
    if not is_url(path):
        with open(path, "rb") as file:
            return file.read()
    import fsspec

    # fsspec keeps one instance per process: sources need not pickle it.
    files, name = fsspec.core.url_to_fs(path)
    try:
        return files.cat_file(name)
    except OSError:
        raise
    except Exception as error:  # gcsfs and aiohttp have their own types
        raise OSError(errno.EIO, str(error), path) from error


def list_url(url: str, wanted: Callable[[bytes], bool]) -> list[bytes]:
    """Return the sorted paths of all wanted files under a URL, relative to it."""
    import fsspec

    files, root = fsspec.core.url_to_fs(url)
    names = [os.fsencode(os.path.relpath(name, root)) for name in files.find(root)]
    return sorted(
        name
        for name in names
        if wanted(name) and not any(map(is_hidden, name.split(b"/")))
    )
