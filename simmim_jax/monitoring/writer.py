"""What a run tells: metrics to files, progress to the person who watches."""

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from simmim_jax.errors import MissingPackageError, UserError
from simmim_jax.monitoring.progress import Progress


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
        self._is_main = is_main
        self._shown = Progress(total_steps, title=title, stream=stream, clock=clock)
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
        self._shown.progress(step, values)

    def message(self, text: str) -> None:
        """Print `text` on a line of its own, above the live line if there is one."""
        if not self._is_main:
            return
        self._shown.message(text)

    def close(self) -> None:
        """End the live line, print a log line still held back, close the files."""
        if not self._is_main:
            return
        self._shown.close()
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


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
