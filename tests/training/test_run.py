"""The clock of a run: lengths, intervals and schedules count examples."""

import pytest

from simmim_jax.config.durations import num_steps
from simmim_jax.training.run import Lengths


def lengths(batch_size, *, seen=0, start=0, examples=100, duration="10 epochs"):
    """Of a run that resumes at step `start` after `seen` examples."""

    def steps(text):
        return num_steps(text, batch_size, examples)

    return Lengths(
        duration=steps(duration),
        log_every=steps("7 steps"),
        eval_every=steps("2 epochs"),
        checkpoint_every=steps("0 epochs"),
        start=start,
        seen=seen // batch_size,
    )


@pytest.mark.parametrize("start", [0, 1, 31, 49, 50])
def test_clock_is_the_step_until_the_batch_size_changes(start):
    run = lengths(20, start=start, seen=20 * start)
    assert run.total == 50
    for step in range(start, 51):
        assert run.clock(step) == step
        for interval in (0, 7, 10):
            due = step == 50 or bool(interval and step % interval == 0)
            assert run.is_due(interval, step) == due


@pytest.mark.parametrize(
    ("batch_size", "total", "examples"),
    [
        (20, 50, 1000),
        (10, 69, 1000),
        (50, 31 + 8, 620 + 8 * 50),  # the last batch begins before 1,000
        (100, 31 + 4, 620 + 4 * 100),
        (16, 31 + 22, 620 + 22 * 16),  # ten epochs of six batches are 960 examples
        (200, 31 + 2, 620 + 2 * 200),  # an epoch is half a batch
    ],
)
def test_another_batch_size_sees_the_examples_that_are_left(
    batch_size, total, examples
):
    run = lengths(batch_size, start=31, seen=620)
    assert run.total == total
    assert 620 + (run.total - 31) * batch_size == examples


def test_intervals_go_by_examples_after_the_batch_size_changed():
    run = lengths(10, start=31, seen=620)
    evaluated = [s for s in range(32, 70) if run.is_due(run.eval_every, s)]
    assert [620 + 10 * (s - 31) for s in evaluated] == [800, 1000]
    saved = [s for s in range(32, 70) if run.is_due(run.checkpoint_every, s)]
    assert saved == [69]
    logged = [s for s in range(32, 70) if run.is_due(run.log_every, s)]
    assert [run.clock(step) for step in logged] == [63, 70, 77, 84, 91, 98, 100]


def test_batch_sizes_of_several_resumes_compose():
    step = seen = 0
    for batch_size, steps in ((20, 11), (10, 20), (4, 35), (20, 1)):
        run = lengths(batch_size, start=step, seen=seen)
        assert run.clock(step) == seen // batch_size
        step, seen = step + steps, seen + steps * batch_size
    assert (step, seen) == (67, 580)
    assert lengths(20, start=67, seen=580).total == 67 + 21
    assert lengths(10, start=67, seen=580).total == 67 + 42


def test_run_that_has_seen_more_than_its_length_is_finished():
    """As earlier releases left it after another batch size."""
    run = lengths(10, start=100, seen=1310)
    assert run.total == 100
    assert run.is_due(run.eval_every, 100)
