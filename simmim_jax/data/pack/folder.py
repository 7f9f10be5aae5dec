"""The folder that `simmim pack` writes: checks, lock, and plan."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

from simmim_jax.data.pack.plan import compare
from simmim_jax.data.pack.shards import Shard, report_path, write_atomically
from simmim_jax.data.sources import packed
from simmim_jax.errors import ExistsError, UserError


def check_out(out: str, dataset: str) -> None:
    """Raise UserError or ExistsError if `dataset` must not be packed into `out`."""
    if "://" in out:
        raise UserError(
            f"OUT={out!r} is not a local path: expected a folder. Mount the bucket, or "
            "pack into a local folder and copy it."
        )
    outer, inner = os.path.realpath(dataset), os.path.realpath(out)
    if os.path.isdir(outer) and os.path.commonpath((outer, inner)) == outer:
        raise UserError(
            f"OUT={out!r} is in DATASET={dataset!r} and would change it: choose a "
            "folder elsewhere."
        )
    if not os.path.exists(out) or packed.is_packed(out):
        return
    others = sorted(set(os.listdir(out)) - {packed.UNFINISHED})
    if others:
        raise ExistsError(
            f"OUT={out!r} contains {', '.join(others[:3])}: expected a new or empty "
            "folder."
        )


@contextlib.contextmanager
def locked(out: str) -> Iterator[None]:
    """Create the folder, and lock it against other processes.

    raises: ExistsError if another process holds the lock, OSError if the folder cannot
    be created.
    """
    unfinished = os.path.join(out, packed.UNFINISHED)
    try:
        os.makedirs(unfinished, exist_ok=True)
        lock = os.open(os.path.join(unfinished, "lock"), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise type(error)(
            f"OUT={out!r} cannot be written: {error}. Choose another folder."
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExistsError(
                f"Another process is packing into {out!r}: wait for it, or stop it."
            ) from error
        yield
    finally:
        os.close(lock)


def begin(out: str, plan: dict[str, Any], num_bytes: float) -> None:
    """Write the plan, or compare it with the existing one.

    raises: UserError if it differs or is damaged, OSError if there are fewer than
    `num_bytes` free.
    """
    path = os.path.join(out, packed.UNFINISHED, packed.PLAN)
    if os.path.exists(path):
        return compare(_read_plan(path, out), plan, out)
    free = shutil.disk_usage(out).free
    if num_bytes > free:
        raise OSError(
            f"OUT={out!r} needs about {num_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} "
            "GB are free: make room, or choose a smaller --short_side or --quality."
        )
    return write_atomically(path, json.dumps(plan))


def _read_plan(path: str, out: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path!r} is damaged ({error}): expected the plan that packing resumes "
            f"from. Remove {out!r}, and pack again."
        ) from error


def is_complete(out: str, shard: Shard) -> bool:
    """Whether a shard is complete."""
    paths = os.path.join(out, shard.file), report_path(out, shard.file)
    return all(map(os.path.exists, paths))
