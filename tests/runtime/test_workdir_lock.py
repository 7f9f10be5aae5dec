"""One run a workdir: refused, stale and damaged locks, on this machine and others."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import commands
import pytest

from simmim_jax.errors import UserError
from simmim_jax.runtime import workdir_lock

FAST = "workdir_lock._BEAT, workdir_lock._STALE = 0.1, 1.5\n"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(workdir_lock, "_BEAT", 0.1)
    monkeypatch.setattr(workdir_lock, "_STALE", 1.5)


def start_holder(folder, machine=None):
    """Start a process that holds the lock until it is killed."""
    pretend = f"workdir_lock._machine = lambda: {machine!r}\n" if machine else ""
    code = f"""
        import pathlib, time
        from simmim_jax.runtime import workdir_lock
        with workdir_lock.held(pathlib.Path({str(folder)!r})):
            print("held", flush=True)
            time.sleep(120)
    """
    code = textwrap.dedent(code).replace("with", FAST + pretend + "with", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=commands.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line == "held\n", line + process.stderr.read()
    return process


@pytest.fixture(params=["this machine", "another"])
def holder(request, tmp_path):
    process = start_holder(
        tmp_path, None if request.param == "this machine" else request.param
    )
    yield process
    process.kill()
    process.communicate()


def other_machine(folder, **changes):
    """Write the lock of a process on another machine."""
    content = workdir_lock._describe_holder() | {"machine": "another", **changes}
    (folder / workdir_lock.FILE).write_text(json.dumps(content))


def test_a_free_lock_is_held_and_released(tmp_path):
    with workdir_lock.held(tmp_path):
        content = json.loads((tmp_path / workdir_lock.FILE).read_text())
        assert content["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_second_run_is_refused_by_name(holder, tmp_path):
    begin = time.monotonic()
    match = rf"is in use by process {holder.pid} on \S+, started 20"
    with pytest.raises(UserError, match=match), workdir_lock.held(tmp_path):
        pass
    assert time.monotonic() - begin < 1.0  # before it could be stale
    assert holder.poll() is None
    assert (tmp_path / workdir_lock.FILE).exists()


def test_the_lock_of_a_killed_run_is_taken_over(holder, tmp_path, capsys):
    stopped_here = json.loads((tmp_path / workdir_lock.FILE).read_text())
    holder.kill()
    holder.wait()
    begin = time.monotonic()
    with workdir_lock.held(tmp_path):
        waited = time.monotonic() - begin
        assert json.loads((tmp_path / workdir_lock.FILE).read_text())["pid"] == (
            os.getpid()
        )
    is_here = stopped_here["machine"] == workdir_lock._machine()
    assert (waited < 1.4) if is_here else (1.5 <= waited < 5)
    assert ("Waiting up to" in capsys.readouterr().out) == (not is_here)


def test_a_waiting_run_goes_on_when_the_lock_is_released(tmp_path):
    other_machine(tmp_path)
    release = threading.Timer(0.3, (tmp_path / workdir_lock.FILE).unlink)
    release.start()
    begin = time.monotonic()
    with workdir_lock.held(tmp_path):
        assert time.monotonic() - begin < 1.4


def test_a_process_id_that_another_process_has_now_is_no_holder(tmp_path):
    other_machine(tmp_path, machine=workdir_lock._machine(), process_started="1")
    with workdir_lock.held(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "1"}', 9999 * "["])
def test_a_damaged_lock_becomes_stale(content, tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "_STALE", 0.2)
    (tmp_path / workdir_lock.FILE).write_text(content)
    with workdir_lock.held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def _take(folder, taken):
    workdir_lock._BEAT, workdir_lock._STALE = 0.1, 0.5
    try:
        with workdir_lock.held(folder):
            taken.append(os.getpid())
            time.sleep(1.5)
    except UserError:
        pass


def test_of_several_that_wait_for_a_stale_lock_one_gets_it(tmp_path):
    other_machine(tmp_path)
    with multiprocessing.get_context("spawn").Manager() as manager:
        taken = manager.list()
        context = multiprocessing.get_context("spawn")
        runs = [context.Process(target=_take, args=(tmp_path, taken)) for _ in range(3)]
        for run in runs:
            run.start()
        for run in runs:
            run.join(60)
        assert len(taken) == 1


def test_a_run_that_was_silent_too_long_ends(tmp_path):
    holder = start_holder(tmp_path, machine="another")
    holder.send_signal(signal.SIGSTOP)
    with workdir_lock.held(tmp_path):
        holder.send_signal(signal.SIGCONT)
        _, error = holder.communicate(timeout=20)
        assert holder.returncode == 1
        assert f"was taken over by process {os.getpid()} on " in error
        assert (tmp_path / workdir_lock.FILE).exists()


def test_a_lock_that_was_deleted_is_written_again(tmp_path):
    with workdir_lock.held(tmp_path):
        (tmp_path / workdir_lock.FILE).unlink()
        end = time.monotonic() + 5
        while not (tmp_path / workdir_lock.FILE).exists():
            assert time.monotonic() < end
            time.sleep(0.02)


def test_of_several_folders_all_or_none_are_held(tmp_path):
    whole, part = tmp_path, tmp_path / "part"
    part.mkdir()
    with workdir_lock.held(part):
        with pytest.raises(UserError), workdir_lock.held(whole, part):
            pass
        assert not (whole / workdir_lock.FILE).exists()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with (
        pytest.raises(UserError, match="cannot be written to: Not a directory"),
        workdir_lock.held(file),
    ):
        pass
