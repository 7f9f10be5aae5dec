"""From the log-probabilities of frames to labels, and to their times (NumPy).

Log-probabilities are float [t k] of one utterance without its padding; class 0 is the
blank, labels are 1..k-1.
"""

import collections
import math
from typing import NamedTuple

import numpy as np

# Classes of a frame that are less likely extend no prefix.
_LEAST = math.log(1e-4)


class Aligned(NamedTuple):
    """Frames of a label: `start` and those before `end`; probability: its highest."""

    label: int
    start: int
    end: int
    probability: float


def greedy(log_probs: np.ndarray) -> tuple[int, ...]:
    """Return the labels of the most probable path: equal neighbours once, no blanks."""
    best = log_probs.argmax(1)
    is_new = np.diff(best, prepend=0) != 0
    return tuple(best[is_new & (best > 0)].tolist())


def beam_search(log_probs: np.ndarray, width: int) -> tuple[tuple[int, ...], float]:
    """Return the most probable labels, and log p(labels | sound) of the paths kept.

    Prefix beam search (Hannun et al. 2014, algorithm 1, without a language model):
    after each frame the `width` most probable prefixes stay. Of each are known the
    log-probabilities of the paths that end in a blank, and of those that do not.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_probs.astype(float):
        found: dict[tuple[int, ...], list[float]] = collections.defaultdict(
            lambda: [-math.inf, -math.inf]
        )
        classes = np.flatnonzero(frame >= min(_LEAST, frame.max()))
        labels = [(c, frame[c]) for c in classes.tolist() if c]
        for prefix, (blank, label) in beams.items():
            total = _add(blank, label)
            same = found[prefix]
            same[0] = _add(same[0], total + frame[0])
            if prefix:
                same[1] = _add(same[1], label + frame[prefix[-1]])
            for c, log_prob in labels:
                # A repeated label needs a blank in between.
                before = blank if prefix and prefix[-1] == c else total
                longer = found[(*prefix, c)]
                longer[1] = _add(longer[1], before + log_prob)
        ranked = sorted(found.items(), key=lambda item: -_add(*item[1]))
        beams = {prefix: (ends[0], ends[1]) for prefix, ends in ranked[:width]}
    best = next(iter(beams))
    return best, _add(*beams[best])


def align(log_probs: np.ndarray, labels: tuple[int, ...]) -> list[Aligned]:
    """Return the frames of each label on the most probable path (Viterbi).

    raises: ValueError where the labels do not fit the frames.
    """
    classes = np.zeros(2 * len(labels) + 1, int)
    classes[1::2] = labels
    emitted = log_probs[:, classes].astype(np.float64)
    may_skip = np.zeros(len(classes), bool)
    may_skip[3::2] = classes[3::2] != classes[1:-2:2]
    score = np.full(len(classes), -np.inf)
    score[:2] = emitted[0, :2]
    moves = np.zeros(emitted.shape, np.int8)
    for t in range(1, len(emitted)):
        behind = np.full((3, len(classes)), -np.inf)
        behind[0] = score
        behind[1, 1:] = score[:-1]
        behind[2, 2:] = np.where(may_skip[2:], score[:-2], -np.inf)
        moves[t] = behind.argmax(0)
        score = behind.max(0) + emitted[t]
    state = len(classes) - 1
    if labels and score[-2] > score[-1]:
        state -= 1
    if score[state] == -np.inf:
        raise ValueError(f"{len(labels)} labels do not fit {len(emitted)} frames.")
    path = np.empty(len(emitted), int)
    for t in reversed(range(len(emitted))):
        path[t] = state
        state -= int(moves[t, state])
    aligned = []
    for i, label in enumerate(labels):
        frames = np.flatnonzero(path == 2 * i + 1)
        highest = float(np.exp(log_probs[frames, label].max()))
        aligned.append(Aligned(label, int(frames[0]), int(frames[-1]) + 1, highest))
    return aligned


def _add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    low, high = (a, b) if a < b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
