"""Character and word error rates, with a confidence interval over utterances."""

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class ErrorRate:
    """Errors of n hypotheses, and the lengths of their references, int [n] each.

    An error rate may exceed 1: insertions count, too.
    """

    substitutions: np.ndarray
    insertions: np.ndarray
    deletions: np.ndarray
    lengths: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """int [n]."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Errors of all utterances over the length of all references.

        References without a word count the inserted ones, as in jiwer.
        """
        return float(self.errors.sum() / max(self.lengths.sum(), 1))

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the rate for other utterances: bootstrap, percentiles.

        Utterances are drawn, not words, whose errors depend on each other.
        """
        n = len(self.lengths)
        drawn = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
        lengths = np.maximum(self.lengths[drawn].sum(1), 1)
        ends = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
        low, high = np.quantile(self.errors[drawn].sum(1) / lengths, ends)
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Return rate, interval and counts, for JSON."""
        counts = ("substitutions", "insertions", "deletions")
        return {
            "rate": self.rate,
            "interval": self.interval,
            **{name: int(getattr(self, name).sum()) for name in counts},
            "length": int(self.lengths.sum()),
            "utterances": len(self.lengths),
        }


def characters(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Return the character error rate (CER); spaces are characters."""
    return _error_rate(references, hypotheses)


def words(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Return the word error rate (WER).

    Any white space ends a word. In jiwer a space alone does, unless its transformations
    say otherwise.
    """
    return _error_rate([t.split() for t in references], [t.split() for t in hypotheses])


def edits(
    reference: Sequence[Hashable], hypothesis: Sequence[Hashable]
) -> tuple[int, int, int]:
    """Return the fewest substitutions, insertions and deletions between sequences.

    Of several ways with as few edits, the one with most substitutions; jiwer's may be
    another one of them.
    """
    numbers: dict[Hashable, int] = {}
    there, here = (
        np.array([numbers.setdefault(item, len(numbers)) for item in items], int)
        for items in (reference, hypothesis)
    )
    # An edit costs `unit`, and 1 more if it is no substitution (Levenshtein distance).
    unit = len(there) + len(here) + 1
    places = (unit + 1) * np.arange(len(here) + 1)
    cost = places
    for item in there:
        row = cost + unit + 1
        row[1:] = np.minimum(row[1:], cost[:-1] + unit * (here != item))
        # An insertion follows the cheapest place on its left.
        cost = np.minimum.accumulate(row - places) + places
    total, indels = divmod(int(cost[-1]), unit)
    insertions = (indels + len(here) - len(there)) // 2
    return total - indels, insertions, indels - insertions


def _error_rate(
    references: Iterable[Sequence[Hashable]], hypotheses: Iterable[Sequence[Hashable]]
) -> ErrorRate:
    pairs = list(zip(references, hypotheses, strict=True))
    counts = np.array([edits(*pair) for pair in pairs], int).reshape(-1, 3)
    lengths = np.array([len(reference) for reference, _ in pairs], int)
    substitutions, insertions, deletions = counts.T
    return ErrorRate(substitutions, insertions, deletions, lengths)
