"""Accuracies of held-out images, with confidence intervals."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from simmim_jax.monitoring.writer import read_metrics

CONFIDENCE = 0.95
_BAD = "eval_bad_images/"


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy at a step, a share in 0..1 of `images` held-out images."""

    step: int
    top1: float
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of Wilson, for other images of the same kind."""
        from scipy import stats  # 1 s to import

        test = stats.binomtest(round(self.top1 * self.images), self.images)
        low, high = test.proportion_ci(CONFIDENCE, method="wilson")
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the interval, for JSON."""
        return dataclasses.asdict(self) | {"interval": self.interval}


def last_and_best(workdir: Path, held_out: int) -> tuple[Accuracy, Accuracy]:
    """Return the accuracies of a run's last step and of its best one, from its metrics.

    Of equally good steps the latest is the best, as for checkpoints. held_out: number
    of images, of which those that could not be read do not count.
    """
    found = [
        Accuracy(
            line["step"],
            line["top1"],
            held_out - sum(int(n) for name, n in line.items() if name.startswith(_BAD)),
        )
        for line in read_metrics(workdir / "metrics.jsonl")
        if "top1" in line
    ]
    return found[-1], max(found, key=lambda one: (one.top1, one.step))


def gain(before: Accuracy, after: Accuracy) -> tuple[float, float]:
    """Return the 95 % confidence interval of the difference of two accuracies.

    It is that of independent samples (Newcombe 1998, method 10). On the same images it
    is too wide, rather than too narrow, where both classifiers tend to fail together.
    """
    difference = after.top1 - before.top1
    (low, high), (low_after, high_after) = before.interval, after.interval
    below = math.hypot(after.top1 - low_after, high - before.top1)
    above = math.hypot(high_after - after.top1, before.top1 - low)
    return difference - below, difference + above
