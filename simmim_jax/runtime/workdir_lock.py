"""One run a workdir: a lock that does not outlive the process that holds it.

`lock.json` names its holder. On the same machine the holder's process is looked up.
Clocks of other machines may differ, so a holder there counts as alive if its heartbeat
goes on: it touches the file every few seconds, and a run that wants the lock watches.
"""

import contextlib
import json
import os
import platform
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from simmim_jax.errors import UserError
from simmim_jax.runtime import distributed

FILE = "lock.json"
# Interval of the heartbeat [seconds].
_BEAT = 5.0
# A holder that was silent for this long is gone; longer than network file systems and
# mounted buckets cache what they know of a file [seconds].
_STALE = 90.0


@contextlib.contextmanager
def held(*folders: Path) -> Iterator[None]:
    """Hold the locks of folders; all processes of a run enter, process 0 holds them.

    raises: UserError if another run holds one, or the folder is not writable. Waits if
    the other run may be gone: until that is certain, 90 s at most.
    """
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            for folder in folders:
                stack.enter_context(_Lock(folder))
        distributed.meet()
        yield


class _Lock:
    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / FILE
        self._token = uuid.uuid4().hex
        self._ours = json.dumps(_describe_holder() | {"token": self._token})
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        while not self._create():
            self._await_or_raise()
        distributed.before_exit.append(self._release)
        self._heart.start()

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._heart.join()
        distributed.before_exit.remove(self._release)
        self._release()

    def _create(self) -> bool:
        """Return whether the lock was free, and is ours now."""
        try:
            with self._file.open("x") as file:
                try:
                    file.write(self._ours)
                    file.flush()
                except OSError:
                    self._file.unlink()
                    raise
        except FileExistsError:
            return False
        except OSError as error:
            raise UserError(
                f"'{self._folder}' cannot be written to: {error.strerror}. Expected a "
                "folder for checkpoints and metrics: choose another --workdir."
            ) from error
        return True

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            if self._file.read_text() == self._ours:
                self._file.unlink()

    # ---- Another's lock --------------------------------------------------------------

    def _await_or_raise(self) -> None:
        """Return once the lock is free; raise UserError if its holder is alive."""
        seen = self._look()
        if seen is None:
            return
        holder = _parse(seen[0])
        if holder and holder["machine"] == _machine():
            if _started(holder["pid"]) == holder["process_started"]:
                self._refuse(holder)
            self._remove(seen[0])
            return
        print(
            f"'{self._folder}' was in use by {_name(holder)}, on another machine. "
            f"Waiting up to {_STALE:.0f} s for a sign of life ...",
            flush=True,
        )
        end = time.monotonic() + _STALE
        while time.monotonic() < end:
            time.sleep(min(1.0, _BEAT / 5))
            now = self._look()
            if now is None or now[0] != seen[0]:
                return  # it was released, or another run took it over
            if now[1] != seen[1]:
                self._refuse(holder)
        self._remove(seen[0])

    def _refuse(self, holder: dict[str, Any]) -> None:
        raise UserError(
            f"'{self._folder}' is in use by {_name(holder)}. Wait until that run ends, "
            "stop it, or choose another --workdir."
        )

    def _look(self) -> tuple[str, int] | None:
        """Return content and heartbeat of the lock; None if it is free."""
        try:
            # Opening makes network file systems ask their server.
            with self._file.open(errors="replace") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def _remove(self, content: str) -> None:
        """Remove the lock of a dead holder, unless it has changed hands meanwhile."""
        aside = self._file.with_name(f"{FILE}.{self._token}")
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            self._file.rename(aside)
            if aside.read_text(errors="replace") == content:
                aside.unlink()
            else:
                aside.rename(self._file)

    # ---- Heartbeat -------------------------------------------------------------------

    def _beat(self) -> None:
        """Touch the lock until it is released; end the process if it was lost."""
        while not self._done.wait(_BEAT):
            # The run itself reports a lost or full disk.
            with contextlib.suppress(OSError, UserError):
                seen = self._look()
                if seen is None:
                    self._create()
                elif seen[0] == self._ours:
                    os.utime(self._file)
                else:
                    distributed.fail(
                        f"'{self._folder}' was taken over by {_name(_parse(seen[0]))}, "
                        f"because this run was silent for {_STALE:.0f} s.",
                        1,
                    )


# ---- Who holds it --------------------------------------------------------------------


def _describe_holder() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "process_started": _started(os.getpid()),
        "machine": _machine(),
    }


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return "another run"
    return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"


def _parse(content: str) -> dict[str, Any]:
    """Return what a lock says; nothing if it is damaged or being written."""
    try:
        holder = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    is_whole = isinstance(holder, dict) and holder.keys() >= _describe_holder().keys()
    return holder if is_whole else {}


def _machine() -> str:
    """Identify what process ids are unique in: a boot, and a container in it."""
    names = [platform.node()]
    with contextlib.suppress(OSError):
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        names.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(names)


def _started(pid: Any) -> str | None:
    """Return when a process started, in a unit of the system; None if it has ended."""
    if not isinstance(pid, int):
        return None
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if stat[0] in "XZ" else stat[19]
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
