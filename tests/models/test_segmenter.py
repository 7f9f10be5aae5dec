"""UperNet: stages of encoders, pooling, sizes and layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config

from simmim_jax.models import build_segmenter
from simmim_jax.models.segmenter import pool, resized
from simmim_jax.models.swin import Swin
from simmim_jax.models.vit import ViT, quarters

VIT = ViT((8, 8), embed_dim=16, depth=6, num_heads=2, final_norm=False)
SWIN = Swin((4, 4), embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))
FIELDS = {"num_classes": 5, "head_dim": 8, "dropout": 0.5, "dtype": "float32"}


def images_like(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def initialised(model, size):
    images = np.zeros((1, *size, 3), np.float32)
    return {"params": tiny_config.random_params(model, images)}


def test_a_swin_returns_every_stage_at_strides_of_4_8_16_and_32():
    images = images_like(1, 64, 96, 3)
    variables = initialised(SWIN, (64, 96))
    encoded = jax.jit(functools.partial(SWIN.apply, stages=True))(variables, images)
    shapes = [stage.shape for stage in encoded.stages]
    assert shapes == [
        (1, 16, 24, 8),
        (1, 8, 12, 16),
        (1, 4, 6, 32),
        (1, 2, 3, 64),
    ]
    np.testing.assert_array_equal(encoded.stages[-1], encoded.grid)
    assert jax.eval_shape(SWIN.apply, variables, images).stages == ()


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_vit_returns_the_output_of_each_quarter_of_its_blocks(scan):
    images = images_like(1, 24, 32, 3)
    variables = initialised(VIT, (24, 32))
    model = VIT.clone(scan_layers=scan, remat="full" if scan else "none")
    stages = jax.jit(functools.partial(model.apply, stages=True))(
        variables, images
    ).stages
    assert len(stages) == 4
    for stage, depth in ((stages[0], 2), (stages[2], 5)):
        grid = jax.jit(VIT.clone(depth=depth).apply)(variables, images).grid
        np.testing.assert_allclose(stage, grid, rtol=1e-5, atol=1e-6)


def test_quarters_of_blocks():
    ends = {depth: [part.stop for part in quarters(depth)] for depth in (12, 24, 2)}
    assert ends == {12: [3, 6, 9, 12], 24: [6, 12, 18, 24], 2: [1, 1, 2, 2]}


@pytest.mark.parametrize(
    ("encoder", "size", "strides"),
    [
        (
            {"name": "vit", "patch_size": (8, 8), "embed_dim": 16, "depth": 2}
            | {"num_heads": 2},
            (24, 40),
            (2, 8),
        ),
        (
            {
                "name": "swin",
                "embed_dim": 8,
                "depths": (1, 1, 1),
                "num_heads": (1,) * 3,
            },
            (32, 48),
            (4, 8),
        ),
    ],
    ids=["vit", "swin"],
)
def test_logits_of_both_heads(encoder, size, strides):
    model = build_segmenter(**encoder, **FIELDS)
    images = jnp.zeros((2, *size, 3))
    both, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    for logits, stride in zip(both, strides, strict=True):
        assert logits.shape == (2, size[0] // stride, size[1] // stride, 5)
        assert logits.dtype == jnp.float32
    # Heads share the rate of the encoder's last layer.
    heads = variables["params"].keys() - {"encoder"}
    top = model.encoder.layer_id(("norm",))
    assert {model.layer_id((name, "kernel")) for name in heads} == {top}
    assert model.layer_id(("encoder", "patch_embed", "kernel")) == 0


@pytest.mark.slow
def test_training_drops_channels():
    fields = FIELDS | {"head_dim": 4}
    encoder = {"name": "vit", "patch_size": (8, 8), "embed_dim": 8, "num_heads": 1}
    model = build_segmenter(**encoder, depth=1, **fields)
    variables = initialised(model, (16, 16))
    both = [
        jax.jit(functools.partial(model.apply, train=train))(
            variables,
            images_like(1, 16, 16, 3),
            rngs={"dropout": jax.random.key(1), "drop_path": jax.random.key(2)},
        )
        for train in (True, False)
    ]
    for dropped, whole in zip(*both, strict=True):
        assert np.abs(dropped - whole).max() > 1e-4


def test_pooling_averages_cells_that_may_overlap():
    # torch 2.13.0: F.adaptive_avg_pool2d(torch.arange(35.).view(1, 1, 5, 7), 3)
    x = jnp.arange(35.0).reshape(1, 5, 7, 1)
    expected = [[4.5, 6.5, 8.5], [15.0, 17.0, 19.0], [25.5, 27.5, 29.5]]
    np.testing.assert_allclose(pool(x, 3)[0, :, :, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(pool(x, 1).ravel(), 17.0)
    assert pool(x[:, :1, :2], 6).shape == (1, 6, 6, 1)


def test_resizing_is_between_centres_of_pixels():
    # torch 2.13.0: F.interpolate(x, (2, 4), mode="bilinear", align_corners=False)
    x = jnp.array([[0.0, 4.0]]).reshape(1, 1, 2, 1)
    expected = [[0.0, 1.0, 3.0, 4.0]] * 2
    np.testing.assert_allclose(resized(x, (2, 4))[0, :, :, 0], expected)
