"""The folder that `python -m simmim_jax.data.pack` writes: what is in it already."""

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
    """Raise ValueError or FileExistsError if nothing should be packed into `out`.

    dataset: what is packed there.
    """
    if "://" in out:
        raise UserError(
            f"OUT={out!r} is not a local path: mount the bucket, or pack into a local "
            "folder and copy that."
        )
    outer, inner = os.path.realpath(dataset), os.path.realpath(out)
    if os.path.isdir(outer) and os.path.commonpath((outer, inner)) == outer:
        raise UserError(
            f"OUT={out!r} is in DATASET={dataset!r}, which would no longer be the "
            "same: choose a folder elsewhere."
        )
    if not os.path.exists(out) or packed.is_packed(out):
        return
    others = sorted(set(os.listdir(out)) - {packed.UNFINISHED})
    if others:
        raise ExistsError(
            f"OUT={out!r} has other files, {', '.join(others[:3])}: choose a new or an "
            "empty folder."
        )


@contextlib.contextmanager
def locked(out: str) -> Iterator[None]:
    """Make the folder, and keep others from packing into it.

    raises: FileExistsError if another process does, OSError if it cannot be made.
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
                f"Another process packs into {out!r}: wait for it, or stop it."
            ) from error
        yield
    finally:
        os.close(lock)


def begin(out: str, plan: dict[str, Any], num_bytes: float) -> None:
    """Write the plan, or find that it is the one that was begun.

    raises: ValueError if another one was; OSError if num_bytes are not free.
    """
    path = os.path.join(out, packed.UNFINISHED, packed.PLAN)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return compare(json.load(file), plan, out)
    free = shutil.disk_usage(out).free
    if num_bytes > free:
        raise OSError(
            f"OUT={out!r} needs about {num_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} "
            "GB are free: make room, or choose a smaller --short_side or --quality."
        )
    return write_atomically(path, json.dumps(plan))


def is_complete(out: str, shard: Shard) -> bool:
    """Whether a shard was written to its end."""
    paths = os.path.join(out, shard.file), report_path(out, shard.file)
    return all(map(os.path.exists, paths))
