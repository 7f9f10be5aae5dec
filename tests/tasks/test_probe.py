"""Nearest neighbours and linear classifiers of vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from simmim_jax.errors import UserError
from simmim_jax.tasks import probe
from simmim_jax.tasks.probe import effective_rank, nearest, votes

RNG = np.random.default_rng(0)


def clusters(count, classes=5, dim=16, spread=1.5):
    """Noisy vectors around a centre for each class."""
    centres = np.random.default_rng(1).normal(size=(classes, dim))
    labels = RNG.integers(classes, size=count)
    vectors = centres[labels] + spread * RNG.normal(size=(count, dim))
    return vectors.astype(np.float32), labels


def test_votes_of_three_neighbours():
    # Worked out by hand for DINO's temperature: 903,729 and 641,467.
    bank = np.array([[1, 0], [0.8, 0.6], [0, 1]])
    found = nearest(np.array([[0.96, 0.28]]), bank, 3)
    np.testing.assert_allclose(found.similarities, [[0.96, 0.936, 0.28]], atol=1e-6)
    assert found.indices.tolist() == [[0, 1, 2]]
    shares = votes(found, np.array([0, 1, 1]), 0.07)
    np.testing.assert_allclose(shares[0, 1] / shares[0, 0], 641467 / 903729, rtol=1e-5)
    uniform = votes(found, np.array([0, 1, 1]), 1e9)
    assert uniform.argmax() == 1


@pytest.mark.parametrize("rows", [2**26, 64])
def test_neighbours_equal_those_of_scikit_learn(monkeypatch, rows):
    monkeypatch.setattr(probe, "_AT_ONCE", rows * 30)
    bank, labels = clusters(300)
    queries, expected = clusters(70)
    theirs = KNeighborsClassifier(
        20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(bank, labels)
    distances, indices = theirs.kneighbors(queries)
    found = nearest(queries, bank, 20)
    np.testing.assert_allclose(found.similarities, 1 - distances, atol=1e-5)
    assert (found.indices == indices).mean() > 0.99  # but for ties
    ours = probe.knn_accuracy(bank, labels, queries, expected)
    assert ours.top1 == theirs.score(queries, expected)
    assert ours.images == 70
    assert ours.interval[0] < ours.top1 < ours.interval[1]


def test_a_small_bank_votes_as_a_whole():
    bank, labels = clusters(5)
    assert probe.knn_accuracy(bank, labels, bank, labels).images == 5
    with pytest.raises(UserError, match="k=6: expected 1 to 5"):
        nearest(bank, bank, 6)


def test_a_linear_classifier_is_as_good_as_scikit_learns():
    bank, labels = clusters(2000)
    queries, expected = clusters(2000)
    theirs = LogisticRegression(max_iter=1000).fit(bank, labels)
    ours = probe.linear_accuracy(bank, labels, queries, expected)
    chance = 1 / 5
    assert ours.top1 > 2 * chance
    assert ours.top1 == pytest.approx(theirs.score(queries, expected), abs=0.02)


def test_running_statistics_are_those_of_torch():
    # torch 2.13.0, BatchNorm1d(1, affine=False, eps=1e-6) after one batch [0, 2]: mean
    # 0.1, variance 1.1 (unbiased); flax's BatchNorm has 1.0.
    params = {"kernel": jnp.ones((1, 2)), "bias": jnp.zeros(2)}
    optimizer = probe._lars(10)
    state = (params, (jnp.zeros(1), jnp.ones(1)), optimizer.init(params))
    batch = jnp.array([[0.0], [2.0]]), jnp.array([0, 1])
    _, (mean, variance), _ = probe._update(optimizer, state, *batch)
    np.testing.assert_allclose([*mean, *variance], [0.1, 1.1], rtol=1e-6)
    # Evaluation normalises by them.
    logits = probe._logits(params, (mean, variance), batch[0])
    expected = (np.array([0, 2]) - 0.1) / np.sqrt(1.1 + 1e-6)
    np.testing.assert_allclose(logits, np.stack([expected] * 2, 1), rtol=1e-6)


def test_updates_are_those_of_maes_lars():
    # util/lars.py and util/lr_sched.py of MAE, in NumPy.
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    momentum = {name: np.zeros_like(p) for name, p in params.items()}
    steps, warmup, peak = 36, 4, 0.1 * 16_384 / 256
    ours = jax.tree.map(jnp.asarray, params)
    optimizer = probe._lars(steps)
    state = optimizer.init(ours)
    for step in range(8):
        gradients = {name: rng.normal(size=p.shape) for name, p in params.items()}
        rate = peak * step / warmup
        if step >= warmup:
            share = (step - warmup) / (steps - warmup)
            rate = peak * 0.5 * (1 + np.cos(np.pi * share))
        for name, gradient in gradients.items():
            if gradient.ndim > 1:
                norms = np.linalg.norm(params[name]), np.linalg.norm(gradient)
                gradient = gradient * 0.001 * norms[0] / norms[1]
            momentum[name] = 0.9 * momentum[name] + gradient
            params[name] = params[name] - rate * momentum[name]
        updates, state = optimizer.update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, expected in params.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-5, err_msg=name)


def test_effective_rank():
    full = RNG.normal(size=(5000, 8))
    assert effective_rank(full) == pytest.approx(8, abs=0.05)
    line = full[:, :1] * np.ones(8) + 5
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert effective_rank(np.ones((10, 8))) == 1
    # Two directions, one three times as long: singular values 3 : 1.
    two = np.zeros((400, 8))
    two[:200, 0], two[200:, 1] = np.tile([3, -3], 100), np.tile([1, -1], 100)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert effective_rank(two) == pytest.approx(np.exp(entropy))


def test_the_weighted_vote_decides():
    # As above, through the whole classification; uniform votes would say 1.
    bank, labels = np.array([[1, 0], [0.8, 0.6], [0, 1]]), np.array([0, 1, 1])
    query, expected = np.array([[0.96, 0.28]]), np.array([0])
    assert probe.knn_accuracy(bank, labels, query, expected, k=3).top1 == 1
    uniform = {"k": 3, "temperature": 1e9}
    assert probe.knn_accuracy(bank, labels, query, expected, **uniform).top1 == 0


def test_vectors_that_are_not_finite_have_no_vote_and_are_wrong():
    bank, labels = clusters(100)
    queries, expected = clusters(40)
    whole = probe.knn_accuracy(bank, labels, queries, expected)
    broken = np.concatenate([bank, np.full_like(bank, np.nan)])
    twice = np.concatenate([labels, labels])
    assert probe.knn_accuracy(broken, twice, queries, expected) == whole
    queries[::2] = np.inf
    half = probe.knn_accuracy(bank, labels, queries, expected)
    assert half.top1 <= 0.5
    assert probe.knn_accuracy(bank * np.nan, labels, queries, expected).top1 == 0
    assert effective_rank(np.concatenate([bank, bank * np.inf])) == effective_rank(bank)
    assert effective_rank(bank * np.nan) == effective_rank(bank[:0]) == 0
    assert effective_rank(np.zeros_like(bank)) == 1


@pytest.mark.parametrize("shape", [(300, 64), (20, 64)])
def test_effective_rank_is_that_of_the_singular_values(shape):
    vectors = RNG.normal(size=shape) * np.exp(-np.arange(64) / 5) + 3
    spectrum = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    share = spectrum[spectrum > 1e-9] / spectrum.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(vectors) == pytest.approx(expected, rel=1e-4)


def test_no_queries():
    bank, _ = clusters(5)
    found = nearest(bank[:0], bank, 2)
    assert found.similarities.shape == found.indices.shape == (0, 2)
