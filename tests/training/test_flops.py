"""Floating-point operations, against counts by hand and by XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.runtime import sharding
from simmim_jax.tasks import learners, pretrain
from simmim_jax.tasks.pretrain_step import pretrain_loss
from simmim_jax.training import compilation, flops

A, B = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
PRODUCT = 2 * 3 * 4 * 5 * 6


def product(a, b):
    return jnp.tanh(a) @ b


def by_xla(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_a_multiply_add_is_two_operations():
    assert flops.count(product, A, B) == PRODUCT
    # The gradient of both factors takes two more products.
    both = jax.grad(lambda a, b: product(a, b).sum(), argnums=(0, 1))
    assert flops.count(both, A, B) == 3 * PRODUCT


def test_shapes_are_enough():
    shapes = (jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32),) * 2
    assert flops.count(jnp.matmul, *shapes) == 2 * 10**18


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_and_their_gradients_match_xla(groups):
    images, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 2, 4 // groups, 6))

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            window_strides=(2, 2),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def loss(images, kernel):
        return convolve(images, kernel).sum()

    by_hand = 2 * (2 * 4 * 4 * 6) * (2 * 2 * 4 // groups)
    assert flops.count(convolve, images, kernel) == by_hand
    assert by_xla(convolve, images, kernel) == by_hand
    of_kernel = jax.grad(loss, argnums=1)
    assert flops.count(of_kernel, images, kernel) == 2 * by_hand
    of_both = jax.grad(loss, argnums=(0, 1))
    assert flops.count(of_both, images, kernel) == 3 * by_hand


def test_loops_are_multiplied_by_their_trip_count():
    def looped(a, b):
        def body(carry, _):
            return carry + product(a, b).sum(), None

        return jax.lax.scan(body, 0.0, length=7)[0]

    assert flops.count(looped, A, B) == 7 * PRODUCT
    assert flops.count(jax.vmap(looped), A[None], B[None]) == 7 * PRODUCT


def test_the_costliest_branch_counts():
    def branch(choice, a, b):
        return jax.lax.switch(choice, [lambda: 0.0, lambda: product(a, b).sum()])

    assert flops.count(branch, 1, A, B) == PRODUCT


def test_rematerialisation_counts():
    loss = jax.checkpoint(lambda a, b: jnp.sin(product(product(a, b), b[:, :, :5])))
    b = jnp.ones((3, 5, 5))
    products = 2 * 3 * 4 * 5 * 5
    plain = jax.grad(lambda a: jnp.sin(product(product(a, b), b)).sum())
    assert flops.count(plain, A) == 4 * products
    assert flops.count(jax.grad(lambda a: loss(a, b).sum()), A) == 6 * products


def test_an_unknown_trip_count_is_an_error():
    def endless(a, b):
        return jax.lax.while_loop(
            lambda x: x.sum() < 1, lambda x: product(x, b), jnp.zeros_like(a)
        )

    with pytest.raises(ValueError, match="trip count of a while loop"):
        flops.count(endless, A[..., :5], jnp.ones((3, 5, 5)))
    assert flops.count(lambda x: jax.lax.while_loop(jnp.any, jnp.sin, x), A) == 0


def test_a_kernel_is_multiplied_by_its_grid():
    def kernel(a, b, out):
        out[...] = jnp.dot(a[...], b[...])

    def multiply(a, b):
        return pl.pallas_call(
            kernel,
            grid=(4, 2),
            in_specs=[
                pl.BlockSpec((8, 16), lambda i, j: (i, 0)),
                pl.BlockSpec((16, 8), lambda i, j: (0, j)),
            ],
            out_specs=pl.BlockSpec((8, 8), lambda i, j: (i, j)),
            out_shape=jax.ShapeDtypeStruct((32, 16), jnp.float32),
            interpret=True,
        )(a, b)

    a, b = jnp.ones((32, 16)), jnp.ones((16, 16))
    np.testing.assert_allclose(multiply(a, b), 16)
    assert flops.count(multiply, a, b) == 2 * 32 * 16 * 16


def forward_and_gradient(config):
    """Return both functions for one image, and their arguments as shapes."""
    config = schema.parse(config)
    model = pretrain.model_of(config)
    loss = pretrain_loss(model, pretrain.objective_of(config))
    (h, w), (p, q) = config.data.image_size, config.model.patch_size
    images = jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, h // p, w // q), bool)
    key = jax.random.key(0)
    params = jax.eval_shape(functools.partial(pretrain.init, config, model), key)

    def forward(params, images, mask):
        return model.apply({"params": params}, images, mask)

    def gradient(params, images, mask):
        batch = {"image": images, "mask": mask}
        return jax.grad(loss, has_aux=True)(params, batch, key)[0]

    return forward, gradient, (params, images, mask)


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("vit_base", {"depth": 2, "num_heads": 2, "patch_size": (8, 8)}),
        ("swin_base", {"depths": (1, 2), "num_heads": (2, 2), "window_size": 4}),
        pytest.param(
            "swin_v2_base",
            {"depths": (1, 2), "num_heads": (2, 2), "window_size": 4},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_models_match_xla(variant, fields):
    config = common.pretrain(variant, **fields, embed_dim=128)
    config.dtype = "float32"
    config.data.image_size = (32, 32)
    *functions, args = forward_and_gradient(config)
    for function in functions:
        # XLA also counts other operations, whose share is larger in narrow models.
        ratio = by_xla(function, *args) / flops.count(function, *args)
        assert 1 < ratio < 1.15, variant


def test_vit_base_matches_a_count_by_hand():
    config = common.pretrain("vit_base")
    config.dtype = "bfloat16"
    forward, gradient, args = forward_and_gradient(config)
    tokens, patches, width, depth = 197, 196, 768, 12
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    ends = 2 * patches * width * (16 * 16 * 3)  # patch embedding and prediction head
    by_hand = 2 * (depth * block + ends)
    assert by_hand == pytest.approx(35.36e9, rel=1e-3)
    assert flops.count(forward, *args) == by_hand
    # Backpropagation costs twice as much, without the gradient of the images.
    of_images = 2 * patches * width * (16 * 16 * 3)
    assert flops.count(gradient, *args) == 3 * by_hand - of_images


def small_run(**model):
    config = common.pretrain(
        **{"depth": 2, "num_heads": 2, "patch_size": (8, 8), "embed_dim": 128}, **model
    )
    config.dtype = "float32"
    config.data.image_size, config.data.batch_size = (32, 32), 32
    config.mask.unit_size = config.model.patch_size
    return learners.learner(schema.parse(config), num_examples=1000)


def test_a_training_step_matches_xla():
    learner = small_run()
    compiled = compilation.plan(learner, sharding.make_mesh()).lower().compile()
    by_xla = compiled.cost_analysis()["flops"] / learner.batch_size
    # XLA also counts norms, softmax, GELU, AdamW and the like.
    assert 1 < by_xla / compilation.flops_per_image(learner) < 1.2


def test_neither_remat_nor_scan_changes_the_flops_of_a_step():
    plain = compilation.flops_per_image(small_run())
    assert plain == compilation.flops_per_image(small_run(remat="full"))
    looped = small_run(remat="dots", scan_layers=True)
    assert plain == compilation.flops_per_image(looped)
