"""Runs of several processes on one machine, with Gloo: results, signals, failures."""

import os
import shutil
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pytest
from PIL import Image

from simmim_jax.runtime import distributed

pytestmark = pytest.mark.slow

# Wide enough for FSDP to split matrices; with an average of the parameters.
WIDE = ("model.embed_dim=512", "model.depth=1", "ema_decay=0.5", "pictures=0")
# No worker processes.
THREADS = ("data.num_workers=0", "data.num_threads=1")
# Evaluate at the end only: fewer programs to compile.
LONG = (
    *WIDE,
    *THREADS,
    "duration=24 steps",
    "eval_every=0 steps",
    "checkpoint_every=8 steps",
)


def dataset(folder, *, bad, classes=("",)):
    """Write 48 and 20 images; the first `bad` of each split are unreadable.

    In the last evaluation batch the second of two processes has no images.
    """
    for split, count in (("train", 48), ("val", 20)):
        for i in range(count):
            file = folder / split / classes[i % len(classes)] / f"{i:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(i).integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(noise).save(file)
            if i < bad:
                file.write_bytes(b"garbage")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A small data set, to keep evaluation short."""
    return dataset(tmp_path_factory.mktemp("images") / "data", bad=0)


@pytest.fixture(scope="module")
def long(images):
    return (*LONG, f"data.dataset={images}")


def losses(workdir, name="loss"):
    return [line[name] for line in commands.metrics(workdir) if name in line]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, long):
    """An uninterrupted run of two processes with two devices each."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    args = commands.tiny("pretrain", workdir, *long, "mesh.fsdp=4")
    return workdir, commands.outputs(commands.start_together(2, *args, devices=2))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, long):
    """The same run in one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    commands.run(*commands.tiny("pretrain", workdir, *long))
    return workdir


def test_two_processes_match_one(uninterrupted, alone):
    workdir, said = uninterrupted
    assert "process 0 of 2, 2 of 4 devices" in said[0]
    assert "process 1 of 2, 2 of 4 devices" in said[1]
    assert "loss" not in said[1]  # process 0 logs
    for name in ("loss", "eval_loss", "avg_dist"):
        assert losses(workdir, name) == pytest.approx(losses(alone, name), rel=1e-5)
    commands.assert_same(
        commands.params(workdir, 24), commands.params(alone, 24), atol=2e-5
    )


def test_one_process_resumes_their_checkpoint(uninterrupted, alone, long, tmp_path):
    """The mesh changes: four shards of each matrix become one."""
    workdir, _ = uninterrupted
    commands.copy_run(workdir, tmp_path, step=16)
    output = commands.run(*commands.tiny("pretrain", tmp_path, *long))
    assert "resumed at step 16 of 24" in output
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)


def test_sigterm_then_kill_then_resume_bit_for_bit(uninterrupted, long, tmp_path):
    """One process receives the signal; all save the same step."""
    args = commands.tiny("pretrain", tmp_path, *long, "mesh.fsdp=4")

    def start():
        return commands.start_together(2, *args, devices=2)

    def wait_for(step, processes):
        while not (tmp_path / f"checkpoints/{step}").exists():
            assert processes[0].poll() is None, commands.outputs(processes)
            time.sleep(0.01)

    processes = start()
    wait_for(8, processes)
    processes[1].send_signal(signal.SIGTERM)
    said = commands.outputs(processes, 75, 75)
    assert "a signal to another process at step" in said[0]
    (last,) = losses(tmp_path, "step")[-1:]
    assert 8 < last < 24
    assert (tmp_path / f"checkpoints/{last}").is_dir()

    processes = start()
    wait_for(16, processes)
    processes[1].kill()
    begin = time.monotonic()
    output, _ = processes[0].communicate(timeout=120)
    processes[1].communicate()
    # Gloo reports the loss, or JAX does when heartbeats stop.
    assert processes[0].returncode in (distributed.EXIT_LOST, -signal.SIGABRT), output
    assert "another process is gone" in output or "another task died" in output
    assert time.monotonic() - begin < 60

    said = commands.outputs(start())
    assert "resumed at step" in said[0]
    commands.assert_same(
        commands.params(tmp_path, 24), commands.params(uninterrupted[0], 24)
    )
    assert commands.metrics(tmp_path) == commands.metrics(uninterrupted[0])


TOGETHER = """
import sys, time
from simmim_jax.runtime import distributed

process, port, failing = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
distributed.start(
    coordinator_address=f"localhost:{port}", num_processes=2, process_id=process
)
distributed.meet()
voting = distributed.AnyProcess()
print([voting.ask(process == 1 and step >= 2) for step in range(5)])
counts = {"empty": process + 1, "missing": process}
print(distributed.total(counts, ("missing", "empty", "corrupt")))
print(distributed.of_first_process({"steps": [process] * (3 - process)}), flush=True)
if failing == process:
    distributed.fail("ValueError: no good", 1)
time.sleep(600 if failing >= 0 else 0)
"""


@pytest.mark.parametrize("failing", [-1, 0, 1])
def test_processes_agree_and_learn_of_a_failure(failing):
    port = str(commands.free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(process), port, str(failing)],
            cwd=commands.ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    status = 0 if failing < 0 else 1
    said = commands.outputs(processes, status, status)
    for process, output in enumerate(said):
        assert "[False, False, False, True, True]" in output
        assert "{'missing': 1, 'empty': 3}" in output
        assert "{'steps': [0, 0, 0]}" in output
        if failing >= 0:
            assert "ValueError: no good" in output
            notice = f"stopped, because another process failed. process {failing}: "
            assert (notice in output) == (process != failing)


def test_a_process_that_nobody_joins_ends(tmp_path):
    begin = time.monotonic()
    output = commands.run(
        *commands.tiny("pretrain", tmp_path),
        *("--coordinator_address=localhost:1", "--num_processes=2", "--process_id=1"),
        "--initialization_timeout=1",
        status=distributed.EXIT_LOST,
    )
    assert "not all processes joined at localhost:1 within 1 s" in output
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--process_id=1",), "--process_id=1: expected all three"),
        (
            ("--coordinator_address=host", "--num_processes=2", "--process_id=1"),
            "such as 10.0.0.1:8476",
        ),
        (
            ("--coordinator_address=host:1", "--num_processes=2", "--process_id=2"),
            "Got process_id=2, num_processes=2",
        ),
        (("--distributed=on",), "or --distributed=off"),
    ],
)
def test_invalid_flags_are_rejected(flags, says, tmp_path):
    output = commands.run(*commands.tiny("pretrain", tmp_path), *flags, status=1)
    assert says in output
    assert "Traceback" not in output


SLURM = {"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_PROCID": "0"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("env", "alone"),
    [
        ({}, False),  # JAX asks the metadata server of a TPU VM
        (SLURM | {"SLURM_NTASKS": "4"}, False),
        (SLURM | {"SLURM_NTASKS": "1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, False),
        ({"TPU_PROCESS_ADDRESSES": "local"}, True),
        (POD, True),
        (POD | {"JOB_COMPLETION_INDEX": "0"}, False),
        (POD | {"TPU_WORKER_HOSTNAMES": "pod-0,pod-1"}, False),
    ],
)
def test_launchers_of_a_single_process(env, alone):
    assert distributed.runs_alone(env) == alone


def test_one_process_needs_no_agreement():
    assert distributed.total({"empty": 2}, ("empty", "corrupt")) == {"empty": 2}
    assert distributed.of_first_process([1, "a"]) == [1, "a"]
    voting = distributed.AnyProcess()
    assert [voting.ask(says) for says in (False, True)] == [False, True]


# ---- Slow tests ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_processes(tmp_path_factory, long):
    """A run of four processes with two devices each, stopped by a signal to one."""
    workdir = tmp_path_factory.mktemp("four")
    args = commands.tiny("pretrain", workdir, *long, "mesh.fsdp=4")
    processes = commands.start_together(4, *args, devices=2)
    while not (workdir / "checkpoints/8").exists():
        assert processes[0].poll() is None, commands.outputs(processes)
        time.sleep(0.01)
    processes[3].send_signal(signal.SIGTERM)
    commands.outputs(processes, *[75] * 4)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "fsdp"), [(1, 1), (2, 2)])
def test_fewer_processes_resume_a_checkpoint_of_four(
    processes, fsdp, four_processes, alone, long, tmp_path
):
    shutil.copytree(four_processes, tmp_path, dirs_exist_ok=True)
    args = commands.tiny("pretrain", tmp_path, *long, f"mesh.fsdp={fsdp}")
    if processes == 1:
        said = [commands.run(*args)]
    else:
        said = commands.outputs(commands.start_together(processes, *args, devices=2))
    assert "resumed at step" in said[0]
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_fine_tuning_from_their_encoder_matches_one_process(uninterrupted, tmp_path):
    data = dataset(tmp_path / "data", bad=0, classes="abc")
    fields = (
        *("model.embed_dim=512", "model.depth=1", "pictures=2", "duration=4 steps"),
        *(f"init_from={uninterrupted[0]}", f"data.dataset={data}"),
        "data.num_labels=0",
        *THREADS,
    )
    one, two = tmp_path / "one", tmp_path / "two"
    commands.run(*commands.tiny("finetune", one, *fields))
    args = commands.tiny("finetune", two, *fields, "mesh.fsdp=2")
    said = commands.outputs(commands.start_together(2, *args, devices=2))
    assert "restored" in said[0]
    assert "restored" not in said[1]
    assert (two / "augmented.png").exists()
    for name in ("loss", "eval_loss", "top1"):
        assert losses(two, name) == pytest.approx(losses(one, name), rel=1e-4)


@pytest.mark.slow
def test_two_processes_compare(tmp_path):
    small = ("model.depth=1", "model.embed_dim=32", "duration=2 steps")
    args = (
        "--config=configs/quickstart.py:smoke",
        f"--workdir={tmp_path}",
        *(f"--config.{field}" for field in (*small, "finetune.optim.warmup=1 steps")),
        "--config.pretrain.optim.warmup=1 steps",
    )
    said = commands.outputs(commands.start_together(2, *args))
    assert "with SimMIM" in said[0]
    assert "with SimMIM " not in said[1]
    assert 0 <= commands.summary(tmp_path)["simmim_top1"] <= 1


@pytest.mark.slow
def test_bad_images_of_all_processes_are_counted(tmp_path):
    data = dataset(tmp_path / "data", bad=3)
    fields = (
        *THREADS,
        f"data.dataset={data}",
        "pictures=0",
        "data.max_bad_fraction=0.5",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    commands.run(*commands.tiny("pretrain", one, *fields))
    args = commands.tiny("pretrain", two, *fields)
    commands.outputs(commands.start_together(2, *args))
    for name in ("bad_images/not an image", "eval_bad_images/not an image"):
        assert losses(two, name) == losses(one, name)
        assert losses(two, name)[-1] >= 3
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
def test_too_many_bad_images_in_one_process_end_all(tmp_path):
    """All of them are evaluation images of the first process."""
    data = dataset(tmp_path / "data", bad=0)
    for i in range(4):
        (data / "val" / f"{i:02}.png").write_bytes(b"garbage")
    args = commands.tiny("pretrain", tmp_path / "run", *THREADS, f"data.dataset={data}")
    for output in commands.outputs(commands.start_together(2, *args), 1, 1):
        assert "4 of 20 examples of the validation split" in output
        assert "Traceback" not in output


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others(tmp_path):
    """A file of the second process turns out to be a folder."""
    workdir = tmp_path / "run"
    (workdir / "bad_images.1.tsv").mkdir(parents=True)
    data = dataset(tmp_path / "data", bad=3)
    args = commands.tiny("pretrain", workdir, *THREADS, f"data.dataset={data}")
    begin = time.monotonic()
    said = commands.outputs(commands.start_together(2, *args), 1, 1)
    assert "stopped, because another process failed. process 1: IsADirectory" in said[0]
    assert "Traceback" in said[1]
    assert time.monotonic() - begin < 120


@pytest.mark.slow
def test_killing_the_first_process_ends_the_second(long, tmp_path):
    args = commands.tiny("pretrain", tmp_path, *long)
    processes = commands.start_together(2, *args, devices=2)
    while not (tmp_path / "checkpoints/8").exists():
        assert processes[0].poll() is None, commands.outputs(processes)
        time.sleep(0.01)
    processes[0].kill()
    output, _ = processes[1].communicate(timeout=60)
    processes[0].communicate()
    assert processes[1].returncode in (distributed.EXIT_LOST, -signal.SIGABRT), output
    assert "resumed at step" in commands.run(*args)


@pytest.mark.slow
def test_killing_one_while_the_other_saves_ends_it_as_lost(long, tmp_path):
    args = commands.tiny("pretrain", tmp_path, *long, "checkpoint_every=2 steps")
    processes = commands.start_together(2, *args)
    unfinished = "checkpoints/*.orbax-checkpoint-tmp"
    commands.kill(
        processes[-1],
        lambda: (
            (tmp_path / "checkpoints/2").exists() and any(tmp_path.glob(unfinished))
        ),
    )
    output = processes[0].communicate(timeout=600)[0]
    # JAX may be faster, and abort the process.
    assert processes[0].returncode in (distributed.EXIT_LOST, -signal.SIGABRT), output
    assert "Traceback" not in output
    assert "resumed at step" in commands.run(*args)


@pytest.mark.slow
def test_each_process_measures_its_own_input(tmp_path):
    args = commands.tiny("pretrain", tmp_path, "mode=bench_input")
    said = commands.outputs(commands.start_together(2, *args))
    assert "Bottleneck" in said[0]
    assert "Bottleneck" not in said[1]


@pytest.mark.slow
def test_different_workdirs_are_rejected(tmp_path):
    port = commands.free_port()
    processes = [
        commands.start(
            *commands.tiny("pretrain", tmp_path / str(process)),
            *commands.joining(2, process, port),
        )
        for process in range(2)
    ]
    for output in commands.outputs(processes, 1, 1):
        assert "is not the same folder for all processes: [1] do not see" in output
