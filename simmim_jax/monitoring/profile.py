"""A trace of some steps, for xprof or TensorBoard."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces `num_steps` steps after the first `start_step` of this start of a run.

    It is written to <workdir>/profile, by process 0 alone; 0 steps: there is none. At
    its end the host waits for the device once.
    """

    def __init__(self, workdir: Path, *, start_step: int, num_steps: int):
        self.path = workdir / "profile"
        self._before = start_step  # steps until the trace begins
        self._left = num_steps if jax.process_index() == 0 else 0
        self._is_on = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the work of one step, which the trace shows under its number."""
        if self._left and not self._before and not self._is_on:
            jax.profiler.start_trace(self.path)
            self._is_on = True
        if self._before:
            self._before -= 1
        if not self._is_on:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, results: Any) -> str:
        """Ends the trace after its last step, whose results these are.

        returns: what to tell the user then, else "".
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
        """Ends a trace that is on."""
        if self._is_on:
            jax.profiler.stop_trace()
        self._is_on = False
        self._left = 0
