"""What a target is: one kind of file, valid examples of it, and its reader."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from simmim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of file that the package reads.

    make(folder): writes valid files, one sub-folder for each seed; read(seed): reads a
    seed's folder as the package does, asserts that what it returns is right, and raises
    one of `refusals` for a damaged file; damaged: glob of the files to damage; whole:
    whether the reader also writes, so that every case needs all files again.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], None]
    damaged: str = "*"
    refusals: tuple[type[Exception], ...] = (UserError,)
    whole: bool = False


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder, and the folders that their names have."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
