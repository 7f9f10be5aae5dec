"""What a run tells: metrics to files, progress to the person who watches."""

import importlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from simmim_jax.errors import MissingPackageError, UserError

LOG_LINE_SECONDS = 10.0  # at most one line as often, where there is no terminal
MAX_BAR_WIDTH = 24
MIN_BAR_WIDTH = 6

# How the usual values read in the progress line, in this order; others follow
# as "name 1.234".
_FORMATS: dict[str, Callable[[float], str]] = {
    "loss": "loss {:.4f}".format,
    "images_per_second_per_chip": lambda rate: f"{_short(rate)} images/s/chip",
    "mfu": "MFU {:.0%}".format,
    "input_wait": "wait {:.0%}".format,
    "learning_rate": "lr {:.2e}".format,
    "device_memory": lambda size: f"{size / 2**30:.1f} GiB",
}
# What metrics.jsonl has and the line does without.
_NOT_SHOWN = {
    "images_per_second",
    "param_norm",
    "first_step_seconds",
    "compile_seconds",
    "checkpoint_seconds",
}


class MetricWriter:
    """Writes metrics to `<workdir>/metrics.jsonl` and shows progress.

    `metrics.jsonl` has one JSON object a line, which always has "step". A value
    that is not finite is written as null: JSON has no NaN. TensorBoard files go to
    `<workdir>/tensorboard` when tensorboardX is installed; Weights & Biases gets
    them too when `wandb` asks for it.

    A resumed run leaves the file that an uninterrupted one would have left: lines
    after `resume_step`, and a last line cut short by a crash, are dropped. With
    `resume_step=0` the run starts from the beginning, and so does the file.

    Args:
      workdir: the run's folder, created when missing.
      total_steps: steps of the whole run, for the bar and the time left.
      resume_step: the step that was restored; 0 for a new run.
      title: the word that starts each progress line.
      stream: where progress and messages go; standard output when None.
      wandb: also log to Weights & Biases; raises ImportError when not installed.
      is_main: False in all but one process of a multi-host run: nothing is
        written and nothing shown.
      clock: seconds that only go forward.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        total_steps: int,
        resume_step: int = 0,
        title: str = "pretrain",
        stream: TextIO | None = None,
        wandb: bool = False,
        is_main: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._total_steps = total_steps
        self._title = title
        self._stream = sys.stdout if stream is None else stream
        self._is_main = is_main
        self._clock = clock
        self._start: tuple[int, float] | None = None  # step and time first shown
        self._live_line = ""  # on the terminal now, without a line end
        self._held_line = ""  # a log line that came too soon after the one before
        self._last_log_time = -math.inf
        self._tensorboard: Any = None
        self._wandb: Any = None
        if not is_main:
            return

        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        if wandb:
            self._wandb = _start_wandb(workdir, resume_step)
        self._tensorboard = _start_tensorboard(workdir, resume_step)
        path = workdir / "metrics.jsonl"
        _truncate(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append `values` (numbers or scalar arrays) for `step`."""
        if not self._is_main:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {n: v if math.isfinite(v) else None for n, v in numbers.items()}
        self._file.write(json.dumps({"step": int(step), **finite}) + "\n")
        self._file.flush()
        if self._tensorboard:
            for name, number in numbers.items():
                self._tensorboard.add_scalar(name, number, step)
            self._tensorboard.flush()
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def picture(self, step: int, name: str, path: str | Path) -> None:
        """Show the image file `path` in TensorBoard and W&B, where they are on."""
        if self._tensorboard:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._tensorboard.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb:
            self._wandb.log({name: self._wandb.Image(str(path))}, step=step)

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Show where the run is: a live line in a terminal, else a log line.

        Log lines come at most every 10 s; the first and the last always come.
        What `_FORMATS` names is shown in that order, then whatever else there is
        but `_NOT_SHOWN`.
        """
        if not self._is_main:
            return
        now = self._clock()
        if self._start is None:
            self._start = (step, now)
        fields = [f"{step}/{self._total_steps}", f"eta {self._eta(step, now)}"]
        fields += _format(values)

        if self._stream.isatty():
            # One column stays free: some terminals wrap a line that fills the last.
            width = shutil.get_terminal_size().columns - 1
            done = step / max(self._total_steps, 1)
            line = _fit(f"{self._title} {done:4.0%}", done, fields, width)
            self._stream.write("\r" + line.ljust(len(self._live_line))[:width])
            self._stream.flush()
            self._live_line = line
            return
        self._held_line = "  ".join([self._title, *fields])
        is_last = step >= self._total_steps
        if is_last or now - self._last_log_time >= LOG_LINE_SECONDS:
            self._last_log_time = now
            self._print_held_line()

    def message(self, text: str) -> None:
        """Print `text` on a line of its own, above the live line if there is one."""
        if not self._is_main:
            return
        if self._live_line:
            self._stream.write("\r" + " " * len(self._live_line) + "\r")
        self._stream.write(f"{text}\n{self._live_line}")
        self._stream.flush()

    def close(self) -> None:
        """End the live line, print a log line still held back, close the files."""
        if not self._is_main:
            return
        if self._live_line:
            self._stream.write("\n")
            self._live_line = ""
        self._print_held_line()
        self._stream.flush()
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _eta(self, step: int, now: float) -> str:
        """Time left at the mean pace since the first progress, as h:mm:ss."""
        assert self._start is not None
        first_step, first_time = self._start
        left = self._total_steps - step
        if left > 0 and step <= first_step:
            return "-:--:--"
        pace = (now - first_time) / max(step - first_step, 1)
        seconds = round(pace * max(left, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _print_held_line(self) -> None:
        if self._held_line:
            self._stream.write(self._held_line + "\n")
            self._stream.flush()
            self._held_line = ""


class StepTimer:
    """Measures images per second and the share of time spent waiting for input."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start anew: after a compilation or evaluation that should not count."""
        self._start = self._clock()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting: `with timer.waiting(): next(batches)`."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    def rates(self, images: int) -> dict[str, float]:
        """Rates since the last call, for `images` images seen since; then resets.

        Returns: {"images_per_second": 1/s, "input_wait": share of time, 0..1}.
        """
        seconds = max(self._clock() - self._start, 1e-9)
        rates = {
            "images_per_second": images / seconds,
            "input_wait": min(self._waited / seconds, 1.0),
        }
        self.reset()
        return rates


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, oldest first; null values come back as None.

    A last line that a crash cut short is left out. Raises ValueError when any
    other line is not a metrics line, FileNotFoundError when there is no file.
    """
    return [record for _, record in _read_lines(Path(path))]


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return
            raise UserError(
                f"{path}, line {number} is {line[:60]!r}: expected a JSON object with"
                ' "step"; delete the line, or start in a new folder'
            ) from error
        yield line, record


def _truncate(path: Path, resume_step: int) -> None:
    """Drop what a run that goes on after `resume_step` will write again."""
    if not path.exists():
        return
    kept = []
    if resume_step > 0:
        kept = [line for line, row in _read_lines(path) if row["step"] <= resume_step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)


def _start_tensorboard(workdir: Path, resume_step: int) -> Any:
    try:
        tensorboard = importlib.import_module("tensorboardX")
    except ImportError:
        return None
    # TensorBoard hides what an interrupted run had logged from purge_step on.
    return tensorboard.SummaryWriter(
        str(workdir / "tensorboard"), purge_step=resume_step + 1
    )


def _start_wandb(workdir: Path, resume_step: int) -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise MissingPackageError(
            "Logging to Weights & Biases was asked for, but wandb is not installed:"
            " run `pip install wandb`, or switch it off."
        ) from error
    wandb.init(
        project="simmim_jax",
        name=workdir.resolve().name,
        dir=str(workdir),
        resume="auto" if resume_step else None,
    )
    return wandb


def _format(values: Mapping[str, float]) -> list[str]:
    """Values as short texts: the usual ones first, in the order of `_FORMATS`."""
    usual = [text(float(values[n])) for n, text in _FORMATS.items() if n in values]
    others = [
        f"{n} {float(v):.4g}"
        for n, v in values.items()
        if n not in _FORMATS and n not in _NOT_SHOWN
    ]
    return usual + others


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _fit(head: str, done: float, fields: list[str], width: int) -> str:
    """One line of at most `width` characters, with a bar if there is room for it.

    Fields that do not fit are left out from the right. ASCII alone: a terminal's
    encoding must not be able to stop a training run.
    """
    while len(fields) > 1 and len("  ".join([head, *fields])) > width:
        fields = fields[:-1]
    room = width - len("  ".join([head, *fields])) - len(" []")
    bar_width = min(room, MAX_BAR_WIDTH)
    if bar_width >= MIN_BAR_WIDTH:
        filled = min(int(done * bar_width), bar_width)
        head += " [" + "=" * filled + " " * (bar_width - filled) + "]"
    return "  ".join([head, *fields])[:width]


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
