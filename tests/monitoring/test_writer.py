"""Metrics: what is written survives a crash, what is shown fits the terminal."""

import contextlib
import io
import json
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

from simmim_jax.monitoring.timer import StepTimer
from simmim_jax.monitoring.writer import MetricWriter, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """The lines a terminal would show: "\\r" goes back and writes over."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def width(monkeypatch):
    return lambda columns: monkeypatch.setenv("COLUMNS", str(columns))


def quiet(workdir, **kwargs):
    return MetricWriter(workdir, total_steps=100, stream=io.StringIO(), **kwargs)


def write_steps(workdir, steps, **kwargs):
    with quiet(workdir, **kwargs) as writer:
        for step in steps:
            writer.write(step, {"loss": 1 / (step + 1)})


# --- metrics.jsonl ---


def test_every_line_is_json_with_a_step_on_disk_at_once(tmp_path):
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


@pytest.mark.parametrize("torn", ["", '{"step": 60, "lo', "{", "6", '{"loss": 1}'])
def test_resumed_file_equals_an_uninterrupted_one(tmp_path, torn):
    write_steps(tmp_path / "whole", range(0, 101, 10))

    write_steps(tmp_path / "killed", range(0, 60, 10))
    path = tmp_path / "killed" / "metrics.jsonl"
    with path.open("a") as file:
        file.write(torn)
    write_steps(tmp_path / "killed", range(40, 101, 10), resume_step=30)

    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_whole_last_line_without_its_line_end_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}')
    write_steps(tmp_path, [20], resume_step=10)
    assert [row["step"] for row in read_metrics(path)] == [10, 20]


def test_a_new_run_in_an_old_folder_starts_an_empty_file(tmp_path):
    write_steps(tmp_path, [0, 10])
    write_steps(tmp_path, [0])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0]


def test_truncation_replaces_the_file_in_one_step(tmp_path, monkeypatch):
    write_steps(tmp_path, [10, 20, 30])
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def crash(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        quiet(tmp_path, resume_step=10)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_read_metrics_leaves_out_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "l\xc3')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    path.write_text("")
    assert read_metrics(path) == []


def test_read_metrics_names_a_bad_line_in_the_middle(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is 'rubbish'"):
        read_metrics(path)


def test_other_processes_write_and_show_nothing(tmp_path):
    stream = Terminal()
    with MetricWriter(
        tmp_path / "run", total_steps=10, stream=stream, is_main=False, wandb=True
    ) as writer:
        writer.write(1, {"loss": 1.0})
        writer.progress(1, {"loss": 1.0})
        writer.message("hello")
        writer.picture(1, "none", tmp_path / "missing.png")
    assert not (tmp_path / "run").exists()
    assert stream.getvalue() == ""


# --- TensorBoard and Weights & Biases ---


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


def test_without_tensorboardx_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    stream = io.StringIO()
    with MetricWriter(tmp_path, total_steps=1, stream=stream) as writer:
        writer.write(1, {"loss": 1.0})
    assert stream.getvalue() == ""
    assert not (tmp_path / "tensorboard").exists()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_wandb_asked_for_and_missing_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        quiet(tmp_path, wandb=True)


def test_wandb_gets_the_values(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **kwargs: calls.append(("init", kwargs["name"]))
    fake.log = lambda values, step: calls.append((step, values))
    fake.finish = lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with quiet(tmp_path / "my_run", wandb=True) as writer:
        writer.write(3, {"loss": 0.5})
    assert calls == [("init", "my_run"), (3, {"loss": 0.5}), "finish"]


# --- progress ---

VALUES = {
    "learning_rate": 1e-4,
    "loss": 0.51234,
    "input_wait": 0.031,
    "images_per_second": 9876.0,
    "images_per_second_per_chip": 1234.5,
    "grad_norm": 2.0,
    "param_norm": 70.0,
    "compile_seconds": 30.0,
}
ON_TPU = VALUES | {"mfu": 0.4123, "device_memory": 14.25 * 2**30}


def test_terminal_shows_one_live_line(tmp_path, width):
    width(160)
    stream, clock = Terminal(), Clock()
    with MetricWriter(tmp_path, total_steps=10000, stream=stream, clock=clock) as w:
        w.progress(100, VALUES)
        assert "eta -:--:--" in stream.screen()[0]
        clock.now = 100.0
        w.progress(2500, VALUES)
        (line,) = stream.screen()
        assert line == (
            "pretrain  25% [======                  ]  2500/10000  eta 0:05:12"
            "  loss 0.5123  1,234 images/s/chip  wait 3%  lr 1.00e-04  grad_norm 2"
        )
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("columns", "last"), [(80, "1,234 images/s/chip"), (120, "14.2 GiB")]
)
def test_the_rate_is_in_a_narrow_terminal_and_everything_usual_in_a_wide_one(
    columns, last, tmp_path, width
):
    width(columns)
    stream = Terminal()
    with MetricWriter(tmp_path, total_steps=10000, stream=stream) as writer:
        writer.progress(10000, ON_TPU)
    assert stream.screen()[0].endswith(last)
    assert ("MFU 41%" in stream.screen()[0]) == (columns == 120)


@pytest.mark.parametrize(
    ("rate", "text"), [(1.3123, "1.31"), (98.76, "98.8"), (12345.6, "12,346")]
)
def test_slow_rates_keep_their_digits(rate, text, tmp_path):
    stream = io.StringIO()
    with MetricWriter(tmp_path, total_steps=1, stream=stream) as writer:
        writer.progress(1, {"images_per_second_per_chip": rate})
    assert f"  {text} images/s/chip" in stream.getvalue()


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_live_line_fits_the_terminal(tmp_path, width, columns):
    width(columns)
    stream = Terminal()
    with MetricWriter(tmp_path, total_steps=10000, stream=stream) as writer:
        writer.progress(10000, VALUES)
    line = stream.screen()[0]
    assert line.startswith("pretrain 100%")
    assert len(line) < columns


def test_a_shorter_live_line_leaves_nothing_of_the_longer_one(tmp_path, width):
    width(160)
    stream = Terminal()
    with MetricWriter(tmp_path, total_steps=100, stream=stream) as writer:
        writer.progress(1, VALUES)
        writer.progress(2, {"loss": 0.25})
    assert stream.screen()[0].endswith("loss 0.2500")


def test_message_stands_above_the_live_line(tmp_path, width):
    width(100)
    stream = Terminal()
    with MetricWriter(tmp_path, total_steps=100, stream=stream) as writer:
        writer.message("before")
        writer.progress(50, VALUES)
        writer.message("saved step 50")
        writer.progress(60, VALUES)
    before, saved, live, end = stream.screen()
    assert (before, saved, end) == ("before", "saved step 50", "")
    assert "60/100" in live


def test_log_lines_come_seldom_first_and_last_always(tmp_path):
    stream, clock = io.StringIO(), Clock()
    writer = MetricWriter(
        tmp_path, total_steps=40, title="finetune", stream=stream, clock=clock
    )
    for step in range(1, 41):
        clock.now += 1.0
        writer.progress(step, {"loss": float(step)})
        if step == 15:
            writer.message("accuracy 0.5")
    writer.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [
        "1/40",
        "11/40",
        "0.5",
        "21/40",
        "31/40",
        "40/40",
    ]
    assert lines[1] == "finetune  11/40  eta 0:00:29  loss 11.0000"
    assert "\r" not in stream.getvalue()


def test_a_run_that_stops_early_still_shows_its_last_line(tmp_path):
    stream, clock = io.StringIO(), Clock()
    with MetricWriter(tmp_path, total_steps=40, stream=stream, clock=clock) as writer:
        writer.progress(1, {})
        writer.progress(2, {})
    assert "2/40" in stream.getvalue().splitlines()[-1]


def test_eta_counts_from_where_the_run_resumed(tmp_path):
    stream, clock = io.StringIO(), Clock()
    with MetricWriter(
        tmp_path, total_steps=100_000, resume_step=90_000, stream=stream, clock=clock
    ) as writer:
        writer.progress(90_001, {})
        clock.now = 60.0
        writer.progress(90_061, {"loss": float("nan")})
    assert stream.getvalue().splitlines()[-1] == (
        "pretrain  90061/100000  eta 2:45:39  loss nan"
    )


# --- the timer ---


def test_timer_measures_rate_and_waiting_then_starts_anew():
    clock = Clock()
    timer = StepTimer(clock)
    for _ in range(2):
        with timer.waiting():
            clock.now += 1.0
        clock.now += 3.0
    assert timer.rates(80) == {"images_per_second": 10.0, "input_wait": 0.25}
    clock.now += 2.0
    assert timer.rates(80) == {"images_per_second": 40.0, "input_wait": 0.0}


def test_timer_counts_a_wait_that_ends_the_data_and_can_leave_time_out():
    clock = Clock()
    timer = StepTimer(clock)
    clock.now += 100.0
    timer.reset()
    with contextlib.suppress(StopIteration), timer.waiting():
        clock.now += 1.0
        next(iter(()))
    clock.now += 1.0
    assert timer.rates(1) == {"images_per_second": 0.5, "input_wait": 0.5}
