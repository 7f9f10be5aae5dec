"""The fine-tuning model: sizes, pooling, head, layer ids."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.configs import common
from simmim_jax.models import build_classifier
from simmim_jax.models.classifier import Classifier
from simmim_jax.models.vit import ViT

ENCODER = ViT(
    patch_size=(4, 4),
    embed_dim=32,
    depth=1,
    num_heads=4,
    use_rel_pos_bias=True,
    use_shared_rel_pos_bias=False,
    final_norm=False,
    init_cut=0.0,
)
TINY = Classifier(ENCODER, num_classes=10)
# Without blocks the features are the embedded patches.
EMBED = dataclasses.replace(ENCODER, depth=0)


@functools.partial(jax.jit, static_argnums=0)
def init(model, images):
    return model.init(jax.random.key(0), images)["params"]


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, images, key=None):
    """Apply the model, in training mode if there is a key."""
    rngs = None if key is None else {"drop_path": key}
    return model.apply({"params": params}, images, key is not None, rngs=rngs)


def shapes(model, images):
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def random_params(model, images):
    """Parameters far from their initial values, so that each of them matters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), shapes(model, images)
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)


def test_vit_base_has_as_many_parameters_as_the_official_model():
    fields = common.finetune().model
    model = build_classifier(num_classes=1000, dtype="bfloat16", **fields)
    params = shapes(model, jnp.zeros((1, 224, 224, 3)))
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == 86_530_984
    table = params["encoder"]["blocks_11"]["attn"]["relative_position_bias_table"]
    assert table.shape == (732, 12)


def test_has_fc_norm_instead_of_mask_token_and_final_norm(images):
    params = shapes(TINY, images)
    assert set(params) == {"encoder", "fc_norm", "head"}
    assert set(params["encoder"]) == {
        "patch_embed",
        "cls_token",
        "blocks_0",
    }


def features(params, images):
    patches = images.reshape(4, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    embed = params["encoder"]["patch_embed"]
    return patches.reshape(4, 16, 48) @ embed["kernel"].reshape(48, 32) + embed["bias"]


def test_mean_pooling_averages_patches_without_the_class_token(images):
    model = Classifier(EMBED, 10, pool="mean", pool_norm=True)
    params = random_params(model, images)
    pooled = features(params, images).mean(1)
    centred = pooled - pooled.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    normed = normed * params["fc_norm"]["scale"] + params["fc_norm"]["bias"]
    expected = normed @ params["head"]["kernel"] + params["head"]["bias"]
    logits = apply(model, params, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_pooling_without_norm_classifies_raw_features(images):
    model = Classifier(EMBED, 10, pool="mean", pool_norm=False)
    params = random_params(model, images)
    assert "fc_norm" not in params
    pooled = features(params, images).mean(1)
    expected = pooled @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(
        apply(model, params, images), expected, rtol=1e-4, atol=1e-4
    )


def test_class_token_pooling_uses_only_the_class_token(images):
    model = Classifier(EMBED, 10, pool="cls", pool_norm=False)
    params = random_params(model, images)
    token = params["encoder"]["cls_token"][0, 0]
    expected = token @ params["head"]["kernel"] + params["head"]["bias"]
    logits = apply(model, params, images)
    np.testing.assert_allclose(logits, [expected] * 4, rtol=1e-4, atol=1e-5)


def test_initial_head_is_nearly_zero(images):
    model = Classifier(EMBED, 1000)
    params = init(model, images)
    kernel = params["head"]["kernel"]
    assert (params["head"]["bias"] == 0).all()
    np.testing.assert_allclose(kernel.std(), 0.02 * 0.001, rtol=0.03)
    assert jnp.abs(kernel).max() > 0.06 * 0.001  # not truncated at one sigma
    assert (params["fc_norm"]["scale"] == 1).all()
    assert jnp.abs(apply(model, params, images)).max() < 1e-3


def test_logits_of_a_bfloat16_model_are_float32_and_close(images):
    half = Classifier(dataclasses.replace(ENCODER, dtype=jnp.bfloat16), 10)
    params = random_params(TINY, images)
    logits, exact = apply(half, params, images), apply(TINY, params, images)
    assert logits.dtype == jnp.float32
    error = np.abs(logits - exact).max()
    assert 0 < error < 0.05 * np.abs(exact).max()


def test_evaluation_is_deterministic_and_training_drops_paths(images):
    deep = dataclasses.replace(ENCODER, depth=2)  # the first block never drops
    dropping = Classifier(dataclasses.replace(deep, drop_path_rate=0.5), 10)
    params = random_params(dropping, images)
    out = apply(dropping, params, images)
    np.testing.assert_array_equal(out, apply(Classifier(deep, 10), params, images))
    keys = [jax.random.key(seed) for seed in range(2)]
    first, second = (apply(dropping, params, images, key) for key in keys)
    assert (first != second).any()


def test_every_parameter_gets_a_gradient(images):
    def loss(params):
        return (apply(TINY, params, images) ** 2).sum()

    grads = jax.jit(jax.grad(loss))(random_params(TINY, images))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_layer_ids_count_from_the_embeddings_to_the_head():
    model = Classifier(ViT(), num_classes=10)
    assert model.layer_id(("encoder", "cls_token")) == 0
    assert model.layer_id(("encoder", "patch_embed", "kernel")) == 0
    for i in range(12):
        path = ("encoder", f"blocks_{i}", "attn", "relative_position_bias_table")
        assert model.layer_id(path) == i + 1
    for path in (("head", "kernel"), ("fc_norm", "scale"), ("encoder", "norm", "bias")):
        assert model.layer_id(path) == 13
