"""What the encoders share: computing again instead of keeping."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.models.swin import Swin
from simmim_jax.models.swin_v2 import SwinV2
from simmim_jax.models.vit import ViT

STAGES = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
ENCODERS = {
    "vit": ViT((4, 4), embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.5),
    "swin": Swin((2, 2), **STAGES, drop_path_rate=0.5),
    "swin_v2": SwinV2((2, 2), **STAGES, drop_path_rate=0.5),
}
IMAGES = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)


def loss(params, encoder):
    rngs = {"drop_path": jax.random.key(0)}
    grid = encoder.apply({"params": params}, IMAGES, None, True, rngs=rngs).grid
    return jnp.square(grid).mean()


@functools.cache
def gradient(name, policy):
    """Its value, and the program that computes it."""
    encoder = dataclasses.replace(ENCODERS[name], remat=policy)
    leaves, tree = jax.tree.flatten(
        jax.eval_shape(encoder.init, jax.random.key(0), IMAGES)["params"]
    )
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(
        tree, [rng.normal(0, 0.3, x.shape).astype(np.float32) for x in leaves]
    )
    program = jax.make_jaxpr(jax.grad(functools.partial(loss, encoder=encoder)))
    return jax.jit(jax.grad(loss), static_argnums=1)(params, encoder), program(params)


def products(program):
    """Matrix products, those within other programs too."""
    return str(program).count("dot_general")


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("policy", ["full", "dots"])
def test_rematerialisation_changes_no_gradient(name, policy):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        gradient(name, policy)[0],
        gradient(name, "none")[0],
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_policies_differ_in_the_products_that_are_computed_again(name):
    none, dots, full = (
        products(gradient(name, policy)[1]) for policy in ("none", "dots", "full")
    )
    assert none < dots < full


def test_unknown_policies_are_named():
    encoder = dataclasses.replace(ENCODERS["swin"], remat="all")
    with pytest.raises(ValueError, match=r"remat='all': expected 'none' or one of"):
        jax.eval_shape(encoder.init, jax.random.key(0), IMAGES)
