"""How far the probabilities of a classifier can be trusted, and what mends them."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simmim_jax.errors import UserError
from simmim_jax.monitoring.writer import write_json

BINS = 15  # as in Guo et al. (2017)
FILE = "calibration.json"
# Temperatures that are tried.
_RANGE = 0.05, 20.0


class Reliability(NamedTuple):
    """Images by the probability of their most probable class, in equal intervals.

    edges: [bins + 1]; images: int [bins]; confidence, accuracy: means [bins], NaN where
    there is no image.
    """

    edges: np.ndarray
    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence|, by images."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.images) / self.images.sum())


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A temperature that logits are divided by, and what it was fitted on.

    error: expected calibration error without it; calibrated_error: with temperatures
    that were each fitted on the other half of the images.
    """

    temperature: float
    images: int
    dataset: str
    split: str
    error: float
    calibrated_error: float

    def describe(self) -> str:
        """Return temperature, origin and errors in a line."""
        return (
            f"temperature {self.temperature:.3g}, fitted on {self.images:,} images of "
            f"{self.dataset} {self.split}: calibration error {self.error:.1%} -> "
            f"{self.calibrated_error:.1%}"
        )


def probabilities_of(
    logits: np.ndarray, kind: str, temperature: float = 1.0
) -> np.ndarray:
    """Return float32 [n, classes] of logits [n, classes].

    kind: config.loss, "softmax" or "sigmoid".
    """
    from scipy import special  # 0.1 s to import

    function = special.expit if kind == "sigmoid" else special.softmax
    options = {} if kind == "sigmoid" else {"axis": -1}
    scaled = np.asarray(logits, np.float64) / temperature
    return function(scaled, **options).astype(np.float32)


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> Reliability:
    """Return how often the most probable class is right, by its probability.

    probabilities: [n, classes]; labels: int [n]. A bin includes its upper edge.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [
            np.bincount(place, weights=values, minlength=bins) / images
            for values in (confidence, right)
        ]
    return Reliability(edges, images, *means)


def fit_temperature(logits: np.ndarray, labels: np.ndarray, kind: str) -> float:
    """Return the temperature with the least mean cross-entropy (Guo et al., 2017).

    logits: [n, classes]; labels: int [n]; kind: as in `probabilities_of`; the sigmoid's
    cross-entropy is the binary one of each class.
    """
    from scipy import optimize, special

    logits = np.asarray(logits, np.float64)
    true = logits[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        if kind == "sigmoid":
            # -log sigmoid(x) = softplus(-x), and softplus(-x) = softplus(x) - x.
            sums = np.logaddexp(0, scale * logits).sum(axis=1)
        else:
            sums = special.logsumexp(scale * logits, axis=1)
        return float((sums - scale * true).mean())

    found = optimize.minimize_scalar(
        loss, bounds=tuple(np.log(_RANGE)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def calibrate(
    logits: np.ndarray, labels: np.ndarray, kind: str, *, dataset: str, split: str
) -> Calibration:
    """Fit a temperature to held-out images, and measure what it is worth.

    dataset, split: which images they are.
    raises: UserError if all are classified right: no temperature would be too low.
    """
    if (logits.argmax(axis=1) == labels).all():
        raise UserError(
            f"All {len(labels):,} images of {dataset!r} are classified right: a "
            "temperature is fitted on mistakes, too. Name more held-out images."
        )
    calibrated = np.empty(logits.shape, np.float32)
    halves = slice(0, None, 2), slice(1, None, 2)
    for fitted, judged in (halves, halves[::-1]):
        temperature = fit_temperature(logits[fitted], labels[fitted], kind)
        calibrated[judged] = probabilities_of(logits[judged], kind, temperature)
    return Calibration(
        temperature=fit_temperature(logits, labels, kind),
        images=len(labels),
        dataset=dataset,
        split=split,
        error=reliability(probabilities_of(logits, kind), labels).error,
        calibrated_error=reliability(calibrated, labels).error,
    )


# ---- Files ---------------------------------------------------------------------------


def save(calibration: Calibration, path: str | Path, step: int) -> Path:
    """Write a calibration beside the checkpoint that it is of; return its file.

    path: a workdir or checkpoint; step: of the checkpoint.
    """
    file = _file(path, step)
    write_json(file, dataclasses.asdict(calibration))
    return file


def load(path: str | Path, step: int) -> Calibration | None:
    """Return the calibration of a checkpoint, None if there is none.

    path, step: as in `save`.
    raises: UserError if its file is damaged.
    """
    file = _file(path, step)
    if not file.exists():
        return None
    try:
        found = Calibration(**json.loads(file.read_text(encoding="utf-8")))
        if found.temperature > 0:
            return found
    except (ValueError, TypeError):
        pass
    raise UserError(
        f"'{file}' is damaged: expected what `simmim evaluate --calibrate` wrote. "
        "Remove it, or calibrate again."
    )


def _file(path: str | Path, step: int) -> Path:
    path = Path(path).expanduser()
    is_checkpoint = (path / "params").is_dir()
    return (path if is_checkpoint else path / "checkpoints" / str(step)) / FILE
