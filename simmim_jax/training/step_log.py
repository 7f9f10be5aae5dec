"""Metrics of steps: fetched from the device one step late, checked and written."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from simmim_jax.checkpoints.store import Checkpointer
from simmim_jax.errors import NonFiniteError
from simmim_jax.monitoring.timer import StepTimer
from simmim_jax.monitoring.writer import MetricWriter
from simmim_jax.runtime import accelerators


class StepLog:
    """Fetches and checks metrics one step late, so that no step waits.

    Those of a finished step, as on a CPU, are fetched at once. Each checkpoint writes a
    line, too: its mean loss then covers the same steps whether or not the run was
    interrupted there.
    """

    def __init__(
        self,
        writer: MetricWriter,
        rate: Callable[[int], float],
        checkpoints: Checkpointer,
        batch_size: int,
        start: int,
        begin: float,
    ):
        """rate: step -> learning rate of its update; start: the restored step.

        begin: start-up, by time.perf_counter [seconds].
        """
        self.timer = StepTimer()
        self.writer = writer
        self._rate = rate
        self.checkpoints = checkpoints
        self._batch_size = batch_size
        self._flops_per_image = 0.0
        self._once: dict[str, float] = {}  # for the next line alone
        self._begin: float | None = begin
        self._running: tuple[int, dict[str, jax.Array], dict, bool] | None = None
        self._losses: list[float] = []
        self._done = start  # newest step known to be finished
        self._timed = start  # newest finished step when the clock was last read

    def compiled(self, flops_per_image: float, seconds: float) -> None:
        """Add what compiling found, the work of a step [FLOP]; rates begin now.

        seconds: how long it took.
        """
        self._flops_per_image = flops_per_image
        self.note("compile_seconds", seconds)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time since the last step from the rates."""
        self.timer.reset()
        self._timed = self._done

    def add(
        self,
        step: int,
        metrics: dict[str, jax.Array],
        due: bool,
        bad_images: Mapping[str, int],
    ) -> None:
        """Add the metrics of a step that may still be running; finish the one before.

        bad_images: number by reason, of the run up to this step.
        """
        self.finish()
        bad = {f"bad_images/{reason}": n for reason, n in bad_images.items()}
        self._running = (step, metrics, bad, due)
        # A CPU computes at once. JAX's type stubs lack the method.
        if metrics["loss"].is_ready():  # type: ignore[attr-defined]
            self.finish()

    def note(self, name: str, seconds: float) -> None:
        """Add a duration to the next line [seconds]."""
        self._once[name] = self._once.get(name, 0.0) + seconds

    def finish(self) -> None:
        """Wait for the last step, check it, and write a line if one is due."""
        if not self._running:
            return
        step, metrics, bad, due = self._running
        self._running = None
        values = {name: float(v) for name, v in jax.device_get(metrics).items()}
        self.check(step, values)
        if self._begin is not None:
            seconds = time.perf_counter() - self._begin
            self._begin = None
            self.note("first_step_seconds", seconds)
            self.writer.message(f"first step done {seconds:.1f} s after the start")
        self._losses.append(values["loss"])
        self._done = step
        if not due:
            self.writer.tick(step)
            return
        values["loss"] = float(np.mean(self._losses))
        values |= {"learning_rate": self._rate(step), **bad}
        if self._done > self._timed:
            images = (self._done - self._timed) * self._batch_size
            rates = self.timer.rates(images)
            values |= rates | utilization(
                rates["images_per_second"], self._flops_per_image
            )
        if (memory := device_memory()) is not None:
            values["device_memory"] = memory
        values |= self._once
        self._once = {}
        self._losses, self._timed = [], self._done
        self.writer.write(step, values)
        self.writer.progress(step, values)

    def check(self, step: int, values: dict[str, float]) -> None:
        """Raise NonFiniteError where a value is NaN or infinite."""
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if not bad:
            return
        self.checkpoints.wait()
        # A step is saved before it is evaluated.
        good = max((s for s in self.checkpoints.steps() if s < step), default=None)
        raise NonFiniteError(
            f"{' and '.join(bad)} not finite at step {step}, with learning rate "
            f"{self._rate(step):.3e}. Last good checkpoint: "
            f"{f'step {good}' if good else 'none yet'}. Try a lower "
            "config.optim.lr, a longer config.optim.warmup, or config.dtype=float32."
        )


def utilization(images_per_second: float, flops_per_image: float) -> dict[str, float]:
    """Return the rate of a device, and its MFU where its peak is known.

    mfu: model FLOP utilisation, the share of the bfloat16 peak that the model's own
    products take.
    """
    rate = images_per_second / jax.device_count()
    values = {"images_per_second_per_chip": rate}
    peak = accelerators.peak(jax.devices()[0].device_kind)
    return values | ({"mfu": rate * flops_per_image / peak} if peak else {})


def device_memory() -> int | None:
    """Return the peak memory of this process's devices [bytes]; None on a CPU."""
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    return max(peaks, default=None)
