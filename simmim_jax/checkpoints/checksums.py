"""Checksums of a checkpoint's files: written at save, verified before use.

`checksums.json` has the size and SHA-256 of every file of its folder, and the SHA-256
of this list: a name that changed would leave a file unverified. Left out is what is
written later: the metrics, whose folder has checksums of its own, and the two files
that Orbax writes to commit a checkpoint, whose content it does not use.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from simmim_jax.errors import UserError

FILE = "checksums.json"
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt", FILE)
# Hashing releases the interpreter lock.
_THREADS = 4


class DamagedError(UserError):
    """A checkpoint that is not what was written."""


def write(folder: Path) -> None:
    """Write the checksums of a folder's files."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in _LATER
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(lambda name: _digest(folder / name), names)
        files = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in zip(names, digests, strict=True)
        }
    partial = folder / f"{FILE}.tmp"
    content = {"files": files, "sha256": _digest_of_list(files)}
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(folder / FILE)


def exist(folder: Path) -> bool:
    """Return whether a folder has checksums; checkpoints of older releases do not."""
    return (folder / FILE).exists()


def verify(folder: Path, items: Collection[str] = ()) -> None:
    """Raise DamagedError where a file of a folder is not what was written.

    items: subfolders to verify, which must exist; the whole folder if empty.
    """
    try:
        content = json.loads((folder / FILE).read_text())
        files = content["files"]
        entries = [(n, int(e["bytes"]), str(e["sha256"])) for n, e in files.items()]
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{FILE} cannot be read") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise DamagedError(
            f"{FILE} does not list files with bytes and sha256"
        ) from error
    # The first ones had files alone.
    if content.keys() != {"files"} and content.get("sha256") != _digest_of_list(files):
        raise DamagedError(f"{FILE} does not match its own checksum")
    listed = {name.split("/")[0] for name, _, _ in entries}
    if missing := sorted(set(items) - listed):
        raise DamagedError(f"{FILE} does not list {missing[0]}/")
    chosen = [e for e in entries if not items or e[0].split("/")[0] in items]
    with ThreadPoolExecutor(_THREADS) as pool:
        for problem in pool.map(lambda entry: _problem(folder, *entry), chosen):
            if problem:
                raise DamagedError(problem)


def _problem(folder: Path, name: str, size: int, digest: str) -> str:
    file = folder / name
    try:
        if not file.is_file():  # do not wait for a device or pipe
            return f"{name} is missing"
        if (found := file.stat().st_size) != size:
            return f"{name} has {found:,} bytes, expected {size:,}"
        if _digest(file) != digest:
            return f"{name} does not match its checksum"
    except (OSError, ValueError) as error:
        return f"{name!r} cannot be read: {error}"
    return ""


def _digest_of_list(files: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
