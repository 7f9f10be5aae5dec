"""Connectionist temporal classification (Graves et al. 2006): loss and gradient.

Class 0 is the blank. States of a text of n labels are blank, label 1, blank, …, label
n, blank: 2n + 1 of them, s below. In each frame a path emits the class of its state,
then it stays, moves to the next state, or from a label skips the blank to another one.

Sums of log-probabilities over many frames lose their digits in float32, and a gradient
made of them is wrong: `optax.ctc_loss` (0.2.8) returns 8.8 for one that is at most 1 at
20,000 frames. So only ratios of neighbouring states are kept, which stay small at any
length, and the posterior of the states is carried forward as a Markov chain, whose sum
stays 1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Logarithm of a ratio that is infinite, or of its inverse: more than texts and frames
# differ by, small enough that sums of two are finite.
_FAR = 1e6


def frames_needed(labels: np.ndarray) -> int:
    """Return the fewest frames that a text fits: equal neighbours need a blank."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


def ctc_loss(
    logits: jax.Array, num_frames: jax.Array, labels: jax.Array, num_labels: jax.Array
) -> jax.Array:
    """Return -log p(text | sound) of each utterance, float32[b].

    logits: float[b t k], class 0 is the blank; num_frames: int[b], those that count;
    labels: int[b n] in 1..k-1; num_labels: int[b], likewise. What is beyond them is
    padding. Infinite, without a gradient, where a text does not fit its frames (see
    `frames_needed`); NaN for a label that is not one of the classes.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    places = jnp.arange(labels.shape[1])
    is_label = places < num_labels[:, None]
    is_known = (labels > 0) & (labels < logits.shape[2])
    labels = jnp.where(is_label & is_known, labels, 0)
    is_repeat = (labels[:, 1:] == labels[:, :-1]) & is_label[:, 1:]
    fits = num_labels + is_repeat.sum(1) <= num_frames
    likelihood = _log_likelihood(log_probs, num_frames, labels, num_labels)
    loss = jnp.where(fits, -likelihood, jnp.inf)
    return jnp.where((is_known | ~is_label).all(1), loss, jnp.nan)


@jax.custom_vjp
def _log_likelihood(log_probs, num_frames, labels, num_labels):
    """Return log p(text | sound), float32[b]; finite where a text does not fit."""
    return _forward(log_probs, num_frames, labels, num_labels)[0]


def _forward(log_probs, num_frames, labels, num_labels):
    """Return the likelihood and what its gradient needs."""
    classes, may_skip = _states(labels, num_labels)
    last = 2 * num_labels[:, None]
    is_frame = jnp.arange(log_probs.shape[1])[:, None] < num_frames  # [t b]
    state = jnp.arange(classes.shape[1])
    emitted = jnp.take_along_axis(log_probs, classes[:, None], 2)
    emitted = jnp.moveaxis(emitted, 1, 0)  # [t b s]
    # After the last frame the rest of a path is empty, and it is in a last state.
    rest = jnp.where(state == last - 1, 0.0, -_FAR)

    def before(rest, frame):
        """From log p(rest of path | s) / p(rest | s + 1) to that a frame earlier."""
        emitted, is_frame = frame
        # With the probability of the frame itself.
        ratio = rest + emitted - _shifted(emitted, -1)
        ratio = jnp.where(state < last, ratio, _FAR)
        skip = jnp.where(may_skip, -_shifted(ratio, -1), -jnp.inf)
        # The same sum over the next states, in units of state s + 1 and of state s.
        by_next, by_own = (
            _log_sum(ratio, 0.0, skip),
            _log_sum(0.0, -ratio, skip - ratio),
        )
        earlier = by_next - _shifted(by_own, -1)
        return jnp.where(is_frame[:, None], earlier, rest), ratio

    _, ratios = jax.lax.scan(before, rest, (emitted, is_frame), reverse=True)
    blanks = jnp.where(is_frame.T, log_probs[:, :, 0], 0).sum(1)
    from_last = jnp.where((state > 0) & (state < last), ratios[0], 0).sum(1)
    begins = jnp.where(num_labels > 0, jax.nn.softplus(ratios[0, :, 0]), 0)
    likelihood = blanks + from_last + begins
    return likelihood, (ratios, is_frame, classes, may_skip, log_probs)


def _backward(residuals, gradient):
    """Return the gradient of log_probs: the posterior of each class in each frame."""
    ratios, is_frame, classes, may_skip, log_probs = residuals

    # In the loop below the gradient of 8 texts of 200 labels over 300 tokens would take
    # a CPU 89 ms in place of 17. Here it needs three more arrays as large as `ratios`.
    skip = jnp.where(may_skip, -_shifted(ratios, -1), -jnp.inf) - ratios
    total = _log_sum(0.0, -ratios, skip)
    moves = [jnp.exp(odds - total)[1:] for odds in (0.0, -ratios, skip)]

    def after(posterior, frame):
        """From the posterior of the states to that a frame later."""
        *moves, is_frame = frame
        later = sum(_shifted(posterior * move, step) for step, move in enumerate(moves))
        later = jnp.where(is_frame[:, None], later, posterior)
        return later, later

    # A path begins in one of the first two states.
    begin = jnp.zeros_like(ratios[0]).at[:, 0].set(jax.nn.sigmoid(ratios[0, :, 0]))
    begin += _shifted(jnp.zeros_like(begin).at[:, 0].set(1 - begin[:, 0]), 1)
    _, later = jax.lax.scan(after, begin, (*moves, is_frame[1:]))
    posterior = jnp.concatenate([begin[None], later]) * is_frame[:, :, None]
    of_class = jax.nn.one_hot(classes, log_probs.shape[2])
    summed = jnp.einsum("tbs,bsk->btk", posterior, of_class, precision="highest")
    return gradient[:, None, None] * summed, None, None, None


_log_likelihood.defvjp(_forward, _backward)


def _states(labels, num_labels):
    """Return the class of each state, and whether a path may skip the next one."""
    classes = jnp.stack([jnp.zeros_like(labels), labels], 2).reshape(len(labels), -1)
    classes = jnp.pad(classes, [(0, 0), (0, 1)])
    to = _shifted(classes, -2)
    inside = jnp.arange(classes.shape[1]) + 2 < 2 * num_labels[:, None]
    return classes, (classes > 0) & (classes != to) & inside


def _shifted(x, by):
    """Return x[... s] with entries moved up by `by` places, or down; zeros follow."""
    width, states = [(0, 0)] * (x.ndim - 1), x.shape[-1]
    if by < 0:
        return jnp.pad(x, [*width, (0, -by)])[..., -by:]
    return jnp.pad(x, [*width, (by, 0)])[..., :states]


def _log_sum(*terms):
    """Return log(Σ exp(term))."""
    largest = functools.reduce(jnp.maximum, terms)
    return largest + jnp.log(sum(jnp.exp(term - largest) for term in terms))
