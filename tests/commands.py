"""Run the command line as a user does, in separate processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from simmim_jax.checkpoints import store
from simmim_jax.monitoring.writer import read_metrics

ROOT = Path(__file__).parents[1]
# Metrics that a clock decides: they differ from run to run.
TIMINGS = {
    "images_per_second",
    "images_per_second_per_chip",
    "input_wait",
    "first_step_seconds",
    "compile_seconds",
    "checkpoint_seconds",
}


def start(
    *args: str | Path,
    devices: int = 1,
    module: str = "simmim_jax.main",
    dump: Path | None = None,
):
    """Start `python -m module args` with this number of virtual devices.

    dump: folder for compiled programs.
    """
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)}
    if dump:
        env["XLA_FLAGS"] += f" --xla_dump_to={dump}"
        env["JAX_COMPILATION_CACHE_DIR"] = str(dump)  # without programs of other runs
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def xla_flags(devices: int) -> str:
    """Return the value of XLA_FLAGS for this number of virtual devices."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return f"{os.environ.get('XLA_FLAGS', '')} {count}"


def run(*args: str | Path, status: int = 0, **options) -> str:
    """Return the output of the command; its exit status must be `status`."""
    process = start(*args, **options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def start_together(count: int, *args: str | Path, **options) -> list[subprocess.Popen]:
    """Start `count` processes of one run, which meet at a local port."""
    port = free_port()
    return [
        start(*args, *joining(count, process, port), **options)
        for process in range(count)
    ]


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def joining(count: int, process: int, port: int) -> list[str]:
    """Return the flags of one process of `count`."""
    return [
        f"--coordinator_address=localhost:{port}",
        f"--num_processes={count}",
        f"--process_id={process}",
        "--heartbeat_timeout=20",
    ]


def outputs(processes: list[subprocess.Popen], *statuses: int) -> list[str]:
    """Return their outputs; the exit statuses must be these, or all 0."""
    try:
        said = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = tuple(process.returncode for process in processes)
    assert found == (statuses or (0,) * len(processes)), "\n".join(said)
    return said


def tiny(mode: str, workdir: Path, *overrides: str) -> list[str]:
    """Return the arguments of a run of tests/tiny_config.py."""
    fields = [f"--config.{override}" for override in overrides]
    return [f"--config=tests/tiny_config.py:{mode}", f"--workdir={workdir}", *fields]


def copy_run(workdir: Path, to: Path, step: int) -> None:
    """Copy a run as it was when the checkpoint of that step was its last."""
    shutil.copytree(workdir, to, dirs_exist_ok=True)
    for folder in (to / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder)


def interrupt(process: subprocess.Popen, when: Callable[[], bool], number: int) -> str:
    """Send a signal as soon as `when()` holds; return the output."""
    while not when():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(number)
    return process.communicate(timeout=120)[0]


def kill(process: subprocess.Popen, when: Callable[[], bool]) -> None:
    """Send SIGKILL as soon as `when()` holds."""
    interrupt(process, when, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def descendants(pid: int) -> list[int]:
    """Return the ids of a process's children, and of theirs."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [d for c in map(int, children) for d in (c, *descendants(c))]


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def assert_ended(pids: list[int]) -> None:
    """Wait up to 20 s until the processes have ended."""
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def params(workdir: Path, step: int) -> dict:
    """Return the parameters of one checkpoint."""
    return store.load(workdir / "checkpoints" / str(step))[0]


def latest_params(workdir: Path, step: int) -> dict:
    """Return the parameters that a run with a moving average resumes from."""
    path = workdir / "checkpoints" / str(step) / "optimizer"
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(path)["params"]


def metrics(workdir: Path) -> list[dict]:
    """Return the lines of metrics.jsonl without timings."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def summary(workdir: Path) -> dict:
    """Return <workdir>/summary.json."""
    return json.loads((workdir / "summary.json").read_text())


def config(workdir: Path) -> dict:
    """Return the config that a run saved."""
    return json.loads((workdir / "config.json").read_text())["config"]


def assert_same(a, b, **tolerance: float) -> None:
    """Assert that trees of arrays are equal; bit for bit without a tolerance."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if tolerance:
            np.testing.assert_allclose(x, y, **tolerance)
        else:
            np.testing.assert_array_equal(x, y)
