"""Files by path or URL; fsspec reads URLs."""

import errno
import os
import stat
from collections.abc import Callable
from typing import IO, Any

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources.paths import is_hidden
from simmim_jax.errors import UserError

# Largest file of an image, unless a config says otherwise [bytes].
MAX_BYTES = 256_000_000
_HTTP = ("http://", "https://")
# Protocols that read the bytes of the file that a URL names, with the rights of the
# user, and nothing else. fsspec has others that follow what a file says (reference),
# open one file through another (zip, simplecache) or start programs (ssh, git); a list
# of images from elsewhere must not choose those.
PROTOCOLS = (
    *("https", "http"),
    *("gs", "gcs"),
    *("s3", "s3a"),
    *("az", "abfs", "abfss"),
    *("hf", "memory"),
)


def is_url(path: str) -> bool:
    """Whether a path is a URL such as gs://bucket/folder."""
    return "://" in path


def check_url(url: str) -> None:
    """Raise UserError unless `url` has one of `PROTOCOLS`, and a package reads it."""
    protocol = url.partition("://")[0]
    if "::" in url or protocol not in PROTOCOLS:
        what = "a chain of URLs" if "::" in url else f"a URL of {protocol}://"
        listed = ", ".join(f"{each}://" for each in PROTOCOLS)
        raise UserError(
            f"{url!r} is {what}: expected one of {listed}, without '::'. Name a local "
            "file by its path; copy other files here, or mount their file system."
        )
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url!r} cannot be read: {error}. Install what fsspec needs for "
            f"{protocol}:// (gs: pip install gcsfs, s3: pip install s3fs, "
            "https: pip install aiohttp), or mount "
            "the bucket (Cloud Storage: gcsfuse) and name its folder."
        ) from error


def open_file(path: str) -> IO[bytes]:
    """Open a file for reading bytes.

    raises: UserError for a URL that cannot be read.
    """
    if not is_url(path):
        return open(path, "rb")
    files, name = _file_system(path)
    try:
        return files.open(name, "rb")
    except OSError:
        raise
    except Exception as error:  # gcsfs and aiohttp have their own types
        raise UserError(
            f"{path!r} cannot be read: {error}. Check the address and your "
            "credentials, or copy the file here."
        ) from error


def read_file(path: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a whole file, with one request if it is remote.

    raises: OSError, for every file system; BadImage if it has more than `max_bytes`.
    """
    data = _read_url(path, max_bytes) if is_url(path) else _read(path, max_bytes)
    if data is None or len(data) > max_bytes:
        error = file_too_large("The file", max_bytes)
        error.filename = path
        raise error
    return data


def file_too_large(what: str, max_bytes: int) -> BadImage:
    """Return the error for a file that is not read; what: its name."""
    megabytes = f"{max_bytes / 1e6:,g}"
    return BadImage(
        "too large",
        f"{what} has more than {megabytes} MB, which is max_file_mb. Raise "
        "--config.data.max_file_mb (simmim pack: --max_file_mb), or shrink it.",
    )


def _read(path: str, max_bytes: int) -> bytes | None:
    """Return a local file; None if it is too large."""
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
        return None if status.st_size > max_bytes else file.read()


def _open_at_once(path: str, flags: int) -> int:
    # A pipe would wait for a writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_url(url: str, max_bytes: int) -> bytes:
    try:
        files, name = _file_system(url)
        if not url.startswith(_HTTP):
            return files.cat_file(name, end=max_bytes + 1)
        # A server that knows no ranges sends the whole file: leave the rest unread.
        data = bytearray()
        with files.open(name, "rb", block_size=0) as file:
            while part := file.read(max_bytes + 1 - len(data)):
                data += part
        return bytes(data)
    except OSError:
        raise
    except Exception as error:  # gcsfs and aiohttp have their own types
        raise OSError(errno.EIO, str(error), url) from error


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the name of its file there."""
    check_url(url)
    import fsspec

    # fsspec keeps one instance per process: sources need not pickle it.
    return fsspec.core.url_to_fs(url)


def list_url(url: str, wanted: Callable[[bytes], bool]) -> list[bytes]:
    """Return the sorted paths of all wanted files under a URL, relative to it.

    raises: UserError if it cannot be listed.
    """
    try:
        files, root = _file_system(url)
        names = [os.fsencode(os.path.relpath(name, root)) for name in files.find(root)]
    except UserError:
        raise
    except Exception as error:  # gcsfs and aiohttp have their own types
        raise UserError(
            f"{url!r} cannot be listed: {error}. Check the address and your "
            "credentials, or name a list of its files (.csv) instead."
        ) from error
    return sorted(
        name
        for name in names
        if wanted(name) and not any(map(is_hidden, name.split(b"/")))
    )
