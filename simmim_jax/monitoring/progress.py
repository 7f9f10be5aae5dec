"""Progress of a run: a live bar in a terminal, a line every 10 s in a log file."""

import abc
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

LOG_LINE_SECONDS = 10.0
ESTIMATE_STEPS = 3  # timed before the first estimate of the time left
MIN_BAR_WIDTH = 6  # columns

# ASCII only: a terminal's encoding must not be able to stop a training run.
_LOG_LINE = "{desc}  {n_fmt}/{total_fmt}  eta {remaining}{values}"
_WITHOUT_BAR = "{desc} {percentage:3.0f}%  {n_fmt}/{total_fmt}  eta {remaining}{values}"
_WITH_BAR = (
    "{desc} {percentage:3.0f}% [{bar}]  {n_fmt}/{total_fmt}  eta {remaining}{values}"
)
_BAR_CHARACTERS = " ="

# Usual metrics in display order; others follow as "name 1.234".
_FORMATS: dict[str, Callable[[float], str]] = {
    "loss": "loss {:.4f}".format,
    "images_per_second_per_chip": lambda rate: f"{_short(rate)} images/s/chip",
    "mfu": "MFU {:.0%}".format,
    "input_wait": "wait {:.0%}".format,
    "learning_rate": "lr {:.2e}".format,
    "device_memory": lambda size: f"{size / 2**30:.1f} GiB",
}
# In metrics.jsonl, but not displayed.
_HIDDEN = {
    "images_per_second",
    "param_norm",
    "first_step_seconds",
    "compile_seconds",
    "checkpoint_seconds",
}


def make_progress(
    total_steps: int,
    *,
    title: str,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> "Progress":
    """Return the display for `stream`: a bar in a terminal, otherwise log lines.

    Args:
      total_steps: steps of the whole run.
      title: first word of each line.
      stream: None for standard output.
      clock: monotonic time, for log lines [seconds].
    """
    stream = sys.stdout if stream is None else stream
    if stream.isatty():
        return TerminalProgress(total_steps, title, stream)
    return LogProgress(total_steps, title, stream, clock)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print `text` on its own line, above the bar if there is one. Thread-safe.

    stream: None for standard output.
    """
    stream = sys.stdout if stream is None else stream
    _Bar.write(text, file=stream)
    stream.flush()


def watch(
    items: Iterable[T],
    count: int,
    *,
    title: str,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[T]:
    """Yield `count` items, and print how many were handed out every 10 s.

    For a part of a run that may be short.
    """
    begin = shown = clock()
    for done, item in enumerate(items):
        if clock() - shown >= LOG_LINE_SECONDS:
            shown = clock()
            say(_meter(title, done, count, shown - begin), stream)
        yield item


class Progress(abc.ABC):
    """Display of a run's progress and messages.

    The time left is the mean pace since the first step, times the steps left. The first
    step is not timed because it may include a compilation.
    """

    def __init__(self, total_steps: int, title: str, stream: TextIO):
        self.total_steps, self.title, self.stream = total_steps, title, stream

    @abc.abstractmethod
    def tick(self, step: int) -> None:
        """Count `step` as finished; cheap enough for every step (~1 us)."""

    @abc.abstractmethod
    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Count `step` as finished, and display it with its metrics."""

    def message(self, text: str) -> None:
        """Print `text` on its own line, above the bar if there is one."""
        say(text, self.stream)

    @abc.abstractmethod
    def close(self) -> None:
        """Leave the last step on display."""


class TerminalProgress(Progress):
    """A tqdm bar, drawn at most ten times a second."""

    _bar: "_Bar | None" = None
    _first_step = 0

    def tick(self, step: int) -> None:
        """Count `step` as finished; draw the bar if it is 0.1 s old."""
        bar = self._start(step) if self._bar is None else self._bar
        bar.update(step - bar.n)
        if step - self._first_step == ESTIMATE_STEPS:
            bar.refresh()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Draw the bar with `values`, which stay until the next call."""
        self.tick(step)
        assert self._bar is not None
        self._bar.values = _format(values)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is, on its own line."""
        if self._bar is not None:
            self._bar.close()
        self.stream.flush()

    def _start(self, step: int) -> "_Bar":
        self._first_step = step
        self._bar = _Bar(
            desc=self.title,
            total=self.total_steps,
            initial=step,
            file=self.stream,
            ascii=_BAR_CHARACTERS,
            miniters=1,
            smoothing=0,  # the mean pace includes evaluations and checkpoints
            position=0,
        )
        return self._bar


class LogProgress(Progress):
    """At most one line every 10 s, and one for the last step."""

    def __init__(
        self,
        total_steps: int,
        title: str,
        stream: TextIO,
        clock: Callable[[], float],
    ):
        super().__init__(total_steps, title, stream)
        self._clock = clock
        self._start: tuple[int, float] | None = None  # first step, and its time
        self._held_line = ""  # not printed because the last one is too recent
        self._last_line_time = -math.inf  # nothing printed yet

    def tick(self, step: int) -> None:
        """Print the first estimate of the time left, if metrics are not due earlier."""
        has_printed = self._last_line_time > -math.inf
        if not has_printed and self._timed_steps(step) >= ESTIMATE_STEPS:
            self._print(self._line(step, []))

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Print a line, or hold it back until the next one if it is not due."""
        has_estimate = self._timed_steps(step) >= ESTIMATE_STEPS
        age = self._clock() - self._last_line_time
        self._held_line = self._line(step, _format(values))
        if (has_estimate and age >= LOG_LINE_SECONDS) or step >= self.total_steps:
            self._print(self._held_line)

    def close(self) -> None:
        """Print the line held back, if any."""
        if self._held_line:
            self._print(self._held_line)

    def _timed_steps(self, step: int) -> int:
        if self._start is None:
            self._start = step, self._clock()
        return step - self._start[0]

    def _line(self, step: int, values: Sequence[str]) -> str:
        assert self._start is not None
        first_step, first_time = self._start
        elapsed = self._clock() - first_time
        total = self.total_steps
        return _meter(self.title, step, total, elapsed, first_step, _join(values))

    def _print(self, line: str) -> None:
        self._held_line = ""
        self._last_line_time = self._clock()
        self.message(line)


class _Bar(tqdm):
    """tqdm bar as wide as the terminal, without the values that do not fit."""

    monitor_interval = 0  # no thread: the training loop draws often enough
    values: Sequence[str] = ()

    @property
    def format_dict(self) -> dict[str, Any]:
        """Fields of the line: tqdm's, and as many values as fit."""
        # One column stays free: some terminals wrap a line that fills the last one.
        width = shutil.get_terminal_size().columns - 1
        fields = super().format_dict | {"ncols": None, "bar_format": _WITHOUT_BAR}
        room = width - len(self.format_meter(**fields, values=""))
        count = len(self.values)
        while count and len(_join(self.values[:count])) > room:
            count -= 1
        shown = _join(self.values[:count])
        if room - len(shown) >= MIN_BAR_WIDTH + len(" []"):
            fields["bar_format"] = _WITH_BAR
        return fields | {"ncols": width, "values": shown}


# Worker processes draw nothing, so tqdm's default lock across processes is not needed.
_Bar.set_lock(threading.RLock())


def _meter(
    title: str, step: int, total: int, elapsed: float, first: int = 0, values: str = ""
) -> str:
    return tqdm.format_meter(
        step,
        total,
        elapsed=elapsed,
        initial=first,
        prefix=title,
        bar_format=_LOG_LINE,
        values=values,
    )


def _join(values: Sequence[str]) -> str:
    return "".join(f"  {value}" for value in values)


def _format(values: Mapping[str, float]) -> list[str]:
    """Values as short texts: the usual ones first, in the order of `_FORMATS`."""
    usual = [text(float(values[n])) for n, text in _FORMATS.items() if n in values]
    others = [
        f"{n} {float(v):.4g}"
        for n, v in values.items()
        if n not in _FORMATS and n not in _HIDDEN
    ]
    return usual + others


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
