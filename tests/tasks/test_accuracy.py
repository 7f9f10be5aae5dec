"""Accuracies as estimates, beside published intervals and simulations."""

import json

import numpy as np
import pytest

from simmim_jax.tasks.accuracy import Accuracy, gain, last_and_best


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_intervals_of_an_accuracy(hits, images, low, high):
    assert Accuracy(1, hits / images, images).interval == pytest.approx(
        (low, high), abs=5e-5
    )


@pytest.mark.parametrize(
    ("after", "before", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10.
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_intervals_of_a_gain(after, before, low, high):
    pair = [Accuracy(1, hits / images, images) for hits, images in (before, after)]
    assert gain(*pair) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_holds_the_true_gain_on_the_same_images():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        easy = rng.random(200)  # both classifiers fail on the same images
        noisy = np.clip(easy + rng.normal(0, 0.1, 200), 0, 1)
        top1s = [(x < share).mean() for x, share in ((easy, 0.6), (noisy, 0.6))]
        low, high = gain(*(Accuracy(1, float(top1), 200) for top1 in top1s))
        held += low <= 0 <= high
    assert held > 0.95 * 400


def test_last_and_best_steps_of_a_run(tmp_path):
    lines = [
        {"step": 10, "loss": 1.0},
        {"step": 10, "top1": 0.5, "eval_bad_images/truncated": 2.0},
        {"step": 20, "top1": 0.75},
        {"step": 30, "top1": 0.75},
        {"step": 40, "top1": 0.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    last, best = last_and_best(tmp_path, held_out=8)
    assert (last, best) == (Accuracy(40, 0.25, 8), Accuracy(30, 0.75, 8))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines[:2])))
    assert last_and_best(tmp_path, held_out=8) == (Accuracy(10, 0.5, 6),) * 2
