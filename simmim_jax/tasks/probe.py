"""What frozen features are worth: nearest neighbours, and a linear classifier."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simmim_jax.errors import UserError
from simmim_jax.tasks.accuracy import Accuracy

# DINO (Caron et al., 2021), section 3 and eval_knn.py.
NEIGHBOURS = 20
TEMPERATURE = 0.07
# MAE's linear probe.
_BATCH, _MIN_STEPS = 16_384, 1000
# Similarities that are computed at once.
_AT_ONCE = 2**26


class Nearest(NamedTuple):
    """The nearest vectors of some queries, most similar first.

    similarities: float32 [q, k], cosines; indices: int32 [q, k].
    """

    similarities: np.ndarray
    indices: np.ndarray


def nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> Nearest:
    """Return the k vectors of the bank that are most similar to each query: exact.

    queries: float [q, d]; bank: float [n, d]. Vectors of equal similarity are in the
    order of the bank.
    raises: UserError for k outside of 1..n.
    """
    if not 1 <= k <= len(bank):
        raise UserError(
            f"k={k}: expected 1 to {len(bank)}, the number of vectors to search."
        )
    on_device = _normalized(jnp.asarray(bank, jnp.float32))
    rows = max(1, min(len(queries), _AT_ONCE // len(bank)))
    parts = []
    for first in range(0, len(queries), rows):
        part = np.zeros((rows, queries.shape[1]), np.float32)  # compiled once
        some = queries[first : first + rows]
        part[: len(some)] = some
        found = jax.device_get(_nearest(part, on_device, k))
        parts.append([array[: len(some)] for array in found])
    if not parts:
        return Nearest(np.zeros((0, k), np.float32), np.zeros((0, k), np.int32))
    return Nearest(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def votes(found: Nearest, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Return float64 [q, classes]: the sum of exp(similarity / temperature) by class.

    labels: int [n], of the bank. Shares of the largest vote: they cannot overflow.
    """
    logits = found.similarities.astype(np.float64) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    sums = np.zeros((len(weights), int(labels.max()) + 1))
    rows = np.arange(len(weights))[:, None]
    np.add.at(sums, (rows, labels[found.indices]), weights)
    return sums


def knn_accuracy(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    expected: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    step: int = 0,
) -> Accuracy:
    """Return the accuracy of classifying queries by their nearest labelled vectors.

    bank, queries: float [n, d] and [q, d]; labels, expected: their classes; step: of
    the run. With fewer than k vectors, all vote. Vectors of the bank that are not
    finite have no vote, and such queries are classified wrongly.
    """
    finite = np.isfinite(bank).all(axis=1)
    bank, labels = bank[finite], labels[finite]
    if not len(bank):
        return Accuracy(step, 0.0, len(expected))
    found = nearest(queries, bank, min(k, len(bank)))
    predicted = votes(found, labels, temperature).argmax(axis=1)
    hits = (predicted == expected) & np.isfinite(queries).all(axis=1)
    return Accuracy(step, float(hits.mean()), len(expected))


def effective_rank(vectors: np.ndarray) -> float:
    """Return the effective rank of vectors [n, d]: how many directions they fill.

    exp of the entropy of the centred vectors' singular values (Roy and Vetterli, 2007):
    1 where all differ along one line or not at all, at most min(n, d). It falls where
    features collapse. Vectors that are not finite do not count; without others it is 0.
    """
    finite = np.asarray(vectors, np.float64)[np.isfinite(vectors).all(axis=1)]
    if not len(finite):
        return 0.0
    centred = finite - finite.mean(axis=0)
    # Eigenvalues, the squares of the singular values, cost a quarter of an SVD.
    is_wide = len(centred) < centred.shape[1]
    gram = centred @ centred.T if is_wide else centred.T @ centred
    squares = np.linalg.eigvalsh(gram)
    squares = squares[squares > len(gram) * np.finfo(float).eps * squares[-1]]
    if not len(squares):
        return 1.0
    spectrum = np.sqrt(squares)
    share = spectrum / spectrum.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def linear_accuracy(
    vectors: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    expected: np.ndarray,
    *,
    epochs: int = 90,
    seed: int = 0,
    step: int = 0,
) -> Accuracy:
    """Return the accuracy of a linear classifier of frozen vectors.

    The protocol is MAE's (He et al., 2022, table 10): batch norm without affine
    parameters, a linear layer drawn with a deviation of 0.01, LARS with batches of
    16,384 and the learning rate 0.1 x 16,384 / 256, momentum 0.9, no weight decay, a
    warm-up of a ninth of the steps, then a cosine.
    Fewer vectors make one batch, as if repeated, and at least 1,000 steps. MAE also
    crops at random, which vectors of whole images cannot.
    """
    batch = min(len(vectors), _BATCH)
    steps = max(epochs * (len(vectors) // batch), _MIN_STEPS)
    classes = int(max(labels.max(), expected.max())) + 1
    dim = vectors.shape[1]
    kernel = 0.01 * jax.random.normal(jax.random.key(seed), (dim, classes))
    params = {"kernel": kernel, "bias": jnp.zeros(classes)}
    optimizer = _lars(steps)
    state = (params, (jnp.zeros(dim), jnp.ones(dim)), optimizer.init(params))
    update = jax.jit(functools.partial(_update, optimizer))
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = rng.choice(len(vectors), batch, replace=False)
        state = update(state, vectors[chosen], labels[chosen])
    params, statistics, _ = state
    logits = jax.jit(_logits)(params, statistics, queries)
    hits = np.asarray(logits).argmax(axis=1) == expected
    return Accuracy(step, float(hits.mean()), len(expected))


# ---- Devices -------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=2)
def _nearest(queries: jax.Array, bank: jax.Array, k: int) -> tuple[jax.Array, ...]:
    similarities = jnp.matmul(
        _normalized(queries), bank.T, precision=jax.lax.Precision.HIGHEST
    )
    return tuple(jax.lax.top_k(similarities, k))


def _normalized(vectors: jax.Array) -> jax.Array:
    norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / jnp.maximum(norms, 1e-12)


def _lars(steps: int) -> optax.GradientTransformation:
    """Return MAE's LARS, whose momentum does not contain the learning rate.

    optax.lars accumulates updates that the learning rate has scaled.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 0.1 * _BATCH / 256, steps // 9, steps
    )
    return optax.chain(
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), _is_kernel),
        optax.trace(decay=0.9),
        optax.scale_by_learning_rate(schedule),
    )


def _is_kernel(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _logits(params, statistics, vectors):
    """Return a linear layer of batch-normalised vectors [n, d]: float32 [n, classes].

    statistics: mean and variance to normalise by.
    """
    mean, variance = statistics
    normalized = (vectors - mean) / jnp.sqrt(variance + 1e-6)
    return normalized @ params["kernel"] + params["bias"]


def _update(optimizer, state, vectors, labels):
    """Take a step; state: parameters, running mean and variance, optimiser's state."""
    params, running, optimizer_state = state
    now = vectors.mean(axis=0), vectors.var(axis=0)

    def loss(params):
        logits = _logits(params, now, vectors)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, optimizer_state = optimizer.update(
        jax.grad(loss)(params), optimizer_state, params
    )
    # As in PyTorch, the running variance is that of a sample.
    unbiased = now[0], now[1] * len(vectors) / max(len(vectors) - 1, 1)
    running = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, running, unbiased)
    return optax.apply_updates(params, updates), running, optimizer_state
