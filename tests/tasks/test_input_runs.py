"""Whole runs that read files in worker processes: bad images, kills and Ctrl-C."""

import shutil
import signal
import subprocess
import time

import commands
import numpy as np
import pytest
from PIL import Image


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 9, (40, 50, 3), np.uint8)
    Image.fromarray(noise + np.uint8(value)).save(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    for i in range(60):
        write(folder / "train" / f"{i:02}.jpg", i * 4)
    for i in range(20):
        write(folder / "val" / f"{i:02}.jpg", i * 4)
    (folder / "train" / "00.jpg").write_bytes(b"")
    (folder / "train" / "01.jpg").write_bytes(b"no image")
    (folder / "val" / "05.jpg").write_bytes(b"")
    return folder


FIELDS = (
    "data.channels=3",
    "data.mean=(0.5,0.5,0.5)",
    "data.std=(0.5,0.5,0.5)",
    "data.num_workers=3",
    "data.num_threads=1",
)


def run_args(workdir, dataset, *fields):
    return commands.tiny(
        "pretrain", workdir, f"data.dataset={dataset}", *FIELDS, *fields
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, dataset):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, commands.run(*run_args(workdir, dataset))


def test_run_logs_counts_and_lists_bad_images(uninterrupted, dataset):
    workdir, output = uninterrupted
    lines = commands.metrics(workdir)
    # 12 steps of 16 are 3.2 epochs of 60.
    last = [line for line in lines if "loss" in line][-1]
    assert 3 <= last["bad_images/empty"] <= 4
    assert 3 <= last["bad_images/not an image"] <= 4
    evaluated = [line for line in lines if "eval_loss" in line]
    assert all(line["eval_bad_images/empty"] == 1 for line in evaluated)
    header, *rows = (workdir / "bad_images.tsv").read_text().splitlines()
    assert header == "reason\tsplit\tindex\tpath"
    assert sorted(rows) == [
        f"empty\ttrain\t0\t{dataset}/train/00.jpg",
        f"empty\tvalidation\t5\t{dataset}/val/05.jpg",
        f"not an image\ttrain\t1\t{dataset}/train/01.jpg",
    ]
    assert output.count("bad image, ") == 3
    assert "bad image, empty: train example 0" in output


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit_and_lists_nothing_twice(
    uninterrupted, dataset, tmp_path
):
    """Resume in the middle of an epoch, with another number of workers."""
    args = run_args(tmp_path, dataset)
    commands.kill(commands.start(*args), lambda: (tmp_path / "checkpoints/4").exists())
    output = commands.run(*run_args(tmp_path, dataset, "data.num_workers=2"))
    assert "resumed at step" in output
    workdir, _ = uninterrupted
    commands.assert_same(commands.params(tmp_path, 12), commands.params(workdir, 12))
    assert commands.metrics(tmp_path) == commands.metrics(workdir)
    lists = [(path / "bad_images.tsv").read_text() for path in (tmp_path, workdir)]
    assert sorted(lists[0].splitlines()) == sorted(lists[1].splitlines())


def test_run_on_garbage_ends_with_a_sentence(dataset, tmp_path):
    garbage = tmp_path / "garbage"
    shutil.copytree(dataset, garbage)
    for i in range(30):
        (garbage / "train" / f"{i:02}.jpg").write_bytes(b"garbage")
    workdir = tmp_path / "run"
    output = commands.run(*run_args(workdir, garbage), status=1)
    error = output[output.index("examples of the train split") :]
    assert error.startswith("examples of the train split have no usable image")
    assert str(workdir / "bad_images.tsv") in error
    assert "Traceback" not in output


@pytest.mark.slow
def test_ctrl_c_reaches_workers_and_the_run_saves_and_resumes(
    uninterrupted, dataset, tmp_path
):
    args = run_args(tmp_path, dataset)
    process = commands.start(*args)
    metrics = tmp_path / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    workers = commands.descendants(process.pid)
    assert len(workers) >= 3
    for pid in (*workers, process.pid):
        subprocess.run(["kill", f"-{signal.SIGINT.value}", str(pid)], check=False)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "SIGINT at step" in output
    assert "Traceback" not in output
    commands.assert_ended(workers)
    assert "resumed at step" in commands.run(*args)
    workdir, _ = uninterrupted
    commands.assert_same(commands.params(tmp_path, 12), commands.params(workdir, 12))
