"""CTC against other implementations, and against float64 at lengths that break them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simmim_jax.tasks.ctc import ctc_loss, frames_needed


def loss_and_gradient(logits, labels, padding=(0, 0)):
    """Loss and gradient of one utterance, padded by frames and labels."""
    frames, places = padding
    padded = np.pad(np.float32(logits), [(0, frames), (0, 0)], constant_values=3)
    targets = np.pad(np.array(labels, np.int32), (0, places), constant_values=1)

    def loss(logits):
        counts = jnp.array([len(logits) - frames]), jnp.array([len(labels)])
        return ctc_loss(logits[None], counts[0], targets[None], counts[1])[0]

    return jax.value_and_grad(loss)(jnp.asarray(padded))


# Logits 2 sin(0.7 i) of 12 frames and 5 classes; loss and the gradients of frames 0 and
# 7 of torch.nn.functional.ctc_loss in float64 (torch 2.13.0).
TORCH = {
    (1, 2, 2, 3): (
        14.205790556645443,
        (-0.235276, -0.525954, 0.370358, 0.290031, 0.100841),
        (-0.074807, 0.063545, -0.488701, 0.209338, 0.290625),
    ),
    (4,): (
        19.89115329336627,
        (-0.79877, 0.187168, 0.370358, 0.290031, -0.048787),
        (-0.518998, 0.063548, 0.222674, 0.406128, -0.173352),
    ),
    (1, 1, 1, 1, 1): (
        16.960869574134716,
        (-0.037598, -0.723632, 0.370358, 0.290031, 0.100841),
        (-0.097198, -0.82223, 0.222674, 0.406128, 0.290625),
    ),
    (3, 1, 4, 1, 4, 2): (
        10.505276633101074,
        (-0.033308, 0.187168, 0.370358, -0.625058, 0.100841),
        (-0.113254, -0.124374, 0.051598, 0.406128, -0.220098),
    ),
}


@pytest.mark.parametrize("padding", [(0, 0), (5, 3)])
@pytest.mark.parametrize("labels", TORCH)
def test_loss_and_gradient_are_those_of_torch(labels, padding):
    logits = 2 * np.sin(0.7 * np.arange(60).reshape(12, 5))
    loss, gradient = loss_and_gradient(logits, labels, padding)
    expected, first, eighth = TORCH[labels]
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient[0], first, atol=1e-6)
    np.testing.assert_allclose(gradient[7], eighth, atol=1e-6)
    assert not gradient[12:].any()


@pytest.mark.parametrize(
    ("frames", "classes", "labels", "expected"),
    [
        # optax 0.2.8 returns the same.
        (3, 3, (1, 1), 3.2958369),
        (3, 3, (1, 2), 1.6863990),
        (5, 4, (1, 2, 2), 4.9855615),
        # One path: a blank in each frame.
        (5, 4, (), 5 * np.log(4)),
    ],
)
def test_zero_logits(frames, classes, labels, expected):
    loss, _ = loss_and_gradient(np.zeros((frames, classes)), labels, (0, 1))
    assert loss == pytest.approx(expected, rel=1e-6)


def test_a_batch_is_its_utterances():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 30, 6)).astype(np.float32)
    labels = rng.integers(1, 6, (3, 8))
    frames, counts = jnp.array([30, 21, 9]), jnp.array([8, 3, 0])
    losses = ctc_loss(logits, frames, labels, counts)
    paddings = [jnp.arange(n) >= c[:, None] for n, c in ((30, frames), (8, counts))]
    expected = optax.ctc_loss(logits, paddings[0] * 1.0, labels, paddings[1] * 1.0)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_text_that_does_not_fit_is_infinite_and_teaches_nothing():
    # optax 0.2.8: 100,000.008, and a gradient of 0.335.
    assert frames_needed(np.array([1, 1])) == 3
    loss, gradient = loss_and_gradient(np.zeros((2, 2)), (1, 1))
    assert loss == np.inf
    assert not gradient.any()


@pytest.mark.parametrize("label", [-1, 0, 3])
def test_a_label_that_is_no_class_is_not_a_number(label):
    # It costs nothing in optax 0.2.8.
    loss, _ = loss_and_gradient(np.zeros((5, 3)), (1, label))
    assert np.isnan(loss)


def in_float64(logits, labels):
    """Loss and gradient by the textbook's forward and backward sums, in NumPy."""
    logits = np.float64(logits)
    log_probs = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
    classes = np.zeros(2 * len(labels) + 1, int)
    classes[1::2] = labels
    emitted = log_probs[:, classes]
    skips = np.zeros(len(classes), bool)
    skips[3::2] = classes[3::2] != classes[1:-2:2]

    def sums(emitted, skips):
        """Log-probability of the paths to each state, with its own frame."""
        total = np.full(emitted.shape, -np.inf)
        total[0, :2] = emitted[0, :2]
        for t in range(1, len(emitted)):
            moved = total[t - 1].copy()
            moved[1:] = np.logaddexp(moved[1:], total[t - 1, :-1])
            skipped = np.where(skips[2:], total[t - 1, :-2], -np.inf)
            moved[2:] = np.logaddexp(moved[2:], skipped)
            total[t] = moved + emitted[t]
        return total

    forward = sums(emitted, skips)
    # Time and states reversed; a skip is one in the other direction.
    back_skips = np.zeros_like(skips)
    back_skips[2:] = skips[::-1][:-2]
    backward = sums(emitted[::-1, ::-1], back_skips)[::-1, ::-1]
    likelihood = np.logaddexp(forward[-1, -1], forward[-1, -2])
    states = np.exp(forward + backward - emitted - likelihood)
    posterior = np.zeros_like(logits)
    np.add.at(posterior.T, classes, states.T)
    return -likelihood, np.exp(log_probs) - posterior


@pytest.mark.parametrize(
    ("frames", "labels", "scale"),
    [(9, 9, 0), (300, 100, 1), (300, 100, 30), (20_000, 40, 1)],
)
def test_the_gradient_is_right_at_any_length(frames, labels, scale):
    rng = np.random.default_rng(0)
    logits = scale * rng.normal(size=(frames, 30)).astype(np.float32)
    labels = 1 + np.cumsum(rng.integers(1, 28, labels)) % 29  # without repeats
    loss, gradient = loss_and_gradient(logits, labels)
    expected, expected_gradient = in_float64(logits, labels)
    assert loss == pytest.approx(expected, rel=1e-5)
    # optax 0.2.8: 0.09 to 3.4 at 20,000 frames.
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)
