"""Runs that are killed, interrupted or diverge, and the loop's costs."""

import dataclasses
import os
import shutil
import signal
import time

import commands
import jax
import pytest
import tiny_config

from simmim_jax.checkpoints import layout
from simmim_jax.errors import Interrupted
from simmim_jax.monitoring.writer import read_metrics
from simmim_jax.runtime import sharding
from simmim_jax.tasks.api import finetune, pretrain
from simmim_jax.tasks.pretrain import build
from simmim_jax.training import loop
from simmim_jax.training.step_log import StepLog


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    commands.run(*commands.tiny("pretrain", workdir))
    return workdir


def assert_equal_runs(workdir, uninterrupted):
    commands.assert_same(
        commands.params(workdir, 12), commands.params(uninterrupted, 12)
    )
    assert commands.metrics(workdir) == commands.metrics(uninterrupted)
    assert kept(workdir) == kept(uninterrupted)


def kept(workdir):
    """Names of the best checkpoint and of all."""
    checkpoints = (workdir / "checkpoints").iterdir()
    return layout.find(workdir).name, {path.name for path in checkpoints}


@pytest.mark.parametrize(
    "moment",
    [
        "checkpoints/4",
        pytest.param("checkpoints/*.orbax-checkpoint-tmp", marks=pytest.mark.slow),
        pytest.param("reconstructions", marks=pytest.mark.slow),
    ],
)
def test_killed_run_resumes_bit_for_bit(moment, uninterrupted, tmp_path):
    args = commands.tiny("pretrain", tmp_path)
    commands.kill(commands.start(*args), lambda: any(tmp_path.glob(moment)))
    output = commands.run(*args)
    assert "resumed at step" in output or not moment.startswith("checkpoints/4")
    assert_equal_runs(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_killed_finetuning_with_an_average_resumes_bit_for_bit(
    frozen, uninterrupted, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fields = (
        "ema_decay=0.9",
        f"init_from={uninterrupted}",
        f"freeze_encoder={frozen}",
    )
    commands.run(*commands.tiny("finetune", whole, *fields))
    args = commands.tiny("finetune", killed, *fields)
    commands.kill(commands.start(*args), lambda: (killed / "checkpoints/4").exists())
    assert "resumed at step" in commands.run(*args)
    assert_equal_runs(killed, whole)
    averages, latest = commands.params(whole, 12), commands.latest_params(whole, 12)
    commands.assert_same(commands.latest_params(killed, 12), latest)
    assert (averages["head"]["kernel"] != latest["head"]["kernel"]).any()
    assert ("encoder" in latest) == (not frozen)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_before_the_first_step_ends_the_run_at_once(
    number, tmp_path, monkeypatch
):
    # Loading the step would leave no time for the signal.
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    process = commands.start(*commands.tiny("pretrain", tmp_path))
    for line in process.stdout:
        if "compiling the training step" in line:
            process.send_signal(number)
            break
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -number
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "moment", ["images to train on", "resumed at step", "compiling the training step"]
)
@pytest.mark.slow
def test_a_resumed_run_that_is_not_training_ends_at_once_with_75(
    moment, uninterrupted, tmp_path, monkeypatch
):
    commands.copy_run(uninterrupted, tmp_path, 4)
    # Loading the step would leave no time for the signal.
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    process = commands.start(*commands.tiny("pretrain", tmp_path))
    for line in process.stdout:
        if moment in line:
            process.send_signal(signal.SIGTERM)
            break
    before = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "SIGTERM: the same command resumes from the last checkpoint." in output
    assert "Traceback" not in output
    assert time.monotonic() - before < 5
    commands.run(*commands.tiny("pretrain", tmp_path))
    assert_equal_runs(tmp_path, uninterrupted)


def test_sigterm_saves_exits_75_and_the_next_run_resumes(uninterrupted, tmp_path):
    late = ("eval_every=12 steps", "profile.num_steps=1", "profile.start_step=100")
    args = commands.tiny("pretrain", tmp_path, *late)
    process = commands.start(*args)
    metrics = tmp_path / "metrics.jsonl"
    output = commands.interrupt(
        process,
        lambda: metrics.exists() and metrics.read_text().count("\n") >= 2,
        signal.SIGTERM,
    )
    assert process.returncode == 75, output
    assert "SIGTERM at step" in output
    assert "no profile: of the 12 steps left, none comes after" in output
    assert "resumed at step" in commands.run(*args)
    commands.assert_same(
        commands.params(tmp_path, 12), commands.params(uninterrupted, 12)
    )


@pytest.mark.parametrize("moment", [8, pytest.param(12, marks=pytest.mark.slow)])
def test_sigterm_in_an_evaluation_keeps_the_step_and_evaluates_it_later(
    moment, uninterrupted, tmp_path
):
    run = build(tiny_config.typed("pretrain"), tmp_path)

    def evaluate(params, step):
        held_out = run.evaluate(params, step)
        if step == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return held_out

    with pytest.raises(Interrupted, match="SIGTERM: the same command resumes from"):
        loop.train(dataclasses.replace(run, evaluate=evaluate))
    assert (tmp_path / f"checkpoints/{moment}/params").exists()
    assert not (tmp_path / f"checkpoints/{moment}/metrics").exists()
    loop.train(run)
    assert_equal_runs(tmp_path, uninterrupted)
    rated = {p.parts[-3] for p in tmp_path.glob("checkpoints/*/metrics/metrics")}
    assert rated == {"8", "12"}


@pytest.mark.parametrize("batch_size", [8, 32])
def test_an_evaluation_that_was_due_is_made_up_with_another_batch_size(
    batch_size, uninterrupted, tmp_path
):
    """At step 8, which a batch of 32 would reach after four steps."""
    commands.copy_run(uninterrupted, tmp_path, 8)
    shutil.rmtree(tmp_path / "checkpoints/8/metrics")
    fields = {"data.batch_size": batch_size, "eval_every": "5 epochs"}
    config = tiny_config.typed("pretrain", **fields, duration="160 examples")
    loop.train(build(config, tmp_path))
    (made_up, _), (expected, _) = (
        [line for line in commands.metrics(run) if "eval_loss" in line]
        for run in (tmp_path, uninterrupted)
    )
    assert made_up["step"] == expected["step"] == 8
    # Not to the bit: the masks of a batch depend on its size.
    assert made_up["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-3)
    rated = layout.read_metrics(tmp_path / "checkpoints/8")
    assert rated["eval_loss"] == made_up["eval_loss"]


def test_finished_run_trains_no_further(uninterrupted):
    before = commands.metrics(uninterrupted)
    output = commands.run(*commands.tiny("pretrain", uninterrupted))
    assert "finished before, at step 12: a larger config.duration" in output
    assert commands.metrics(uninterrupted) == before


def test_nan_stops_the_run_with_step_rate_and_checkpoint(tmp_path):
    output = commands.run(
        *commands.tiny("pretrain", tmp_path, "optim.lr=1e20", "optim.warmup=8 steps"),
        status=1,
    )
    # The first two updates use warmup_lr; the third one is far too large.
    assert "param_norm not finite at step 3, with learning rate" in output
    assert "Last good checkpoint: none yet" in output


@pytest.mark.slow
def test_another_seed_gives_another_run(uninterrupted, tmp_path):
    commands.run(*commands.tiny("pretrain", tmp_path, "seed=1"))
    assert commands.metrics(tmp_path) != commands.metrics(uninterrupted)


@pytest.mark.slow
def test_keeps_the_last_and_the_best_checkpoint(tmp_path):
    commands.run(*commands.tiny("pretrain", tmp_path, "keep_checkpoints=1"))
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    best = min(
        (line for line in commands.metrics(tmp_path) if "eval_loss" in line),
        key=lambda line: line["eval_loss"],
    )
    assert kept == {"12", str(best["step"])}


# ---- Costs ---------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch):
    """step -> number of programs compiled between its log and that of the next step."""
    counts, now = {}, [0]

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counts[now[0]] = counts.get(now[0], 0) + 1

    add = StepLog.add

    def logged(self, step, *args):
        add(self, step, *args)
        now[0] = step

    monkeypatch.setattr(StepLog, "add", logged)
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counts
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    ("mode", "run"),
    [
        ("pretrain", pretrain),
        pytest.param("finetune", finetune, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_compiled_after_step_1_and_the_first_evaluation(
    mode, run, compiled, tmp_path, monkeypatch
):
    config = tiny_config.get_config(mode)
    config.checkpoint_every, config.eval_every = "2 steps", "4 steps"
    if mode == "pretrain":
        config.probe.every, config.probe.images = "4 steps", 32
    logged = StepLog.add

    def interrupted(self, step, *args):
        logged(self, step, *args)
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "add", interrupted)
        with pytest.raises(Interrupted):
            run(config, tmp_path)
    # Before step 1, and in the evaluation after step 4.
    assert set(compiled) == {0, 4}
    compiled.clear()
    run(config, tmp_path)
    # Resumed after step 10: before step 11, and in the evaluation after step 12.
    assert set(compiled) == {10, 12}


def test_batch_that_is_not_on_the_devices_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "to_devices", lambda batch, mesh: dict(batch))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        pretrain(tiny_config.get_config("pretrain"), tmp_path)


def test_lines_have_rates_startup_and_checkpoint_seconds(uninterrupted):
    lines = [x for x in read_metrics(uninterrupted / "metrics.jsonl") if "loss" in x]
    first, *others = lines
    assert first["first_step_seconds"] > first["compile_seconds"] > 0
    for line in others:
        assert "compile_seconds" not in line
        if "images_per_second" in line:
            assert line["images_per_second_per_chip"] == line["images_per_second"]
            assert 0 <= line["input_wait"] <= 1
    assert [x["step"] for x in lines if "checkpoint_seconds" in x] == [5, 9]
    # A CPU has no known peak and reports no memory.
    assert not any({"mfu", "device_memory"} & set(line) for line in lines)
