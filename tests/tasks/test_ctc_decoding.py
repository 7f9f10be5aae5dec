"""Decoding and alignment against the enumeration of all paths."""

import itertools

import numpy as np
import pytest

from simmim_jax.tasks.ctc_decoding import align, beam_search, greedy


def log_probs_of(frames, classes, seed):
    logits = np.random.default_rng(seed).normal(size=(frames, classes))
    return logits - np.logaddexp.reduce(logits, 1, keepdims=True)


def text_of(path):
    return tuple(c for c, _ in itertools.groupby(path) if c)


def all_paths(log_probs):
    frames, classes = log_probs.shape
    for path in itertools.product(range(classes), repeat=frames):
        yield path, log_probs[np.arange(frames), path].sum()


def test_greedy_merges_repeats_and_drops_blanks():
    path = [1, 1, 0, 1, 2, 2, 0, 0, 3]
    assert greedy(np.log(np.eye(4)[path] + 1e-3)) == (1, 1, 2, 3)
    assert greedy(np.log(np.eye(4)[[0, 0]] + 1e-3)) == ()


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_most_probable_text(seed):
    log_probs = log_probs_of(6, 3, seed)
    totals: dict = {}
    for path, score in all_paths(log_probs):
        text = text_of(path)
        totals[text] = np.logaddexp(totals.get(text, -np.inf), score)
    best = max(totals, key=totals.get)
    labels, score = beam_search(log_probs, 200)
    assert labels == best
    assert score == pytest.approx(totals[best])


def test_a_beam_sums_paths_that_greedy_decoding_does_not():
    # Each frame is most probably blank, the text "1" is more probable than none.
    log_probs = np.log([[0.6, 0.4], [0.6, 0.4]])
    assert greedy(log_probs) == ()
    labels, score = beam_search(log_probs, 4)
    assert labels == (1,)
    assert np.exp(score) == pytest.approx(0.64)


@pytest.mark.parametrize("labels", [(1,), (1, 1), (1, 2), (2, 1, 2), ()])
def test_alignment_is_the_most_probable_path(labels):
    log_probs = log_probs_of(6, 3, len(labels))
    paths = [(path, s) for path, s in all_paths(log_probs) if text_of(path) == labels]
    best = max(paths, key=lambda pair: pair[1])[0]
    runs, start = [], 0
    for c, run in itertools.groupby(best):
        frames = len(list(run))
        if c:
            highest = np.exp(log_probs[start : start + frames, c].max())
            runs.append((c, start, start + frames, pytest.approx(highest)))
        start += frames
    assert align(log_probs, labels) == runs


def test_labels_that_do_not_fit_cannot_be_aligned():
    with pytest.raises(ValueError, match="2 labels do not fit 2 frames"):
        align(log_probs_of(2, 3, 0), (1, 1))
