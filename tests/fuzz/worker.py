"""Cases, and the processes that run them.

A case is (target, seed, number), which determine its damaged file. A worker runs
thousands of cases; the time, memory and side effects of each are watched, and a crash
or hang is charged to the case that was running.
"""

import collections
import contextlib
import faulthandler
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.mutate import mutate
from tests.fuzz.target import Target, write

SECONDS = 5.0  # of a processor, for one case
MEMORY = 10**9  # of one case beside what the process holds already [bytes]
# What a worker may allocate at all: a bomb must not end the machine.
_MAX_DATA = 4 * 2**30
# A sentence or a list, not a dump.
_MAX_TEXT, _MAX_LINES = 2000, 30
# Events of `sys.audit` that reading a file never causes.
_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile"),
    *("subprocess.Popen", "socket.connect", "socket.getaddrinfo", "pickle.find_class"),
)


class Outcome(NamedTuple):
    """What became of a case; text: of the refusal, or what to know of a finding.

    verdict: "read", "refused", or of a finding "error", "slow", "memory", "executed",
    "text", "hang" or "death".
    """

    verdict: str
    text: str = ""

    @property
    def survived(self) -> bool:
        """Whether the package did what it promises."""
        return self.verdict in ("read", "refused")


class Seeds:
    """The valid files of a target, and folders where cases damage them.

    valid: folder with one sub-folder for each seed; scratch: where to copy them.
    """

    def __init__(self, target: Target, valid: Path, scratch: Path):
        self._target = target
        self._seeds = []
        for seed in sorted(valid.iterdir()):
            files = {
                file.relative_to(seed).as_posix(): file.read_bytes()
                for file in sorted(seed.rglob("*"))
                if file.is_file()
            }
            damaged = [
                file.relative_to(seed).as_posix()
                for file in sorted(seed.rglob(target.damaged))
                if file.is_file()
            ]
            folder = scratch / target.name / seed.name
            write(folder, files)
            self._seeds.append((folder, files, damaged))

    def read_valid(self) -> None:
        """Read all files before they are damaged."""
        for folder, files, _ in self._seeds:
            self._target.read(folder)
            write(folder, files)

    @contextlib.contextmanager
    def damaged(self, seed: int, number: int) -> Iterator[Path]:
        """Yield the folder of a case, in which one file is damaged."""
        rng = random.Random(f"{self._target.name} {seed} {number}")
        folder, files, names = rng.choice(self._seeds)
        name = rng.choice(names)
        _, others, more = rng.choice(self._seeds)
        content = mutate(rng, files[name], name, others[rng.choice(more)])
        (folder / name).write_bytes(content)
        try:
            yield folder
        finally:
            write(folder, files if self._target.whole else {name: files[name]})


def outcome(target: Target, folder: Path, watch: "Watch") -> Outcome:
    """Read the damaged folder of a case."""
    begin = time.process_time()
    try:
        with watch:
            target.read(folder)
        result = Outcome("read")
    except target.refusals as error:
        result = _refusal(error)
    except BaseException:  # a library may raise what is no Exception
        result = Outcome("error", traceback.format_exc()[-_MAX_TEXT:])
    seconds, grown = time.process_time() - begin, watch.grown()
    if watch.forbidden:
        return Outcome("executed", ", ".join(watch.forbidden))
    if grown > MEMORY:
        return Outcome("memory", f"{grown / 1e9:.1f} GB, {result}")
    if seconds > SECONDS:
        return Outcome("slow", f"{seconds:.1f} s, {result}")
    return result


def _refusal(error: Exception) -> Outcome:
    text = str(error)
    lines = text.splitlines()
    if not text.strip() or len(lines) > _MAX_LINES or len(text) > _MAX_TEXT:
        return Outcome("text", f"{len(lines)} lines: {text[:_MAX_TEXT]}")
    if "Traceback" in text:
        return Outcome("text", text)
    return Outcome("refused", text)


class Watch:
    """Memory and forbidden events of this process."""

    def __init__(self) -> None:
        self.forbidden: list[str] = []
        self._held, self._active = 0, False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if self._active and event in _FORBIDDEN:
            self.forbidden.append(f"{event}{args!r}"[:200])

    def __enter__(self) -> None:
        self.forbidden, self._active = [], True

    def __exit__(self, *exception: object) -> None:
        self._active = False

    def settle(self) -> None:
        """Take what the process holds now as its own."""
        self._held = _status("VmRSS")

    def grown(self) -> int:
        """Return the most memory that was held beside that [bytes]."""
        return _status("VmHWM") - self._held


def _status(name: str) -> int:
    """Return a number of /proc/self/status [bytes].

    ru_maxrss will not do: a process inherits it from the one that starts it.
    """
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) * 1024


# ---- A worker process ----------------------------------------------------------------


class Job(NamedTuple):
    """Cases start to stop - 1 of a target."""

    target: str
    seed: int
    start: int
    stop: int


class Done(NamedTuple):
    """What became of cases start to stop - 1 of a target.

    counts: by verdict; lost: the findings, by case; leaves: whether the worker ends,
    because the memory that it has held would hide the next case like that.
    """

    target: str
    start: int
    stop: int
    counts: Mapping[str, int]
    lost: Mapping[int, Outcome]
    seconds: float = 0.0
    leaves: bool = False


def work(
    connection: Connection,
    targets: Mapping[str, Target],
    valid: Path,
    scratch: Path,
    current: Any,
) -> None:
    """Run jobs until the connection closes.

    valid: folder of each target's valid files; scratch: folder of this worker;
    current: shared, the number of the case that runs and when it began, 0 if none does.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    os.environ["JAX_PLATFORMS"] = "cpu"
    warnings.simplefilter("ignore")
    trace = os.open(scratch / "trace", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    faulthandler.enable(trace)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1), os.dup2(silence, 2)  # libraries print what they think of files
    watch = Watch()
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA, _MAX_DATA))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seeds: dict[str, Seeds] = {}

    def run(job: Job) -> Done:
        target = targets[job.target]
        if target.name not in seeds:
            seeds[target.name] = Seeds(target, valid / target.name, scratch)
            seeds[target.name].read_valid()
        watch.settle()
        return _run(job, target, seeds[target.name], watch, current)

    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job = connection.recv()
            try:
                answer: Done | str = run(job)
            except BaseException:  # a mistake of this tool, or of a target
                answer = traceback.format_exc()
            connection.send(answer)


def _run(job: Job, target: Target, seeds: Seeds, watch: Watch, current: Any) -> Done:
    counts, lost = collections.Counter[str](), dict[int, Outcome]()
    begin, stop, leaves = time.monotonic(), job.stop, False
    for number in range(job.start, job.stop):
        with seeds.damaged(job.seed, number) as folder:
            current[:] = number, time.monotonic()
            result = outcome(target, folder, watch)
            current[:] = number, 0
        counts[result.verdict] += 1
        if not result.survived:
            lost[number] = result
        if leaves := watch.grown() > MEMORY:
            stop = number + 1
            break
    seconds = time.monotonic() - begin
    return Done(job.target, job.start, stop, counts, lost, seconds, leaves)
