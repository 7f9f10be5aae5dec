"""Processes that decode: what they leave behind, and how they end."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.loader import workers
from simmim_jax.data.loader.workers import Threads, Workers, run_ahead, share_out
from simmim_jax.data.sources.base import ArraySource
from simmim_jax.data.sources.folders import FolderSource
from tests.batches import train_iterator

ROOT = Path(__file__).parents[3]


class Filler:
    """Rows that tell their step, and whatever else a test needs."""

    def __init__(self, what=None):
        self.batch_size = 5
        self.fields = {"image": ((5, 3), np.uint8), "label": ((5,), np.int64)}
        self.what = what

    def fill(self, step, rows, batch):
        part = slice(rows.start, rows.stop)
        batch["image"][part] = step
        batch["label"][part] = os.getpid()
        return self.what(step, rows) if self.what else []


POOLS = {
    "threads": Threads,
    "a worker": lambda filler: Workers(filler, 1),
    "3 workers": lambda filler: Workers(filler, 3),
    "more workers than rows": lambda filler: Workers(filler, 7),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_batches_come_in_order_and_keep_their_pixels_while_held(pool):
    pool = pool(Filler())
    batches = [batch for batch, _ in run_ahead(pool, range(12))]
    for step, batch in enumerate(batches):
        assert batch["image"].shape == (5, 3)
        assert (batch["image"] == step).all()
    pool.close()
    assert (batches[3]["image"] == 3).all()


def test_memory_is_shared_where_the_system_has_no_memfd_too(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    pool = Workers(Filler(), 2)
    steps = [batch["image"][0, 0] for batch, _ in run_ahead(pool, range(6))]
    assert steps == list(range(6))
    pool.close()


def test_rows_are_shared_out_among_all_workers():
    pool = Workers(Filler(), 3)
    batch, _ = next(run_ahead(pool, range(1)))
    pids = batch["label"].tolist()
    assert len(set(pids)) == 3
    assert os.getpid() not in pids
    pool.close()


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_memory_is_used_again_once_no_view_of_it_is_left(pool):
    pool = pool(Filler())
    batches = run_ahead(pool, range(100))
    kept = next(batches)[0]["image"][2:].reshape(-1)
    addresses = {next(batches)[0]["image"].ctypes.data for _ in range(50)}
    assert len(addresses) <= 4  # AHEAD, the one in use, the one that was
    assert (kept == 0).all()
    del kept
    gc.collect()
    pool.close()


def fails(step, rows):
    del rows
    if step == 2:
        raise KeyError("of step 2")
    return []


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_errors_arrive_with_the_batch_that_they_befell(pool):
    pool = pool(Filler(fails))
    batches = run_ahead(pool, range(9))
    for _ in range(2):
        next(batches)
    with pytest.raises(KeyError, match="of step 2") as caught:
        next(batches)
    if isinstance(pool, Workers):
        assert "in fails" in str(caught.value.__cause__)  # where in the worker it was
    pool.close()


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def fails_oddly(step, rows):
    del step, rows
    raise Unpicklable(1, 2)


def test_an_error_that_cannot_be_sent_is_told():
    pool = Workers(Filler(fails_oddly), 2)
    with pytest.raises(RuntimeError, match="Unpicklable: 1 2"):
        next(run_ahead(pool, range(9)))
    pool.close()


def dies(step, rows):
    if step == 1 and rows.start == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_a_worker_that_is_killed_is_noticed_and_explained():
    pool = Workers(Filler(dies), 2)
    batches = run_ahead(pool, range(9))
    next(batches)
    with pytest.raises(RuntimeError, match=r"exit code -9.*smaller config\.data\.num"):
        next(batches)
    pool.close()


# ---- What is left of them ------------------------------------------------------------

# The source is large enough that workers are amid a batch most of the time.
SCRIPT = """
import sys, time
import numpy as np
from simmim_jax.data.loader.pipeline import train_iterator
from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.sources.base import ArraySource
from simmim_jax.data.views.image import RandomCropView

def main():
    images = np.zeros((64, 300, 300, 3), np.uint8)
    view = RandomCropView(
        size=(224, 224), decoding=Decoding(channels=3), scale=(0.5, 1.0),
        ratio=(1.0, 1.0), interpolation="bicubic", fast=False,
    )
    iterator = train_iterator(
        ArraySource(images, None, ()), view, batch_size=64, seed=0, num_workers=2,
        num_threads=2,
    )
    for step in range(3):
        batch = next(iterator)
    print("ready", flush=True)
    how = sys.argv[1]
    if how == "close":
        iterator.close()
    elif how == "raise":
        next(iterator)
        raise ValueError("of the main process")
    elif how == "wait":
        while True:
            next(iterator)

if __name__ == "__main__":
    main()
"""


def descendants(pid):
    """Process ids of children and theirs."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [d for c in map(int, children) for d in (c, *descendants(c))]


def running(pid):
    """Whether the process is there and no zombie."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("how", "number", "status"),
    [
        ("close", None, 0),
        ("exit", None, 0),
        ("raise", None, 1),
        ("wait", signal.SIGINT, -signal.SIGINT),
        ("wait", signal.SIGTERM, -signal.SIGTERM),
        ("wait", signal.SIGKILL, -signal.SIGKILL),
    ],
    ids=["close", "exit", "exception", "Ctrl-C", "SIGTERM", "SIGKILL"],
)
def test_neither_processes_nor_memory_are_left_behind(how, number, status, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, how],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n", process.communicate()
    others = descendants(process.pid)
    if number:
        assert len(others) >= 2
        for pid in others:
            # Nothing that has a name could be left behind.
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "/dev/shm" not in maps
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert_they_end(others)
    # One traceback of the main process at most, none of the workers.
    assert errors.count("Traceback") == (status == 1 or number == signal.SIGINT)


def assert_they_end(pids):
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def crops_of(source, **options):
    """The stream of a source's random square crops."""
    return train_iterator(
        source,
        scale=(0.5, 1.0),
        ratio=(1.0, 1.0),
        interpolation="bilinear",
        fast_decode=True,
        seed=0,
        **options,
    )


def test_workers_end_with_the_iterator_that_nobody_closed():
    source = ArraySource(np.zeros((9, 16, 16, 1), np.uint8), None, ())
    iterator = crops_of(
        source, batch_size=4, image_size=(8, 8), channels=1, num_workers=2
    )
    before = descendants(os.getpid())
    next(iterator)
    workers = set(descendants(os.getpid())) - set(before)
    assert len(workers) >= 2
    del iterator
    gc.collect()
    assert not any(map(running, workers & set(descendants(os.getpid()))))


def megabytes(pid):
    """Its own memory, and its share of what it shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("Pss:"))


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc"
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_memory_does_not_grow_over_epochs(num_workers, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    iterator = crops_of(
        FolderSource(str(tmp_path), tuple(os.listdir(tmp_path)), None, ()),
        batch_size=17,
        image_size=(224, 224),
        channels=3,
        num_workers=num_workers,
        num_threads=2,
    )
    before = set(descendants(os.getpid()))

    def measure(epochs):
        for _ in range(epochs):
            next(iterator)
        gc.collect()
        pids = [os.getpid(), *set(descendants(os.getpid())) - before]
        return np.array([megabytes(pid) for pid in pids])

    first = measure(10)
    later = measure(60)
    iterator.close()
    # A batch has 2.5 MB: one that is kept an epoch would be 150 MB.
    assert (later - first).max() < 8, (first, later)


# ---- How many ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpus", "asked", "expected"),
    [
        (1, (-1, -1), (0, 1)),
        (2, (-1, -1), (0, 2)),
        (4, (-1, -1), (0, 4)),
        (5, (-1, -1), (2, 3)),
        (16, (-1, -1), (4, 4)),
        (112, (-1, -1), (28, 4)),
        (16, (8, -1), (8, 2)),
        (16, (0, -1), (0, 4)),
        (16, (-1, 1), (16, 1)),
        (16, (-1, 32), (0, 32)),
        (2, (16, 3), (16, 3)),
    ],
)
def test_workers_and_threads_for_so_many_cpus(cpus, asked, expected):
    assert share_out(cpus, *asked) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "2000000 100000"}, 8),
        # What stands above counts as well; a container may see its own group alone.
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ({"a/b/cpu.max": "100000 100000", "a/cpu.max": "300000 100000"}, 1),
    ],
)
def test_quotas_of_a_container_are_respected(files, expected, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(f"{content}\n")
    (tmp_path / "cgroup").write_text("4:memory:/x\n0::/a/b\n")
    monkeypatch.setattr(workers, "_OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(workers, "_GROUPS", tmp_path / "root")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert workers.num_cpus() == expected
    (tmp_path / "cgroup").unlink()  # not Linux
    assert 1 <= workers.num_cpus() <= 8
