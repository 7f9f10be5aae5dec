"""What the person who watches a run sees: progress and messages."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

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


class Progress:
    """Progress of a run and messages, in a terminal or a log file."""

    def __init__(
        self,
        total_steps: int,
        *,
        title: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._total_steps = total_steps
        self._title = title
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._start: tuple[int, float] | None = None  # step and time first shown
        self._live_line = ""  # on the terminal now, without a line end
        self._held_line = ""  # a log line that came too soon after the one before
        self._last_log_time = -math.inf

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Show where the run is: a live line in a terminal, else a log line.

        Log lines come at most every 10 s; the first and the last always come.
        What `_FORMATS` names is shown in that order, then whatever else there is
        but `_NOT_SHOWN`.
        """
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
        if self._live_line:
            self._stream.write("\r" + " " * len(self._live_line) + "\r")
        self._stream.write(f"{text}\n{self._live_line}")
        self._stream.flush()

    def close(self) -> None:
        """End the live line, print a log line still held back."""
        if self._live_line:
            self._stream.write("\n")
            self._live_line = ""
        self._print_held_line()
        self._stream.flush()

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
