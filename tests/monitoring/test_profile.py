"""Profiler traces cover the configured steps."""

import jax
import jax.numpy as jnp
import pytest
import tiny_config

from simmim_jax.monitoring.profile import Profile
from simmim_jax.tasks.api import pretrain


def traces(workdir):
    return list(workdir.glob("profile/**/*.xplane.pb"))


@pytest.mark.slow
def test_a_run_traces_its_steps_and_prints_the_path(tmp_path, capsys):
    config = tiny_config.get_config("pretrain")
    config.profile.start_step, config.profile.num_steps = 2, 3
    config.duration = "7 steps"
    pretrain(config, tmp_path)
    (trace,) = traces(tmp_path)
    content = trace.read_bytes()
    assert b"step_num" in content
    assert b"dot" in content  # operations of the step
    assert f"tensorboard --logdir={tmp_path / 'profile'}" in capsys.readouterr().out


@pytest.mark.parametrize(("start", "traced"), [(0, {0, 1}), (2, {2, 3}), (4, {4})])
def test_the_trace_covers_the_configured_steps_and_ends_with_the_run(
    start, traced, tmp_path
):
    profile = Profile(tmp_path, start_step=start, num_steps=2)
    on = set()
    for number in range(5):
        with profile.step(number):
            result = jnp.ones(3) + 1
        if profile._is_on:
            on.add(number)
        profile.after(result)
    profile.close()
    assert on == traced
    assert len(traces(tmp_path)) == 1
    jax.profiler.start_trace(tmp_path / "other")  # raises if one is still on
    jax.profiler.stop_trace()


def test_zero_steps_write_nothing(tmp_path):
    profile = Profile(tmp_path, start_step=0, num_steps=0)
    with profile.step(0):
        pass
    assert profile.after(None) == ""
    profile.close()
    assert not any(tmp_path.iterdir())
