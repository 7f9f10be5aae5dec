"""A run of seconds that can be killed: its config, its processes, and its end."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CONFIG = """
from simmim_jax.configs import common

DATASET = __file__.replace("tiny.py", "noise.npy")

def get_config(mode):
    config = {"pretrain": common.pretrain, "finetune": common.finetune}[mode]()
    config.dtype = "float32"
    config.pictures = 0
    config.data.update(
        dataset=DATASET, image_size=(28, 28), channels=1,
        batch_size=16, eval_crop=1.0, mean=(0.5,), std=(0.3,), num_threads=1,
    )
    config.model.update(patch_size=(14, 7), embed_dim=16, depth=1, num_heads=2)
    config.optim.warmup = "2 steps"
    config.duration = "24 steps"
    config.log_every = "1 steps"
    config.eval_every = "8 steps"
    config.checkpoint_every = "4 steps"
    config.ema_decay = 0.9
    if mode == "pretrain":
        config.mask.unit_size = (14, 7)
        config.data.num_workers = 0
    else:
        config.data.update(num_labels=40, num_workers=1)
        common.only_crop_and_flip(config)
    return config
"""
STEPS = 24
# Of which one in 20 is held out: evaluation shall not take most of a run.
IMAGES = 2000
MODES = ("pretrain", "finetune")
# Metrics that a clock decides: they differ from run to run.
TIMINGS = {
    *("images_per_second", "images_per_second_per_chip", "input_wait"),
    *("first_step_seconds", "compile_seconds", "checkpoint_seconds"),
}
FINISHED = 0
# A process that takes longer hangs [seconds].
PATIENCE = 180.0
# Of a process that got SIGTERM, on a busy machine [seconds].
GRACE = 30.0


class Lost(Exception):
    """A trial that did not end as promised."""


def write_files(folder: Path) -> None:
    """Write the config, tiny.py, and its data set."""
    (folder / "tiny.py").write_text(CONFIG)
    rng = np.random.default_rng(0)
    np.save(folder / "noise.npy", rng.integers(0, 256, (IMAGES, 28, 28, 1), np.uint8))
    np.save(folder / "noise_labels.npy", rng.integers(0, 10, IMAGES))


# ---- Processes of a run --------------------------------------------------------------


class Process:
    """A process of a run; `lines` is what it has printed so far."""

    def __init__(self, args: list[str], cache: Path, compiles: bool = False):
        """compiles: does not read programs that earlier runs have compiled."""
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_ENABLE_COMPILATION_CACHE": str(not compiles).lower(),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of a start is compiling
            "PYTHONUNBUFFERED": "1",
        }
        self.lines: list[str] = []
        self._times: list[float] = []  # of the lines
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simmim_jax.main", *args],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._times.append(time.monotonic())
            self.lines.append(line)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    @property
    def text(self) -> str:
        """All that it has printed."""
        return "".join(self.lines)

    def has_said(self, text: str) -> bool:
        """Whether some line has this text."""
        return any(text in line for line in self.lines)

    def seconds_until(self, text: str) -> float:
        """Return when it printed its last line that has this text [seconds]."""
        times = zip(self._times, self.lines, strict=False)
        return max(at for at, line in times if text in line) - self._began

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it has ended or something holds; return whether it still runs."""
        deadline = time.monotonic() + seconds
        while self.status is None and not until() and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.status is None

    def end(self, seconds: float = PATIENCE) -> int:
        """Return the exit status; raise Lost if it does not end in time."""
        began = time.monotonic()
        if self.wait(seconds):
            self._process.kill()
            raise Lost(f"hangs, {time.monotonic() - began:.0f} s:\n{self.tail()}")
        self._reader.join(5)
        status = self.status
        assert status is not None
        return status

    def kill(self) -> int:
        """Send SIGKILL; return the exit status; raise Lost if a process is left."""
        children = _descendants(self.pid)
        self._process.kill()
        status = self.end()
        deadline = time.monotonic() + 20
        while left := [pid for pid in children if _is_running(pid)]:
            if time.monotonic() > deadline:
                raise Lost(f"leaves processes behind: {left}")
            time.sleep(0.02)
        return status

    def terminate(self) -> int:
        """Send SIGTERM; return the exit status."""
        self._process.terminate()
        return self.end(GRACE)

    def tail(self) -> str:
        """Return the end of what it has printed."""
        return f"status {self.status}\n{self.text[-1500:]}"


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [d for child in map(int, children) for d in (child, *_descendants(child))]


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# ---- Ends ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class End:
    """What a finished run leaves, without timings: metrics and parameters."""

    metrics: list[dict[str, Any]]
    params: dict[str, str]  # shape, dtype and checksum by name


_loading = threading.Lock()


def end_of(workdir: Path) -> End:
    """Read the end of a run."""
    import jax

    from simmim_jax.checkpoints import store
    from simmim_jax.monitoring.writer import read_metrics

    lines = read_metrics(workdir / "metrics.jsonl")
    metrics = [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]
    with _loading:
        tree = store.load(workdir / "checkpoints" / str(STEPS))[0]
    return End(
        metrics,
        {
            jax.tree_util.keystr(path): f"{x.shape} {x.dtype} "
            + hashlib.blake2b(x.tobytes()).hexdigest()
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        },
    )


def difference(found: End, expected: End) -> str:
    """Return in what two ends differ, "" if in nothing."""
    for line, other in zip(found.metrics, expected.metrics, strict=False):
        if line != other:
            return f"metrics differ: {line}, expected {other}"
    if len(found.metrics) != len(expected.metrics):
        return f"{len(found.metrics)} lines of metrics, not {len(expected.metrics)}"
    names = [n for n in expected.params if found.params.get(n) != expected.params[n]]
    return f"parameters differ: {', '.join(names[:3])}" if names else ""


def complete_steps(workdir: Path) -> list[int]:
    """Return the steps of the checkpoints that are complete, sorted."""
    found = (workdir / "checkpoints").glob("*/params")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())
