"""Workers, the watchdog, and the account of many runs."""

import collections
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tests.fuzz.target import Target
from tests.fuzz.worker import Done, Job, Outcome, work

# A case that takes longer is killed [seconds].
HANG = 30.0
_BATCH = 50  # cases of a job
_POLL = 0.2
_SAVE_EVERY = 10.0


# ---- The account ---------------------------------------------------------------------


@dataclasses.dataclass
class Account:
    """What became of cases 0 to tried - 1 of a target; seconds: of one worker."""

    tried: int = 0
    counts: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    lost: dict[int, Outcome] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def enter(self, done: Done) -> None:
        """Enter new cases, or a lost one that was tried again."""
        if done.start in self.lost:
            self.counts[self.lost.pop(done.start).verdict] -= 1
            self._add(done)
            return
        assert done.start == self.tried
        self.tried = done.stop
        self._add(done)

    def _add(self, done: Done) -> None:
        self.counts.update(done.counts)
        self.lost.update(done.lost)
        self.seconds += done.seconds


class Ledger:
    """The accounts of all targets for one seed, in a file that later runs continue."""

    def __init__(self, seed: int, path: Path | None = None):
        self.seed, self._path = seed, path
        self.accounts: dict[str, Account] = collections.defaultdict(Account)
        if path and path.exists():
            content = json.loads(path.read_text())
            if content["seed"] != seed:
                raise ValueError(f"{path} is the ledger of --seed={content['seed']}")
            for name, account in content["targets"].items():
                lost = {int(n): Outcome(*found) for n, found in account["lost"].items()}
                self.accounts[name] = Account(
                    account["tried"],
                    collections.Counter(account["counts"]),
                    lost,
                    account["seconds"],
                )

    def summary(self) -> str:
        """Return a table of all targets."""
        rows = [("target", "tried", "survived", "lost", "read", "cases/s")]
        for name, account in self.accounts.items():
            lost = len(account.lost)
            read = account.counts["read"] / max(account.tried, 1)
            rate = account.tried / max(account.seconds, 1e-9)
            numbers = (f"{account.tried:,}", f"{account.tried - lost:,}", f"{lost:,}")
            rows.append((name, *numbers, f"{read:.0%}", f"{rate:.0f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        )

    def save(self) -> None:
        """Write the file, if there is one."""
        if self._path:
            targets = {name: vars(a) for name, a in self.accounts.items()}
            partial = self._path.with_name(f"{self._path.name}.tmp")
            partial.write_text(json.dumps({"seed": self.seed, "targets": targets}))
            partial.replace(self._path)


# ---- Workers -------------------------------------------------------------------------


class _Worker:
    """One worker process, and the job that it runs."""

    def __init__(self, targets: Mapping[str, Target], valid: Path, scratch: Path):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._current = context.RawArray("d", 2)
        self._trace = scratch / "trace"
        self.job: Job | None = None
        self.process = context.Process(
            target=work,
            args=(theirs, targets, valid, scratch, self._current),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def start(self, job: Job) -> None:
        self.job = job
        self.connection.send(job)

    def end_if_hung(self) -> None:
        """Kill the process if its case has run for too long."""
        begin = self._current[1]
        if begin and time.monotonic() - begin > HANG:
            self.process.kill()

    def charge(self) -> tuple[int, Outcome]:
        """Return the case that ended the process, and how."""
        self.process.join()
        number, begin = self._current
        if not begin:
            raise RuntimeError(f"a worker ended between cases: {self._trace_text()}")
        if time.monotonic() - begin > HANG:
            return int(number), Outcome("hang", f"{HANG} s")
        what = f"exit code {self.process.exitcode}: {self._trace_text()}"
        return int(number), Outcome("death", what)

    def _trace_text(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._trace.read_text()[:2000]
        return ""

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def run(
    targets: Sequence[Target],
    ledger: Ledger,
    *,
    cases: int,
    workers: int = 2,
    minutes: float = float("inf"),
    report: Callable[[str], None] = lambda text: None,
) -> None:
    """Run cases of each target until `cases` are in the ledger, or the time is up.

    Lost cases of earlier runs are tried again first: the package may have been mended.
    """
    deadline = time.monotonic() + 60 * minutes
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where, prefix="fuzz-") as folder:
        valid, scratch = Path(folder, "valid"), Path(folder, "scratch")
        for target in targets:
            (valid / target.name).mkdir(parents=True)
            target.make(valid / target.name)
        named = {target.name: target for target in targets}
        pool: list[_Worker] = []
        try:
            pool += (
                _Worker(named, valid, scratch / str(number))
                for number in range(workers)
            )
            jobs = itertools.chain.from_iterable(
                _jobs(name, ledger.seed, ledger.accounts[name], cases) for name in named
            )
            saved = time.monotonic()
            results = _results(pool, named, valid, scratch, jobs, deadline)
            for done in _in_order(results, ledger.accounts):
                ledger.accounts[done.target].enter(done)
                if time.monotonic() - saved > _SAVE_EVERY:
                    saved = time.monotonic()
                    ledger.save()
                    report(ledger.summary())
        finally:
            for worker in pool:
                worker.close()
            ledger.save()


def _jobs(target: str, seed: int, account: Account, cases: int) -> Iterator[Job]:
    for number in list(account.lost):
        yield Job(target, seed, number, number + 1)
    for start in range(account.tried, cases, _BATCH):
        yield Job(target, seed, start, min(start + _BATCH, cases))


def _in_order(
    results: Iterator[Done], accounts: Mapping[str, Account]
) -> Iterator[Done]:
    """Yield results in the order of their cases, whatever the order they end in."""
    early: dict[tuple[str, int], Done] = {}
    for done in results:
        account = accounts[done.target]
        if done.start in account.lost:
            yield done
            continue
        early[done.target, done.start] = done
        while following := early.pop((done.target, account.tried), None):
            yield following


def _results(
    pool: list[_Worker],
    targets: Mapping[str, Target],
    valid: Path,
    scratch: Path,
    jobs: Iterator[Job],
    deadline: float,
) -> Iterator[Done]:
    """Yield what becomes of all jobs, with every worker busy."""
    rest: collections.deque[Job] = collections.deque()

    def next_job() -> Job | None:
        if rest:
            return rest.popleft()
        return next(jobs, None) if time.monotonic() < deadline else None

    def replace(worker: _Worker) -> _Worker:
        worker.close()
        index = pool.index(worker)
        pool[index] = _Worker(targets, valid, scratch / str(index))
        return pool[index]

    for worker in pool:
        if job := next_job():
            worker.start(job)
    while busy := {worker.connection: worker for worker in pool if worker.job}:
        for ready in connection.wait(list(busy), _POLL):
            worker = busy[ready]  # type: ignore[index]
            job = worker.job
            assert job is not None
            worker.job = None
            try:
                answer: Any = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                number, found = worker.charge()
                yield Done(
                    job.target, number, number + 1, {found.verdict: 1}, {number: found}
                )
                parts = [(job.start, number), (number + 1, job.stop)]
                rest += [Job(*job[:2], a, b) for a, b in parts if a < b]
                worker = replace(worker)
            else:
                if isinstance(answer, str):
                    raise RuntimeError(answer)
                yield answer
                if answer.stop < job.stop:
                    rest.append(job._replace(start=answer.stop))
                if answer.leaves:
                    worker = replace(worker)
            if job := next_job():
                worker.start(job)
        for worker in pool:
            worker.end_if_hung()
