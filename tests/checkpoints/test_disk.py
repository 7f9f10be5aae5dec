"""Full and read-only disks: checked before a run, and one sentence afterwards."""

import errno
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import commands
import jax
import jax.numpy as jnp
import pytest

from simmim_jax.checkpoints import disk, layout, store
from simmim_jax.checkpoints.checksums import DamagedError
from simmim_jax.errors import StorageError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def free(monkeypatch):
    """Set the free space of all disks [bytes]."""

    def set_free(size):
        usage = shutil._ntuple_diskusage(10 * size, 9 * size, size)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return set_free


def test_size_of_a_state_is_that_of_its_files(tmp_path):
    params = {"w": jnp.arange(250_000.0), "b": jnp.ones(10, jnp.bfloat16)}
    assert store.size_of(jax.eval_shape(lambda: params)) == 1_000_020
    store.write(tmp_path / "converted", params, {})
    files = (tmp_path / "converted/params").rglob("*")
    assert sum(f.stat().st_size for f in files if f.is_file()) < 1_050_000


def test_what_is_deleted_meanwhile_does_not_count(tmp_path):
    """Orbax deletes what a killed run has left, while the next one begins."""
    unfinished = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    ended = threading.Event()

    def come_and_go():
        while not ended.is_set():
            for item in map(str, range(20)):
                (unfinished / item).mkdir(parents=True)
                (unfinished / item / "file").write_bytes(bytes(100))
            shutil.rmtree(unfinished)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(come_and_go)
        try:
            for _ in range(300):
                disk.check(tmp_path, 1, keep=1)
        finally:
            ended.set()
        writer.result()


def test_the_last_the_best_and_the_one_being_written_must_fit(free, tmp_path):
    free(5_000_000_000)
    assert disk.check(tmp_path, 1_000_000_000, keep=3) == (
        "a checkpoint takes 1.0 GB; 5.0 GB are free"
    )
    free(4_900_000_000)
    with pytest.raises(StorageError) as error:
        disk.check(tmp_path, 1_000_000_000, keep=3)
    assert str(error.value).startswith(
        f"'{tmp_path}' has 4.9 GB free, but 5 checkpoints of 1.0 GB need 5.0 GB more: "
        "config.keep_checkpoints=3"
    )


def test_a_resumed_run_needs_less(free, tmp_path):
    free(3000)
    step = tmp_path / "checkpoints" / "4" / "params"
    step.mkdir(parents=True)
    (step / "numbers").write_bytes(bytes(2000))
    disk.check(tmp_path, 1000, keep=3)
    with pytest.raises(StorageError, match=r"need 4\.0 kB more"):
        disk.check(tmp_path, 1000, keep=4)


def orbax_error(folder):
    tmp = f"{folder}/checkpoints/12.orbax-checkpoint-tmp/params.orbax-checkpoint-tmp/"
    return ValueError(
        f'RESOURCE_EXHAUSTED: Error writing "count/0" in OCDBT database at local file '
        f'"{tmp}": Failed writing: "{tmp}d/1": No space left on device [OS error 28]'
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: FULL, "No space left on device"),
        (
            lambda folder: OSError(errno.EDQUOT, "Disk quota exceeded", f"{folder}/x"),
            "Disk quota exceeded (",
        ),
        (orbax_error, "No space left on device"),
        (
            lambda folder: PermissionError(errno.EACCES, "Denied", f"{folder}/x.png"),
            "Denied (",
        ),
        (
            lambda folder: OSError(errno.EROFS, "Read-only file system", f"{folder}/x"),
            "Read-only file system (",
        ),
    ],
)
def test_errors_of_the_workdir_become_a_sentence(make, reason, free, tmp_path):
    free(123_000)
    for step in (4, 8):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    with pytest.raises(StorageError) as error, disk.explained(tmp_path, 21_800_000):
        raise make(tmp_path)
    said = str(error.value)
    assert said.startswith(f"'{tmp_path}' cannot be written to: {reason}")
    assert "A checkpoint needs 21.8 MB, and 123.0 kB are free." in said
    assert "Last good checkpoint: step 8." in said
    assert "\n" not in said


def test_an_error_while_cleaning_up_does_not_hide_the_first(tmp_path):
    @disk.explained(tmp_path, 1)
    def fail():
        try:
            raise FULL
        finally:
            raise RuntimeError("Event loop is closed")

    with pytest.raises(StorageError, match="none yet"):
        fail()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        FileNotFoundError(errno.ENOENT, "No such file", "/data/photo.jpg"),
        OSError(errno.ENOSPC, "No space left on device", "/home/me/.cache/index"),
        OSError("cannot identify image file"),
    ],
)
def test_other_errors_pass(error, tmp_path):
    with pytest.raises(type(error)) as raised, disk.explained(tmp_path, 1):
        raise error
    assert raised.value is error


def test_a_damaged_file_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(DamagedError, match="damaged"), disk.explained(tmp_path, 1):
        layout.read_record(tmp_path)  # it has no config.json


def test_a_failed_save_leaves_earlier_checkpoints(tmp_path):
    """Limits the size of files, which needs no full disk."""
    code = """
        import pathlib, resource
        import jax.numpy as jnp
        from simmim_jax.checkpoints import disk
        from simmim_jax.checkpoints.store import Checkpointer
        workdir = pathlib.Path({workdir!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        parts = dict(data={{}}, meta={{}}, optimizer={{"step": jnp.int32(1)}})
        with disk.explained(workdir, 4_000_000):
            with Checkpointer(workdir, keep=2, best="loss", mode="min") as checkpoints:
                checkpoints.save(1, params={{"w": jnp.ones(10)}}, **parts)
                checkpoints.rate(1, {{"loss": 0.5}})
                checkpoints.save(2, params={{"w": jnp.arange(1e6)}}, **parts)
                checkpoints.rate(2, {{"loss": 0.1}})
                checkpoints.wait()
    """
    code = textwrap.dedent(code).format(workdir=str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=commands.ROOT
    )
    last = run.stderr.strip().splitlines()[-1]
    assert "cannot be written to: File too large" in last
    assert "Last good checkpoint: step 1." in last
    assert "Event loop is closed" not in run.stderr
    assert store.load(tmp_path)[0]["w"].sum() == 10
    with store.Checkpointer(tmp_path, keep=2, best="loss", mode="min") as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.metrics(1) == {"loss": 0.5}


def test_a_read_only_workdir_is_one_sentence():
    # Below /proc not even root may write.
    with pytest.raises(StorageError, match=r"'/proc/runs' cannot be written to: .*\. "):
        disk.make_workdir("/proc/runs")


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_a_sentence(tmp_path):
    args = commands.tiny(
        "pretrain", tmp_path, "model.embed_dim=192", "model.depth=4", "pictures=0"
    )
    shell = 'ulimit -f 4096; exec "$@"'  # KiB, below the size of a checkpoint
    run = subprocess.run(
        ["bash", "-c", shell, "-", sys.executable, "-m", "simmim_jax.main", *args],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=commands.ROOT,
    )
    assert run.returncode == 1
    (sentence,) = [line for line in run.stderr.splitlines() if line]
    assert re.match(
        rf"'{tmp_path}' cannot be written to: File too large.* A checkpoint needs "
        r"21\.\d MB, and .* are free\. Last good checkpoint: none yet\.",
        sentence,
    )
