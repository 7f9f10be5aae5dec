"""Disk space: checked before a run, and named when writing fails. Without JAX."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from simmim_jax.errors import StorageError, UserError

# The disk, the user's quota or the largest allowed file is full.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
# What a checkpoint that cannot be written is reported by: a folder, in any exception.
_UNFINISHED = ".orbax-checkpoint-tmp"


def make_workdir(path: str | Path) -> Path:
    """Create a folder and return its absolute path.

    raises: StorageError if it cannot be written to.
    """
    workdir = Path(path).expanduser().absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            return workdir
    except OSError as error:
        raise StorageError(
            f"'{workdir}' cannot be written to: {error.strerror}. Expected a folder "
            "for checkpoints and metrics: choose another --workdir."
        ) from error


def check(workdir: Path, each: int, keep: int) -> str:
    """Return what a checkpoint takes, for the log; each: its size [bytes].

    raises: StorageError unless the last `keep`, the best and the one that is being
    written fit beside each other.
    """
    free = _free(workdir)
    there = _used(workdir / "checkpoints")
    needed = (keep + 2) * each
    if needed > free + there:
        raise StorageError(
            f"'{workdir}' has {_text(free)} free, but {keep + 2} checkpoints of "
            f"{_text(each)} need {_text(needed - there)} more: "
            f"config.keep_checkpoints={keep}, the best and the one that is being "
            "written. Free some space, keep fewer, or choose another --workdir."
        )
    return f"a checkpoint takes {_text(each)}; {_text(free)} are free"


@contextlib.contextmanager
def explained(workdir: Path, each: int) -> Iterator[None]:
    """Raise StorageError, a sentence, where the workdir cannot be written to.

    each: the size of a checkpoint [bytes]. A UserError, which has its own, passes.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (reason := _reason(error, workdir)):
            raise
        raise StorageError(
            f"'{workdir}' cannot be written to: {reason}. A checkpoint needs "
            f"{_text(each)}, and {_text(_free(workdir))} are free. Last good "
            f"checkpoint: {_newest(workdir)}. The same command resumes from it once "
            "the folder can be written to."
        ) from error


def _reason(error: BaseException | None, workdir: Path) -> str:
    """Return why writing to the workdir failed; nothing for any other error."""
    while error:
        if isinstance(error, OSError):
            is_ours = str(error.filename or "").startswith(str(workdir))
            # A failed write to an open file does not say which.
            if is_ours or (error.filename is None and error.errno in _FULL):
                name = f" ({error.filename})" if error.filename else ""
                return f"{error.strerror}{name}"
        elif _UNFINISHED in (text := str(error)):
            known = [
                os.strerror(n) for n in (*_FULL, errno.EACCES, errno.EROFS, errno.EIO)
            ]
            return next((k for k in known if k in text), text.partition("\n")[0][:300])
        error = error.__cause__ or error.__context__
    return ""


def _newest(workdir: Path) -> str:
    names = [p.name for p in (workdir / "checkpoints").glob("*")]
    steps = [int(name) for name in names if name.isdecimal()]
    return f"step {max(steps)}" if steps else "none yet"


def _used(folder: Path) -> int:
    """Return the size of all files in a folder, where others may be deleted."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # Orbax deletes in the background what a killed run has left unfinished.
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(os.path.join(place, name)).st_size
    return size


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _text(size: float) -> str:
    """Return a size [bytes] as text."""
    unit, name = next(
        ((unit, name) for unit, name in _UNITS if size >= unit), _UNITS[-1]
    )
    return f"{size / unit:.1f} {name}"
