"""How good answers are that are not one class: of several classes, and of numbers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from simmim_jax.tasks.accuracy import CONFIDENCE, Accuracy

# Probability from which on an image is said to be of a class.
THRESHOLD = 0.5
_RESAMPLES = 1000


# ---- Any number of classes -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SeveralScore:
    """Shares in 0..1 of one of several classes; None where they are of no image.

    images: that are of it; predicted: that are said to be; average_precision: area
    under precision by recall, as scikit-learn's; the others at `THRESHOLD`.
    """

    name: str
    images: int
    predicted: int
    average_precision: float | None
    precision: float | None
    recall: float | None
    f1: float | None


def several_scores(
    probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str]
) -> list[SeveralScore]:
    """Return the scores of each class.

    probabilities: [n, k]; targets: [n, k], 1, 0 or NaN, which does not count.
    """
    scores = []
    for name, column, target in zip(names, probabilities.T, targets.T, strict=True):
        known = ~np.isnan(target)
        true, said = target[known] == 1, column[known] >= THRESHOLD
        images, predicted = int(true.sum()), int(said.sum())
        hits = int((true & said).sum())
        scores.append(
            SeveralScore(
                name,
                images=images,
                predicted=predicted,
                average_precision=average_precision(column[known], true)
                if images
                else None,
                precision=hits / predicted if predicted else None,
                recall=hits / images if images else None,
                f1=2 * hits / (images + predicted) if images + predicted else None,
            )
        )
    return scores


def average_precision(scores: np.ndarray, true: np.ndarray) -> float:
    """Return Σ (R_i - R_(i-1)) P_i over the thresholds of scores [n], true: bool [n].

    Equal scores are one threshold (scikit-learn's `average_precision_score`).
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    hits = true[order].cumsum()[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1])


def mean_average_precision(scores: Sequence[SeveralScore]) -> float:
    """Return the mean over the classes that have images, 0 without any."""
    known = [s.average_precision for s in scores if s.average_precision is not None]
    return float(np.mean(known)) if known else 0.0


def mean_f1(scores: Sequence[SeveralScore]) -> float:
    """Return the mean F1 of the classes that have images, 0 without any."""
    known = [s.f1 for s in scores if s.images and s.f1 is not None]
    return float(np.mean(known)) if known else 0.0


def exact_matches(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return whether all known classes of an image are right, bool [n]."""
    said = probabilities >= THRESHOLD
    return ((said == targets) | np.isnan(targets)).all(1)


def share(hits: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the share of hits, bool [n], with its 95 % interval (Wilson)."""
    value = float(hits.mean())
    return value, Accuracy(0, value, len(hits)).interval


# ---- Numbers -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NumberScore:
    """Errors of one number, in its unit, over `images` where it is known.

    mae: mean absolute error; r2: 1 - squared errors / those of the mean, None where all
    are equal; with 95 % intervals for other images: bootstrap, percentiles.
    """

    name: str
    images: int
    mae: float
    mae_low: float
    mae_high: float
    r2: float | None
    r2_low: float | None
    r2_high: float | None


def number_scores(
    predicted: np.ndarray, targets: np.ndarray, names: Sequence[str]
) -> list[NumberScore]:
    """Return the scores of each number; predicted, targets: [n, m], NaN is unknown.

    A number that no image has is left out.
    """
    scores = []
    for name, column, target in zip(names, predicted.T, targets.T, strict=True):
        known = ~np.isnan(target)
        if not known.any():
            continue
        found, true = column[known].astype(float), target[known].astype(float)
        rng = np.random.default_rng(0)
        drawn = np.array(
            [
                _errors(found[some], true[some])
                for some in (
                    rng.integers(len(true), size=len(true)) for _ in range(_RESAMPLES)
                )
            ]
        )
        mae, r2 = _errors(found, true)
        mae_low, mae_high = _interval(drawn[:, 0])
        # Resamples of equal numbers have no R².
        defined = drawn[~np.isnan(drawn[:, 1]), 1]
        r2_low, r2_high = _interval(defined) if len(defined) else (None, None)
        scores.append(
            NumberScore(
                name,
                images=len(true),
                mae=mae,
                mae_low=mae_low,
                mae_high=mae_high,
                r2=None if np.isnan(r2) else r2,
                r2_low=r2_low,
                r2_high=r2_high,
            )
        )
    return scores


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def mean_errors(
    predicted: np.ndarray, targets: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Return {"mae/NAME", "r2/NAME"} of each number; r2 where it is defined."""
    metrics = {}
    for name, column, target in zip(names, predicted.T, targets.T, strict=True):
        known = ~np.isnan(target)
        if known.any():
            mae, r2 = _errors(column[known].astype(float), target[known].astype(float))
            metrics[f"mae/{name}"] = mae
            if not np.isnan(r2):
                metrics[f"r2/{name}"] = r2
    return metrics


def _errors(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Return mean absolute error and R², NaN where all numbers are equal."""
    errors = predicted - true
    spread = np.square(true - true.mean()).sum()
    r2 = 1 - np.square(errors).sum() / spread if spread else np.nan
    return float(np.abs(errors).mean()), float(r2)
