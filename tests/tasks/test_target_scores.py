"""Scores of several classes and of numbers, beside scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics

from simmim_jax.tasks import target_scores
from simmim_jax.tasks.target_scores import number_scores, several_scores


def test_scores_of_several_classes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 4)) < [0.5, 0.2, 0.05, 0.9]).astype(np.float32)
    # Rounded, so that many are equal.
    shares = np.round(np.clip(targets * 0.3 + rng.random((300, 4)) * 0.8, 0, 1), 1)
    scores = several_scores(shares, targets, "abcd")
    said = shares >= 0.5
    # scikit-learn 1.7.
    expected = sklearn.metrics.precision_recall_fscore_support(targets, said)
    np.testing.assert_allclose(
        [(s.precision, s.recall, s.f1, s.images) for s in scores], np.array(expected).T
    )
    for score, column, target in zip(scores, shares.T, targets.T, strict=True):
        ours = score.average_precision
        assert ours == pytest.approx(
            sklearn.metrics.average_precision_score(target, column)
        )
    assert target_scores.mean_average_precision(scores) == pytest.approx(
        sklearn.metrics.average_precision_score(targets, shares, average="macro")
    )
    assert target_scores.mean_f1(scores) == pytest.approx(
        sklearn.metrics.f1_score(targets, said, average="macro")
    )
    exact = target_scores.exact_matches(shares, targets)
    assert exact.mean() == sklearn.metrics.accuracy_score(targets, said)


def test_what_is_not_known_does_not_count():
    nan = np.nan
    targets = np.array([[1, 0], [nan, 0], [0, nan], [1, 0]])
    shares = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.1]])
    first, second = several_scores(shares, targets, "ab")
    # Ranked 0.9 (right), 0.2 (right), 0.1: precision is 1 at both.
    assert (first.images, first.predicted, first.average_precision) == (2, 1, 1.0)
    assert (second.images, second.predicted) == (0, 0)
    assert (second.average_precision, second.recall, second.f1) == (None,) * 3
    exact = target_scores.exact_matches(shares, targets)
    assert exact.tolist() == [True, True, True, False]
    assert target_scores.mean_average_precision([second]) == 0


def test_scores_of_numbers_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    true = rng.normal(5, 2, (400, 2))
    predicted = true + rng.normal(0, [0.5, 4], (400, 2))
    true[:100, 1] = np.nan
    for score, ours, given in zip(
        number_scores(predicted, true, "ab"), predicted.T, true.T, strict=True
    ):
        known = ~np.isnan(given)
        assert score.images == known.sum()
        pair = given[known], ours[known]
        assert score.mae == pytest.approx(sklearn.metrics.mean_absolute_error(*pair))
        assert score.r2 == pytest.approx(sklearn.metrics.r2_score(*pair))
        # The interval of a mean, by its standard error.
        errors = np.abs(pair[0] - pair[1])
        half = 1.96 * errors.std() / len(errors) ** 0.5
        assert score.mae_low == pytest.approx(score.mae - half, rel=0.03)
        assert score.mae_high == pytest.approx(score.mae + half, rel=0.03)
        assert score.r2_low < score.r2 < score.r2_high
        metrics = target_scores.mean_errors(predicted, true, "ab")
        assert metrics[f"mae/{score.name}"] == score.mae
        assert metrics[f"r2/{score.name}"] == score.r2


def test_equal_numbers_have_no_r2():
    true = np.array([[2.0, np.nan]] * 3)
    (score,) = number_scores(np.array([[1.0, 0]] * 3), true, "ab")
    assert (score.mae, score.mae_low, score.r2, score.r2_low) == (1, 1, None, None)
    assert target_scores.mean_errors(true, true, "ab") == {"mae/a": 0}
