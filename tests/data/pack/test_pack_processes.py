"""Processes that pack: progress, errors, and termination."""

import os
import pty
import re
import signal
import subprocess
import time

import numpy as np
import pytest

from simmim_jax.data.pack.processes import Processes, _Log
from simmim_jax.data.pack.shards import Options, Shard, write_shard
from simmim_jax.data.sources import packed
from simmim_jax.data.sources.base import ArraySource, SubsetSource
from tests.packing import COMMAND, ROOT


def test_progress_is_shown_in_a_terminal(tmp_path):
    reader, writer = pty.openpty()
    command = [*COMMAND, "bundled:climate", str(tmp_path), "--format=raw"]
    subprocess.run(command, cwd=ROOT, stdout=writer, check=True)
    shown = os.read(reader, 100_000).decode()
    os.close(reader)
    os.close(writer)
    done = r"5228/5228 images  [\d.]+ images/s  eta 00:00"
    assert re.search(rf"\rpacking +{done}", shown)
    assert re.search(rf"\rverifying +{done}", shown)


def test_a_log_file_gets_lines(capsys):
    with _Log("packing", 200, 0) as log:
        log.show(50, 0)
        log.show(100, 3)
        log.show(200, 3)
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"packing +50/200 images  .* images/s  eta 00:0\d", first)
    assert re.fullmatch(r"packing +100/200 images  .*, 3 skipped", second)


def test_an_error_in_one_process_stops_the_others(tmp_path):
    unfinished = tmp_path / packed.UNFINISHED
    unfinished.mkdir()
    (unfinished / "full").symlink_to("/dev/full")
    image = ArraySource(np.zeros((1, 1, 1, 3), np.uint8), None, ())
    # Writing all examples would take minutes.
    source = SubsetSource(image, np.zeros(5_000_000, np.int8))
    shards = [Shard("a", "long", 0, len(source)), Shard("a", "full", 0, 1)]
    start = time.monotonic()
    with (
        Processes(2, str(tmp_path), "", {"a": source}, Options(0)) as processes,
        pytest.raises(OSError, match="No space left"),
    ):
        processes.map(write_shard, shards, "packing", len(source))
    assert time.monotonic() - start < 30


def test_processes_ignore_ctrl_c(tmp_path):
    with Processes(1, str(tmp_path), "", {}, Options()) as processes:
        found = processes.map(signal.getsignal, [signal.SIGINT], "packing", 1)
    assert found == [signal.SIG_IGN]


def test_a_killed_process_is_an_error(tmp_path):
    with (
        Processes(1, str(tmp_path), "", {}, Options()) as processes,
        pytest.raises(ChildProcessError, match="fewer --workers"),
    ):
        processes.map(signal.raise_signal, [signal.SIGKILL], "packing", 1)
