"""Metrics of a run: metrics.jsonl, TensorBoard, Weights & Biases and the terminal."""

import importlib
import json
import math
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from simmim_jax.errors import MissingPackageError, UserError
from simmim_jax.monitoring.progress import make_progress


class MetricWriter:
    """Writes metrics to `<workdir>/metrics.jsonl` and displays progress.

    `metrics.jsonl` has one JSON object a line, always with "step". Non-finite values
    become null because JSON has no NaN. If tensorboardX is installed, TensorBoard files
    go to `<workdir>/tensorboard`. Weights & Biases gets the same with `wandb=True`.

    A resumed run leaves the same file as an uninterrupted one: lines after
    `resume_step`, and a last line cut short by a crash, are dropped. With
    `resume_step=0` the file starts empty. So is the evaluation of `resume_step`, unless
    `evaluated`: the run evaluates that step again.

    Args:
      workdir: folder of the run; created if missing.
      total_steps: steps of the whole run, for the bar and the time left.
      resume_step: the restored step; 0 for a new run.
      evaluated: whether the metrics of the restored step's evaluation are complete.
      title: first word of each progress line.
      stream: where progress and messages go; None for standard output.
      wandb: log to Weights & Biases; raises ImportError if it is not installed.
      is_main: False in all but one process of a multi-host run, where nothing is
        written or displayed.
      clock: monotonic time [seconds].
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        total_steps: int,
        resume_step: int = 0,
        evaluated: bool = True,
        title: str = "pretrain",
        stream: TextIO | None = None,
        wandb: bool = False,
        is_main: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._is_main = is_main
        self._tensorboard: Any = None
        self._wandb: Any = None
        if not is_main:
            return

        self._display = make_progress(
            total_steps, title=title, stream=stream, clock=clock
        )
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        if wandb:
            self._wandb = _start_wandb(workdir, resume_step)
        self._tensorboard = _start_tensorboard(workdir, resume_step)
        path = workdir / "metrics.jsonl"
        _truncate(path, resume_step, evaluated)
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
        """Add the image file `path` to TensorBoard and W&B, if they are on."""
        if self._tensorboard:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._tensorboard.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb:
            self._wandb.log({name: self._wandb.Image(str(path))}, step=step)

    def tick(self, step: int) -> None:
        """Count `step` as finished, without metrics; cheap enough for every step.

        It keeps the bar and the time left up to date between two calls of `progress`.
        """
        if self._is_main:
            self._display.tick(step)

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Count `step` as finished, and display it with its metrics.

        A terminal shows a live bar, a log file at most one line every 10 s.
        """
        if self._is_main:
            self._display.show(step, values)

    def message(self, text: str) -> None:
        """Print `text` on its own line, above the bar if there is one."""
        if self._is_main:
            self._display.message(text)

    def close(self) -> None:
        """Leave the last step on display, and close the files."""
        if not self._is_main:
            return
        self._display.close()
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`, oldest first, with None for null.

    A last line cut short by a crash is dropped. Raises UserError if any other line is
    invalid, and FileNotFoundError if the file is missing.
    """
    return [record for _, record in _read_lines(Path(path))]


def import_wandb() -> Any:
    """Return the package of Weights & Biases; MissingPackageError without it."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise MissingPackageError(
            "config.wandb=True, but wandb is not installed. Run `pip install wandb`, "
            "or set config.wandb=False."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            operator.index(record["step"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number == len(lines):
                return
            raise UserError(
                f"{path}, line {number} is {line[:60]!r}. Expected a JSON object with "
                '"step". Delete the line, or start in a new folder.'
            ) from error
        yield line, record


def _truncate(path: Path, resume_step: int, evaluated: bool) -> None:
    """Drop the lines that a run resumed at `resume_step` will write again."""
    if not path.exists():
        return

    def is_kept(row: dict[str, Any]) -> bool:
        if row["step"] == resume_step:
            return evaluated or "loss" in row  # only a line of training has the loss
        return row["step"] < resume_step

    kept = []
    if resume_step > 0:
        kept = [line for line, row in _read_lines(path) if is_kept(row)]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)


def _start_tensorboard(workdir: Path, resume_step: int) -> Any:
    try:
        tensorboard = importlib.import_module("tensorboardX")
    except ImportError:
        return None
    # TensorBoard hides events of the interrupted run from purge_step on.
    return tensorboard.SummaryWriter(
        str(workdir / "tensorboard"), purge_step=resume_step + 1
    )


def _start_wandb(workdir: Path, resume_step: int) -> Any:
    wandb = import_wandb()
    try:
        wandb.init(
            project="simmim_jax",
            name=workdir.resolve().name,
            dir=str(workdir),
            resume="auto" if resume_step else None,
        )
    except wandb.Error as error:  # no account, no connection
        raise UserError(
            f"config.wandb=True, but Weights & Biases does not start: {error} Run "
            "`wandb login`, set WANDB_MODE=offline, or leave config.wandb out."
        ) from error
    return wandb
