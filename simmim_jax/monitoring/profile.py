"""Profiler trace of a few steps, for xprof or TensorBoard."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces `num_steps` steps, after skipping the first `start_step` since the start.

    Process 0 writes the trace to <workdir>/profile. With num_steps=0 there is none. The
    host waits for the device once, at the end of the trace.
    """

    def __init__(self, workdir: Path, *, start_step: int, num_steps: int):
        self.path = workdir / "profile"
        self._skip = start_step  # steps until the trace starts
        self._left = num_steps if jax.process_index() == 0 else 0
        self._is_on = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Wrap the work of one step, which the trace shows under its number."""
        if self._left and not self._skip and not self._is_on:
            jax.profiler.start_trace(self.path)
            self._is_on = True
        if self._skip:
            self._skip -= 1
        if not self._is_on:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, results: Any) -> str:
        """Stop the trace after its last step, once `results` of that step are ready.

        Returns: a message for the user when the trace is complete, otherwise "".
        """
        if not self._is_on:
            return ""
        self._left -= 1
        if self._left:
            return ""
        jax.block_until_ready(results)
        self.close()
        return (
            f"profile written: tensorboard --logdir={self.path}, or xprof {self.path}"
        )

    def close(self) -> None:
        """Stop the trace if it is on."""
        if self._is_on:
            jax.profiler.stop_trace()
        self._is_on = False
        self._left = 0
