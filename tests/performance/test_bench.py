"""Benchmark of the training step: measured without data, printed and saved."""

import json
import time

import commands
import jax.numpy as jnp
import pytest
import tiny_config

from simmim_jax.performance.bench import bench, run

ABSENT = ("data.dataset=tfds:imagenet2012", "data.data_dir=/none", "bench.steps=3")


def test_command_line_measures_a_step_without_its_data(tmp_path):
    output = commands.run(
        *commands.tiny("pretrain", tmp_path, "mode=bench", *ABSENT), devices=2
    )
    result = json.loads((tmp_path / "bench.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert result["steps"] == 3
    assert 0 < result["step_ms_p50"] <= result["step_ms_p95"]
    assert result["compile_seconds"] > 0
    parts = result["trace_seconds"] + result["compile_seconds"]
    assert result["first_step_seconds"] > parts + result["step_ms_p50"] / 2e3
    assert result["images_per_second"] == pytest.approx(
        2 * result["images_per_second_per_chip"]
    )
    assert result["flops_per_second_per_chip"] == pytest.approx(
        result["images_per_second_per_chip"] * result["flops_per_image"]
    )
    # A CPU has no known peak and reports no memory.
    assert result["mfu"] is None
    assert result["device_memory"] is None
    assert result["device_memory_planned"] > 12 * result["parameters"]
    assert "peak rate of these devices is unknown" in output
    assert f"{result['parameters']:,}" in output


def test_every_step_is_timed():
    def step(state, batch):
        time.sleep(0.05)
        return state + batch, {"loss": state}

    one = jnp.ones([])
    durations, state = run(step, one, one, 4)
    assert state == 5
    assert len(durations) == 4
    assert min(durations) > 0.04


@pytest.mark.parametrize("frozen", [False, True])
def test_fine_tuning_needs_no_weights_and_leaves_no_checkpoint(frozen, tmp_path):
    config = tiny_config.typed(
        "finetune",
        freeze_encoder=frozen,
        init_from="/none" if frozen else "",
        **{
            "data.dataset": "/none",
            "bench.steps": 2,
            "bench.num_classes": 7,
            "bench.checkpoint": True,
            "profile.num_steps": 2,
        },
    )
    result = bench(config, tmp_path)
    saved = result["checkpoint"]
    moments = 1 if frozen else 3
    assert saved["bytes"] > 4 * moments * result["parameters"]
    assert 0 < saved["held_up_seconds"] <= saved["written_after_seconds"]
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "profile"}
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))


@pytest.mark.slow
def test_comparison_measures_pre_training(tmp_path):
    output = commands.run(
        "--config=configs/quickstart.py",
        "--config.mode=bench",
        "--config.pretrain.bench.steps=2",
        "--config.pretrain.dtype=float32",
        f"--workdir={tmp_path}",
    )
    assert "pretrain, vit, float32: 128 images of 28x28 a step" in output


def test_batch_that_does_not_divide_ends_it_at_once(tmp_path):
    output = commands.run(
        *commands.tiny("pretrain", tmp_path, "mode=bench", "optim.accumulation=3"),
        status=1,
    )
    assert "batch_size=16 must be a multiple of 3" in output
    assert "Traceback" not in output
