"""Progress: a bar that fits the terminal, few lines in a log, an early estimate."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import tqdm.std

from simmim_jax.monitoring.progress import make_progress, say, watch
from simmim_jax.monitoring.writer import MetricWriter

ROOT = Path(__file__).parents[2]

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


def screen(text):
    """Lines on a terminal after `text`: "\\r" returns to the start of the line."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        return screen(self.getvalue())


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def width(monkeypatch):
    return lambda columns: monkeypatch.setenv("COLUMNS", str(columns))


# ---- Terminal ------------------------------------------------------------------------


def test_terminal_shows_one_live_line(tmp_path, width, monkeypatch):
    width(125)
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr(tqdm.std, "time", clock)
    with MetricWriter(tmp_path, total_steps=10000, stream=stream) as writer:
        writer.progress(100, VALUES)
        assert "eta ?" in stream.screen()[0]
        clock.now = 100.0
        writer.progress(2500, VALUES)
        (line,) = stream.screen()
        assert line == (
            "pretrain  25% [====            ]  2500/10000  eta 05:12"
            "  loss 0.5123  1,234 images/s/chip  wait 3%  lr 1.00e-04  grad_norm 2"
        )
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("columns", "last"), [(80, "1,234 images/s/chip"), (120, "14.2 GiB")]
)
def test_a_narrow_terminal_has_the_rate_and_a_wide_one_all_usual_values(
    columns, last, tmp_path, width
):
    width(columns)
    stream = Terminal()
    with MetricWriter(tmp_path, total_steps=10000, stream=stream) as writer:
        writer.tick(9999)
        writer.progress(10000, ON_TPU)
    assert stream.screen()[0].endswith(last)
    assert ("MFU 41%" in stream.screen()[0]) == (columns == 120)


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_live_line_fits_the_terminal(tmp_path, width, columns):
    width(columns)
    stream = Terminal()
    with MetricWriter(tmp_path, total_steps=10000, stream=stream) as writer:
        writer.progress(10000, VALUES)
    line = stream.screen()[0]
    assert line.startswith("pretrain 100%")
    assert len(line) < columns


def test_a_shorter_live_line_clears_the_longer_one(tmp_path, width):
    width(160)
    stream = Terminal()
    with MetricWriter(tmp_path, total_steps=100, stream=stream) as writer:
        writer.progress(1, VALUES)
        writer.progress(2, {"loss": 0.25})
    assert stream.screen()[0].endswith("loss 0.2500")


def test_messages_appear_above_the_live_line(tmp_path, width):
    width(100)
    stream = Terminal()
    with MetricWriter(tmp_path, total_steps=100, stream=stream) as writer:
        writer.message("before")
        writer.progress(50, VALUES)
        writer.message("saved step 50")
        say("bad image", stream)
        writer.progress(60, VALUES)
    before, saved, said, live, end = stream.screen()
    assert (before, saved, said, end) == ("before", "saved step 50", "bad image", "")
    assert "60/100" in live


def test_ticks_keep_the_values_of_the_last_metrics(width, monkeypatch):
    width(100)
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr(tqdm.std, "time", clock)
    progress = make_progress(100, title="pretrain", stream=stream)
    for step in range(1, 80):
        progress.tick(step)
        clock.now += 1.0
        if step == 50:
            progress.show(step, {"loss": 0.25})
    (line,) = stream.screen()
    assert re.fullmatch(r"pretrain  79% \[=+ +\]  79/100  eta 00:21  loss 0.2500", line)
    progress.close()


RUN = """
import time
from simmim_jax.monitoring.writer import MetricWriter
with MetricWriter("{workdir}", total_steps=60) as writer:
    writer.message("compiling")
    for step in range(1, 61):
        time.sleep({seconds})
        if step % 50 == 0:
            writer.progress(step, {{"loss": 0.25}})
            writer.message("saved")
        else:
            writer.tick(step)
"""


def output_in_terminal(code, columns):
    """What the Python `code` writes to a terminal of this width."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=env, stdout=writer
    )
    os.close(writer)
    output = b""
    with contextlib.suppress(OSError):  # Linux: EIO once the process has ended
        while chunk := os.read(reader, 1000):
            output += chunk
    os.close(reader)
    assert process.wait() == 0
    return output.decode("ascii").replace("\r\n", "\n")


@pytest.mark.parametrize("seconds", [0.001, 0.02])
def test_a_real_terminal_has_an_estimate_within_ten_steps(tmp_path, seconds):
    text = output_in_terminal(RUN.format(workdir=tmp_path, seconds=seconds), 100)
    estimates = re.findall(r"(\d+)/60  eta \d\d:\d\d", text)
    assert int(estimates[0]) <= 10
    compiling, saved, live, end = screen(text)
    assert (compiling, saved, end) == ("compiling", "saved", "")
    assert re.fullmatch(r"pretrain 100% \[=+\]  60/60  eta 00:00  loss 0.2500", live)
    assert len(live) == 99


# ---- Log file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "text"), [(1.3123, "1.31"), (98.76, "98.8"), (12345.6, "12,346")]
)
def test_slow_rates_keep_their_digits(rate, text, tmp_path):
    stream = io.StringIO()
    with MetricWriter(tmp_path, total_steps=1, stream=stream) as writer:
        writer.progress(1, {"images_per_second_per_chip": rate})
    assert f"  {text} images/s/chip" in stream.getvalue()


def test_log_lines_are_ten_seconds_apart_and_include_the_last_step(tmp_path):
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
        "4/40",
        "14/40",
        "0.5",
        "24/40",
        "34/40",
        "40/40",
    ]
    assert lines[1] == "finetune  14/40  eta 00:26  loss 14.0000"
    assert "\r" not in stream.getvalue()


def test_a_log_file_has_an_estimate_before_the_first_metrics(tmp_path):
    stream, clock = io.StringIO(), Clock()
    with MetricWriter(tmp_path, total_steps=200, stream=stream, clock=clock) as writer:
        for step in range(1, 201):
            clock.now += 2.0
            if step % 50:
                writer.tick(step)
            else:
                writer.progress(step, {"loss": 0.25})
    first, *others = stream.getvalue().splitlines()
    assert first == "pretrain  4/200  eta 06:32"
    steps = [line.split()[1] for line in others]
    assert steps == ["50/200", "100/200", "150/200", "200/200"]


def test_a_run_that_stops_early_shows_its_last_line(tmp_path):
    stream, clock = io.StringIO(), Clock()
    with MetricWriter(tmp_path, total_steps=40, stream=stream, clock=clock) as writer:
        writer.progress(1, {})
        writer.progress(2, {})
    assert "2/40" in stream.getvalue().splitlines()[-1]


def test_eta_counts_from_the_resumed_step(tmp_path):
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


def test_a_long_part_of_a_run_says_every_ten_seconds_where_it_is():
    stream, clock = io.StringIO(), Clock()
    for _ in watch(range(40), 40, title="evaluating", stream=stream, clock=clock):
        clock.now += 1.0
    assert stream.getvalue().splitlines() == [
        "evaluating  10/40  eta 00:30",
        "evaluating  20/40  eta 00:20",
        "evaluating  30/40  eta 00:10",
    ]
