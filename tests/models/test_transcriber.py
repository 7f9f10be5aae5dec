"""Padding changes nothing of an utterance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.models import build_transcriber

FRAMES = np.array([40, 22, 8])


@pytest.fixture(scope="module", params=[0, 5])
def model(request):
    return build_transcriber(
        name="vit",
        num_classes=5,
        dtype="float32",
        patch_size=(8, 2),
        embed_dim=16,
        depth=2,
        num_heads=2,
        use_sincos_pos_emb=True,
        conv_pos_width=request.param,
        use_shared_rel_pos_bias=False,
    )


@pytest.fixture(scope="module")
def params(model):
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 40, 1)), jnp.array([40]))
    # The head starts small: larger weights show what padding would change.
    return jax.tree.map(lambda p: 5 * p, variables["params"])


def spectrograms(length, fill):
    """Three utterances of different lengths, padded with `fill`."""
    values = np.random.default_rng(0).normal(size=(3, 8, 40, 1)).astype(np.float32)
    padded = np.full((3, 8, length, 1), fill, np.float32)
    for row, frames in enumerate(FRAMES):
        padded[row, :, :frames] = values[row, :, :frames]
    return padded


def test_a_batch_that_is_padded_further_has_the_same_numbers(model, params):
    def loss(params, images):
        logits = model.apply({"params": params}, images, FRAMES)
        valid = np.arange(logits.shape[1]) < model.num_tokens(FRAMES)[:, None]
        logits = jnp.where(valid[..., None], logits, 0)
        return jnp.square(logits).sum(), logits

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, short), gradient = both(params, spectrograms(40, 0.0))
    (_, long), gradient_long = both(params, spectrograms(64, 3.0))
    np.testing.assert_allclose(long[:, :20], short, atol=2e-5)
    assert not long[:, 20:].any()
    for a, b in zip(*map(jax.tree.leaves, (gradient_long, gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, abs(b).max()))


def test_an_utterance_alone_equals_itself_in_a_batch(model, params):
    images = spectrograms(40, 0.0)
    together = model.apply({"params": params}, images, FRAMES)
    alone = model.apply({"params": params}, images[2:, :, :8], FRAMES[2:])
    np.testing.assert_allclose(alone[0], together[2, :4], atol=2e-5)


def test_the_last_token_may_be_cut_short(model):
    assert model.num_tokens(np.array([1, 2, 3])).tolist() == [1, 1, 2]
