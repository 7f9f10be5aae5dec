"""Metrics on disk survive a crash; TensorBoard and W&B get the same."""

import io
import json
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

from simmim_jax.errors import UserError
from simmim_jax.monitoring.writer import MetricWriter, read_metrics, write_json


def quiet(workdir, **kwargs):
    return MetricWriter(workdir, total_steps=100, stream=io.StringIO(), **kwargs)


def write_steps(workdir, steps, **kwargs):
    with quiet(workdir, **kwargs) as writer:
        for step in steps:
            writer.write(step, {"loss": 1 / (step + 1)})


# ---- metrics.jsonl -------------------------------------------------------------------


def test_each_line_is_json_with_a_step_and_flushed(tmp_path):
    writer = quiet(tmp_path / "new" / "run")
    writer.write(10, {"loss": np.float32(0.5), "learning_rate": 1e-4})
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "loss": 0.5, "learning_rate": 1e-4}
    ]
    writer.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_become_null(tmp_path, value):
    with quiet(tmp_path) as writer:
        writer.write(1, {"loss": value, "learning_rate": 0.1})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse)["loss"] is None
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["learning_rate"] == 0.1


@pytest.mark.parametrize("tail", ["", '{"step": 60, "lo', "{", "6", '{"loss": 1}'])
def test_resumed_file_equals_an_uninterrupted_one(tmp_path, tail):
    write_steps(tmp_path / "whole", range(0, 101, 10))

    write_steps(tmp_path / "killed", range(0, 60, 10))
    path = tmp_path / "killed" / "metrics.jsonl"
    with path.open("a") as file:
        file.write(tail)
    write_steps(tmp_path / "killed", range(40, 101, 10), resume_step=30)

    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_complete_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}')
    write_steps(tmp_path, [20], resume_step=10)
    assert [row["step"] for row in read_metrics(path)] == [10, 20]


def test_a_new_run_in_an_old_workdir_starts_an_empty_file(tmp_path):
    write_steps(tmp_path, [0, 10])
    write_steps(tmp_path, [0])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0]


def test_truncation_is_atomic(tmp_path, monkeypatch):
    write_steps(tmp_path, [10, 20, 30])
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def crash(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        quiet(tmp_path, resume_step=10)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_read_metrics_drops_a_truncated_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "l\xc3')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    path.write_text("")
    assert read_metrics(path) == []


@pytest.mark.parametrize(
    "line", ['{"loss": 1}', "[1]", '{"step": "2"}', "nonsense", 9999 * "["]
)
def test_read_metrics_reports_an_invalid_line(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"step": 1}}\n')
    with pytest.raises(UserError, match=r"line 1 is .*Expected a JSON object"):
        read_metrics(path)


def test_other_processes_write_and_display_nothing(tmp_path):
    stream = io.StringIO()
    with MetricWriter(
        tmp_path / "run", total_steps=10, stream=stream, is_main=False, wandb=True
    ) as writer:
        writer.write(1, {"loss": 1.0})
        writer.tick(1)
        writer.progress(1, {"loss": 1.0})
        writer.message("hello")
        writer.picture(1, "none", tmp_path / "missing.png")
    assert not (tmp_path / "run").exists()
    assert stream.getvalue() == ""


# ---- TensorBoard and Weights & Biases ------------------------------------------------


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    pytest.importorskip("tensorboardX")
    Image.new("L", (8, 6), 90).save(tmp_path / "grid.png")
    with quiet(tmp_path) as writer:
        writer.write(5, {"train/loss": 0.25})
        writer.picture(5, "reconstructions", tmp_path / "grid.png")
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"reconstructions" in content


def test_tensorboardx_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    stream = io.StringIO()
    with MetricWriter(tmp_path, total_steps=1, stream=stream) as writer:
        writer.write(1, {"loss": 1.0})
    assert stream.getvalue() == ""
    assert not (tmp_path / "tensorboard").exists()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_missing_wandb_raises_with_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        quiet(tmp_path, wandb=True)


def test_wandb_gets_scalars(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **kwargs: calls.append(("init", kwargs["name"]))
    fake.log = lambda values, step: calls.append((step, values))
    fake.finish = lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with quiet(tmp_path / "my_run", wandb=True) as writer:
        writer.write(3, {"loss": 0.5})
    assert calls == [("init", "my_run"), (3, {"loss": 0.5}), "finish"]


def test_wandb_without_an_account_raises_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # where keys are
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(UserError, match=r"config\.wandb=True.* `wandb login`"):
        quiet(tmp_path / "run", wandb=True)


# ---- JSON files ----------------------------------------------------------------------


def test_write_json_is_atomic(tmp_path):
    path = tmp_path / "new" / "summary.json"
    write_json(path, {"loss": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"loss": object()})
    assert json.loads(path.read_text()) == {"loss": 0.5}
    assert list(path.parent.iterdir()) == [path]
