"""The step log: rates, means, checks and one-off timings."""

import jax
import jax.numpy as jnp
import pytest

from simmim_jax.checkpoints.store import Checkpointer
from simmim_jax.errors import NonFiniteError
from simmim_jax.monitoring.timer import StepTimer
from simmim_jax.monitoring.writer import MetricWriter, read_metrics
from simmim_jax.runtime import accelerators
from simmim_jax.training.step_log import StepLog, utilization

BATCH = 8


@pytest.fixture
def parts(tmp_path):
    now = [0.0]
    with (
        Checkpointer(tmp_path, keep=1, best="eval_loss", mode="min") as checkpoints,
        MetricWriter(tmp_path, total_steps=9) as writer,
    ):
        log = StepLog(
            writer,
            lambda step: float(step - 1),
            checkpoints,
            BATCH,
            start=0,
            begin=0.0,
        )
        log.timer = StepTimer(clock=lambda: now[0])
        now[0] = 3.0
        log.compiled(flops_per_image=1e9, seconds=3.0)
        yield log, now, tmp_path / "metrics.jsonl"


@jax.jit
def slow(x):
    return jax.lax.fori_loop(0, 20, lambda _, y: y @ y / 1024, x).mean()


def finished(loss=1.0):
    return {"loss": jnp.float32(loss).block_until_ready()}


def test_rate_of_a_synchronous_device(parts):
    log, now, path = parts
    for step in range(1, 5):
        now[0] += 2.0  # the step runs before it is added
        log.add(step, finished(), due=True, bad_images={})
    log.finish()
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["images_per_second"] for line in lines] == [BATCH / 2] * 4


def test_restarted_clock_excludes_time_outside_training(parts):
    log, now, path = parts
    now[0] += 2.0
    log.add(1, finished(), due=True, bad_images={})
    log.finish()
    now[0] += 100.0  # an evaluation
    log.restart_clock()
    now[0] += 2.0
    log.add(2, finished(), due=True, bad_images={})
    log.finish()
    assert [x["images_per_second"] for x in read_metrics(path)] == [BATCH / 2] * 2


def test_loss_of_a_line_is_the_mean_since_the_previous_line(parts):
    log, _, path = parts
    for step, loss in enumerate([1.0, 2.0, 6.0], start=1):
        log.add(step, finished(loss), due=step == 3, bad_images={})
    log.finish()
    (line,) = read_metrics(path)
    assert line["loss"] == 3.0
    assert line["learning_rate"] == 2.0  # of update 2, counted from 0


def test_nan_raises_before_the_next_step_is_logged(parts):
    log, _, path = parts
    running = slow(jnp.full((1024, 1024), jnp.nan))
    log.add(1, {"loss": running}, due=True, bad_images={})
    with pytest.raises(NonFiniteError, match="loss not finite at step 1"):
        log.add(2, finished(), due=True, bad_images={})
    assert not read_metrics(path)
    with pytest.raises(NonFiniteError, match="loss not finite at step 3"):
        log.add(3, finished(float("nan")), due=True, bad_images={})


def test_lines_count_bad_images_once_there_are_any(parts):
    log, _, path = parts
    for step, bad in enumerate([{}, {"missing": 1}, {"missing": 3, "empty": 1}], 1):
        log.add(step, finished(), due=step != 2, bad_images=bad)
    log.finish()
    first, second = read_metrics(path)
    assert not any(name.startswith("bad_images") for name in first)
    assert (second["bad_images/missing"], second["bad_images/empty"]) == (3, 1)


def test_startup_and_checkpoint_seconds_are_in_one_line_each(parts):
    log, _, path = parts
    for step in range(1, 5):
        log.add(step, finished(), due=step > 1, bad_images={})
        if step == 3:
            log.note("checkpoint_seconds", 2.0)
            log.note("checkpoint_seconds", 0.5)
    log.finish()
    second, third, fourth = read_metrics(path)
    assert (second["step"], second["compile_seconds"]) == (2, 3.0)
    assert second["first_step_seconds"] > 0
    assert not {"compile_seconds", "first_step_seconds"} & {*third, *fourth}
    assert "checkpoint_seconds" not in third
    assert fourth["checkpoint_seconds"] == 2.5


def test_log_does_not_wait_for_a_running_step(parts):
    log, _, _ = parts
    log.add(1, finished(), due=True, bad_images={})
    running = slow(jnp.ones((1024, 1024)))
    log.add(2, {"loss": running}, due=True, bad_images={})
    assert not running.is_ready()


def test_utilization_needs_a_known_peak(monkeypatch):
    rate = 1000.0 * jax.device_count()
    assert utilization(rate, 1e9) == {"images_per_second_per_chip": 1000.0}
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(accelerators._DEVICES, kind, 197e12)
    assert utilization(rate, 105e9)["mfu"] == pytest.approx(105 / 197)
