"""Kill runs, fill and lock their disks, damage their checkpoints; compare their ends.

    python -m benchmarks.chaos --kills=500 --ledger=/tmp/chaos.json

A trial is a tiny run that meets a few seeded events and is restarted after each, as a
launcher would, until it is finished:

    kills           SIGKILL or SIGTERM at a random moment; one process
    joint_kills     the same to one of four processes of a run, over loopback
    full_disks      the disk is full from a random moment on, until the run ends
    read_only       a restart finds a workdir that it may not write to
    damage          the newest checkpoint is damaged after a kill

It survives if every exit has a documented status, every failure is a sentence, no
process is left behind, and the end is bit-identical with that of an uninterrupted run:
metrics.jsonl but for what a clock decides, and the final parameters. The same command
continues the ledger; lost trials are tried again. Exit status 1 if any is lost.

full_disks and read_only mount small file systems, as root; other users get a limit on
the size of files, and a folder without write permission.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.tiny_runs import (
    FINISHED,
    MODES,
    PATIENCE,
    STEPS,
    End,
    Lost,
    Process,
    complete_steps,
    difference,
    end_of,
    write_files,
)

FAILED, LOST, STOPPED = 1, 69, 75
# Statuses after SIGTERM; without a checkpoint it ends a run as by default.
TERMINATED = {STOPPED, 143, -signal.SIGTERM, FINISHED}
# Of processes that lost one of them: JAX may abort them.
ABANDONED = {LOST, STOPPED, 134, -signal.SIGABRT, 143, -signal.SIGTERM, FINISHED}
TOGETHER = 4
# Events of a trial, most often: then it may finish.
MOST = {"kills": 8, "joint_kills": 2, "full_disks": 3, "read_only": 2, "damage": 3}
DISK = 64 * 2**20  # [bytes]
# Lines that a failure may have, after those of progress.
SENTENCE = 12


# ---- Trials --------------------------------------------------------------------------


@dataclasses.dataclass
class Setup:
    """What all trials share."""

    folder: Path
    ends: dict[str, End] = dataclasses.field(default_factory=dict)
    # Of an uninterrupted run: until it compiles, and from its first step on [seconds].
    starting: float = 0.0
    running: float = 0.0

    @property
    def cache(self) -> Path:
        """Folder of compiled programs."""
        return self.folder / "cache"

    def args(self, mode: str, workdir: Path) -> list[str]:
        """Return the flags of a run."""
        return [f"--config={self.folder}/tiny.py:{mode}", f"--workdir={workdir}"]

    def prepare(self, joint: bool) -> None:
        """Write the files, and run without interruption."""
        write_files(self.folder)
        self._run_uninterrupted(MODES)
        # Once more, with compiled programs: it takes as long as those of the trials.
        self.measure(self._run_uninterrupted(MODES[:1]), first_step=0)
        if joint:
            workdir = self.folder / "uninterrupted" / "joint"
            processes = start_together(self, workdir)
            if any([process.end() for process in processes]):
                raise Lost(f"an uninterrupted run fails: {processes[0].tail()}")
            self.ends["joint"] = end_of(workdir)

    def measure(self, process: Process, first_step: int) -> None:
        """Note how long a run took that was not killed: machines have other work."""
        self.starting = process.seconds_until("compiling the training step")
        compiled = process.seconds_until("compiled the training step")
        steps = process.seconds_until("") - compiled
        self.running = steps * STEPS / (STEPS - first_step)

    def _run_uninterrupted(self, modes: Sequence[str]) -> Process:
        """Run these modes at once, and record their ends; return one process."""
        places = [self.folder / "uninterrupted" / mode for mode in modes]
        processes = []
        for mode, place in zip(modes, places, strict=True):
            shutil.rmtree(place, ignore_errors=True)
            processes.append(Process(self.args(mode, place), self.cache))
        for mode, place, process in zip(modes, places, processes, strict=True):
            if process.end() != FINISHED:
                raise Lost(f"an uninterrupted run fails: {process.tail()}")
            end = end_of(place)
            if text := difference(end, self.ends.setdefault(mode, end)):
                raise Lost(f"two uninterrupted runs differ: {text}")
        return process


@dataclasses.dataclass
class Trial:
    """One run with at most `most` events; `events` counts them by name."""

    setup: Setup
    rng: random.Random
    workdir: Path
    most: int
    events: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )

    def __post_init__(self) -> None:
        self.mode = self.rng.choice(MODES)

    def start(self) -> Process:
        """Start or resume the run."""
        args = self.setup.args(self.mode, self.workdir)
        return Process(args, self.setup.cache, compiles=self.rng.random() < 0.15)

    def moment(self, process: Process) -> bool:
        """Wait for a random moment; return whether the process still runs.

        Half of the moments are anywhere in a run, half after it has compiled.
        """
        first = max(complete_steps(self.workdir), default=0)
        starting = self.setup.starting
        running = self.setup.running * (1 - first / STEPS)
        if self.rng.random() < 0.5:
            runs = process.wait(self.rng.uniform(0, starting + running))
        else:
            process.wait(PATIENCE, lambda: process.has_said("compiled the training"))
            runs = process.wait(self.rng.uniform(0, running))
        if not runs and first < STEPS and process.end() == FINISHED:
            self.setup.measure(process, first)
        return runs

    def note(self, event: str) -> None:
        """Count an event."""
        self.events[event] += 1

    def finish(self) -> None:
        """Let the run finish."""
        self.expect(self.start(), {FINISHED})

    def compare(self, name: str = "") -> None:
        """Raise Lost if the end differs from that of the uninterrupted run."""
        expected = self.setup.ends[name or self.mode]
        if text := difference(end_of(self.workdir), expected):
            raise Lost(text)

    def expect(self, process: Process, statuses: set[int]) -> bool:
        """Return whether the run is finished; raise Lost for another status."""
        status = process.end()
        if status not in statuses:
            raise Lost(f"expected a status of {sorted(statuses)}: {process.tail()}")
        if "Traceback" in process.text:
            raise Lost(f"a traceback: {process.tail()}")
        return status == FINISHED


def phase(process: Process, workdir: Path) -> str:
    """Return what a process does, as far as it can be seen."""
    if process.has_said("compiled the training step"):
        folder = workdir / "checkpoints"
        writes = any(".orbax-checkpoint-tmp" in path.name for path in folder.iterdir())
        return "save" if writes else "steps and evaluation"
    if process.has_said("compiling the training step"):
        return "compilation"
    return "start and restore"


def kills(trial: Trial) -> None:
    """Send signals at random moments."""
    for _ in range(trial.most):
        process = trial.start()
        if not trial.moment(process):
            trial.expect(process, {FINISHED})
            break
        during = phase(process, trial.workdir)
        if trial.rng.random() < 0.5:
            trial.note(f"SIGKILL during {during}")
            finished = process.kill() == FINISHED
        else:
            trial.note(f"SIGTERM during {during}")
            process.terminate()
            finished = trial.expect(process, TERMINATED)
        if finished:
            break
    else:
        trial.finish()
    trial.compare()


def start_together(setup: Setup, workdir: Path) -> list[Process]:
    """Start four processes of one run, which meet at a local port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [
        Process(
            [
                *setup.args("pretrain", workdir),
                f"--coordinator_address=localhost:{port}",
                f"--num_processes={TOGETHER}",
                f"--process_id={number}",
                "--heartbeat_timeout=10",
                "--initialization_timeout=60",
            ],
            setup.cache,
        )
        for number in range(TOGETHER)
    ]


def joint_kills(trial: Trial) -> None:
    """Send signals to one of four processes; the others end by themselves."""
    setup = trial.setup
    for _ in range(trial.most):
        processes = start_together(setup, trial.workdir)
        victim = trial.rng.choice(processes)
        try:
            # The processes share the cores.
            latest = 3 * (setup.starting + setup.running)
            if trial.rng.random() < 0.7:
                first, latest = processes[0], 2 * setup.running
                first.wait(PATIENCE, functools.partial(first.has_said, "compiled"))
            if victim.wait(trial.rng.uniform(0, latest)):
                during = phase(processes[0], trial.workdir)
                if trial.rng.random() < 0.5:
                    trial.note(f"SIGKILL during {during}")
                    victim.kill()
                else:
                    trial.note(f"SIGTERM during {during}")
                    os.kill(victim.pid, signal.SIGTERM)
            for process in processes:
                trial.expect(process, ABANDONED | {-signal.SIGKILL})
        finally:
            for process in processes:
                process.kill()
    processes = start_together(setup, trial.workdir)
    for process in processes:
        trial.expect(process, {FINISHED})
    trial.compare("joint")


def damage(trial: Trial) -> None:
    """Damage the newest of several checkpoints after a kill."""
    for _ in range(trial.most):
        process = trial.start()
        process.wait(PATIENCE, lambda: len(complete_steps(trial.workdir)) > 1)
        if not process.wait(trial.rng.uniform(0, 1)):
            trial.expect(process, {FINISHED})
            break
        process.kill()
        steps = complete_steps(trial.workdir)
        if len(steps) < 2:
            found = f"{len(steps)} checkpoints in {PATIENCE:.0f} s"
            raise Lost(f"{found}, expected two: {process.tail()}")
        trial.note(_damage(trial.rng, trial.workdir / "checkpoints", steps[-1]))
    else:
        trial.finish()
    trial.compare()


def _damage(rng: random.Random, checkpoints: Path, step: int) -> str:
    """Damage a checkpoint; return how."""
    folder = checkpoints / str(step)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    file = rng.choice(files)
    match rng.choice(("bit", "bit", "cut", "empty", "remove", "folder", "item")):
        case "bit":
            data = bytearray(file.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
            return "a flipped bit"
        case "cut":
            os.truncate(file, rng.randrange(file.stat().st_size))
            return "a file cut short"
        case "empty":
            os.truncate(file, 0)
            return "an empty file"
        case "remove":
            file.unlink()
            return "a missing file"
        case "folder":
            (checkpoints / "99").mkdir()
            return "an empty checkpoint"
        case _:
            shutil.rmtree(rng.choice([p for p in folder.iterdir() if p.is_dir()]))
            return "a missing item"


# ---- Disks ---------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system at a folder; yield whether that is possible."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = _mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*args: str) -> bool:
    return subprocess.run(["mount", *args], capture_output=True).returncode == 0


def full_disks(trial: Trial) -> None:
    """Fill the disk at random moments, and make room once the run has ended."""
    disk = trial.workdir.parent / f"{trial.workdir.name}-disk"
    with small_disk(disk) as mounted:
        trial.workdir = disk / "run"
        for _ in range(trial.most):
            process = trial.start()
            if not trial.moment(process):
                trial.expect(process, {FINISHED})
                break
            trial.note(f"full during {phase(process, trial.workdir)}")
            if mounted:
                _fill(disk / "ballast")
            else:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
            finished = trial.expect(process, {FAILED, FINISHED})
            (disk / "ballast").unlink(missing_ok=True)
            if finished:
                break
            _check_sentence(process)
        else:
            trial.finish()
        trial.compare()


def _fill(path: Path) -> None:
    """Write until there is no room."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def _check_sentence(process: Process) -> None:
    """Raise Lost unless a failed process ends with a sentence."""
    lines = [line for line in process.lines if line.strip()]
    said = [i for i, line in enumerate(lines) if "compil" in line or "step" in line]
    rest = lines[said[-1] + 1 if said else 0 :]
    if not lines or len(rest) > SENTENCE:
        raise Lost(f"{len(rest)} lines of failure: {process.tail()}")


def read_only(trial: Trial) -> None:
    """Restart a run in a workdir that may not be written to."""
    disk = trial.workdir.parent / f"{trial.workdir.name}-disk"
    with small_disk(disk) as mounted:
        trial.workdir = disk / "run"
        trial.workdir.mkdir()
        for _ in range(trial.most):
            process = trial.start()
            if not trial.moment(process):
                trial.expect(process, {FINISHED})
                break
            process.kill()
            with _locked(disk, trial.workdir, mounted):
                trial.note("read-only at a restart")
                process = trial.start()
                trial.expect(process, {FAILED})
                _check_sentence(process)
        else:
            trial.finish()
        trial.compare()


@contextlib.contextmanager
def _locked(disk: Path, workdir: Path, mounted: bool) -> Iterator[None]:
    if mounted:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    else:
        workdir.chmod(0o555)
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        else:
            workdir.chmod(0o755)


KINDS: dict[str, Callable[[Trial], None]] = {
    "kills": kills,
    "joint_kills": joint_kills,
    "full_disks": full_disks,
    "read_only": read_only,
    "damage": damage,
}


# ---- Many trials ---------------------------------------------------------------------


@dataclasses.dataclass
class Account:
    """What became of trials 0 to next - 1 of a kind; events: survived, by name."""

    next: int = 0
    events: dict[str, int] = dataclasses.field(default_factory=dict)
    lost: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def survived(self) -> int:
        """Number of events that a run survived."""
        return sum(self.events.values())

    @property
    def tried(self) -> int:
        """Number of events; a lost trial counts as one."""
        return self.survived + len(self.lost)


class Ledger:
    """The accounts of all kinds, in a file that later runs continue."""

    def __init__(self, path: Path | None):
        self._path = path
        content = json.loads(path.read_text()) if path and path.exists() else {}
        self.kinds = {kind: Account(**content.get(kind, {})) for kind in KINDS}

    def enter(self, kind: str, number: int, events: dict[str, int], lost: str) -> None:
        """Enter a trial, and save."""
        account = self.kinds[kind]
        account.lost.pop(str(number), None)
        if lost:
            account.lost[str(number)] = f"{lost} [after {events}]"
        else:
            for name, count in events.items():
                account.events[name] = account.events.get(name, 0) + count
        if self._path:
            partial = self._path.with_name(f"{self._path.name}.tmp")
            accounts = {k: dataclasses.asdict(a) for k, a in self.kinds.items()}
            partial.write_text(json.dumps(accounts, indent=1))
            partial.replace(self._path)

    def summary(self) -> str:
        """Return tried, survived and lost of each kind, and its events."""
        lines = [f"{'':12}{'tried':>8}{'survived':>10}{'lost':>6}"]
        for kind, account in self.kinds.items():
            if account.tried:
                numbers = account.tried, account.survived, len(account.lost)
                lines.append("{:12}{:8}{:10}{:6}".format(kind, *numbers))
                names = sorted(account.events.items())
                lines += [f"    {count:6}  {name}" for name, count in names]
        for kind, account in self.kinds.items():
            lines += [f"\n{kind} {n}: {text}" for n, text in account.lost.items()]
        return "\n".join(lines)


def run(
    wanted: dict[str, int],
    ledger: Ledger,
    *,
    seed: int,
    workers: int,
    minutes: float = float("inf"),
) -> None:
    """Run trials until each kind has as many events, or the time is up."""
    deadline = time.monotonic() + 60 * minutes
    lock = threading.Lock()
    again = {kind: list(map(int, a.lost)) for kind, a in ledger.kinds.items()}
    under_way = collections.Counter[str]()  # events

    def next_trial() -> tuple[str, int, int] | None:
        """Return kind, number and most events of a trial."""
        if time.monotonic() > deadline:
            return None
        for kind, count in wanted.items():
            account = ledger.kinds[kind]
            if count and again[kind]:
                return kind, again[kind].pop(), MOST[kind]
            if (left := count - account.tried - under_way[kind]) > 0:
                account.next += 1
                return kind, account.next - 1, min(MOST[kind], left)
        return None

    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        setup = Setup(Path(folder))
        setup.prepare(joint=bool(wanted.get("joint_kills")))

        def lane() -> None:
            while True:
                with lock:
                    if not (found := next_trial()):
                        return
                    kind, number, most = found
                    under_way[kind] += most
                workdir = setup.folder / f"{kind}-{number}"
                rng = random.Random(f"{seed} {kind} {number}")
                trial, lost = Trial(setup, rng, workdir, most), ""
                try:
                    KINDS[kind](trial)
                except Lost as error:
                    lost = str(error)
                except Exception:  # such as of a checkpoint that cannot be read
                    lost = traceback.format_exc()[-1500:]
                with lock:
                    under_way[kind] -= most
                    ledger.enter(kind, number, dict(trial.events), lost)
                    done = ledger.kinds[kind]
                    print(f"{kind} {number}: {lost or 'survived'}"[:300], flush=True)
                    print(f"  {done.tried} tried, {len(done.lost)} lost", flush=True)
                shutil.rmtree(workdir, ignore_errors=True)

        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(lane) for _ in range(workers)]:
                future.result()


def main() -> None:
    """Run trials, and print tried, survived and lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = functools.partial(parser.add_argument, type=int, default=0, metavar="EVENTS")
    add("--kills", help="events of each kind, with the ledger's; default: none")
    add("--joint_kills")
    add("--full_disks")
    add("--read_only")
    add("--damage")
    add = parser.add_argument
    add("--ledger", type=Path, help="file that keeps what became of all trials")
    add(
        "--minutes", type=float, default=float("inf"), help="start none after this time"
    )
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=2, help="trials at once (%(default)s)")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    ledger = Ledger(args.ledger)
    run(
        {kind: getattr(args, kind) for kind in KINDS},
        ledger,
        seed=args.seed,
        workers=args.workers,
        minutes=args.minutes,
    )
    print(ledger.summary())
    sys.exit(any(account.lost for account in ledger.kinds.values()))


if __name__ == "__main__":
    main()
