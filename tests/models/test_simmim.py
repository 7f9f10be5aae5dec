"""The pre-training model: sizes, pixel order, masking, initial decoder."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.configs import common
from simmim_jax.mim import losses, masking
from simmim_jax.models import build_encoder, build_simmim
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.vit import ViT

ENCODER = ViT(patch_size=(4, 4), embed_dim=32, depth=1, num_heads=4)
TINY = SimMIM(ENCODER)


@functools.partial(jax.jit, static_argnums=0)
def init(model, images, mask):
    return model.init(jax.random.key(0), images, mask)["params"]


def shapes(model, images, mask):
    return jax.eval_shape(model.init, jax.random.key(0), images, mask)["params"]


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, images, mask):
    return model.apply({"params": params}, images, mask)


@functools.partial(jax.jit, static_argnums=0)
def loss(model, params, images, mask):
    prediction = model.apply({"params": params}, images, mask)
    pixels = masking.upsample(mask, *images.shape[1:3])
    return losses.masked_l1(prediction, images, pixels)[0]


def size(params):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def tiny():
    """Model, parameters, normal noise as images, and masks in units of two patches."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 32, 32, 3)).astype(np.float32)
    mask = masking.random_mask(jax.random.key(0), 8, (8, 8), (2, 2), 0.6)
    # Far from the initial values, so that every parameter matters.
    params = jax.tree.map(
        lambda p: rng.normal(0, 0.2, p.shape).astype(np.float32),
        shapes(TINY, images, mask),
    )
    return TINY, params, images, mask


@pytest.fixture(scope="module")
def fresh(tiny):
    model, _, images, mask = tiny
    return init(model, images, mask)


# ---- Sizes ---------------------------------------------------------------------------


def test_vit_base_has_as_many_parameters_as_the_official_model():
    model = build_simmim(dtype="bfloat16", **common.pretrain().model)
    images, mask = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 14, 14), bool)
    params = shapes(model, images, mask)
    assert size(params) == 86_256_720
    assert size(params["encoder"]) == 85_666_128
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(("height", "width"), [(24, 40), (8, 16)])
def test_reconstructs_any_size_and_number_of_channels(height, width, channels):
    model = SimMIM(dataclasses.replace(ENCODER, patch_size=(4, 8)))
    images = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
    mask = jax.ShapeDtypeStruct((2, height // 4, width // 8), bool)
    out, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images, mask
    )
    assert out.shape == images.shape
    decoder = variables["params"]["decoder"]
    assert decoder["kernel"].shape == (32, 4 * 8 * channels)


def test_an_unknown_encoder_raises_with_the_known_ones():
    with pytest.raises(ValueError, match=r"config\.model\.name='resnet'.*'vit'"):
        build_encoder("resnet")


# ---- Pixels --------------------------------------------------------------------------


def with_decoder_bias(model, images, mask, bias):
    params = jax.tree.map(
        lambda p: np.zeros(p.shape, p.dtype), shapes(model, images, mask)
    )
    params["decoder"]["bias"] = np.asarray(bias, np.float32)
    return apply(model, params, images, mask)


def test_decoder_orders_pixels_as_pixel_shuffle():
    model = SimMIM(dataclasses.replace(ENCODER, patch_size=(2, 2), depth=0))
    images, mask = jnp.zeros((1, 4, 6, 3)), jnp.zeros((1, 2, 3), bool)
    out = with_decoder_bias(model, images, mask, np.arange(12))[0]
    for y in (0, 2):
        for x in (0, 2, 4):
            red, green, blue = np.moveaxis(out[y : y + 2, x : x + 2], -1, 0)
            np.testing.assert_array_equal(red, [[0, 1], [2, 3]])
            np.testing.assert_array_equal(green, [[4, 5], [6, 7]])
            np.testing.assert_array_equal(blue, [[8, 9], [10, 11]])


def test_decoder_orders_pixels_equally_in_patches_that_are_not_square():
    model = SimMIM(dataclasses.replace(ENCODER, patch_size=(2, 3), depth=0))
    images, mask = jnp.zeros((1, 4, 6, 5)), jnp.zeros((1, 2, 2), bool)
    out = with_decoder_bias(model, images, mask, np.arange(30))
    expected = np.arange(30).reshape(5, 2, 3).transpose(1, 2, 0)
    np.testing.assert_array_equal(out[0, :2, :3], expected)
    np.testing.assert_array_equal(out[0, 2:, 3:], expected)


def test_every_patch_is_predicted_from_its_own_feature(tiny):
    model, params, images, mask = tiny
    encode = jax.jit(lambda p: ENCODER.apply({"params": p}, images, mask).grid)
    grid = encode(params["encoder"])
    pixels = grid @ params["decoder"]["kernel"] + params["decoder"]["bias"]
    out = apply(model, params, images, mask)
    patch = pixels[3, 5, 2].reshape(3, 4, 4).transpose(1, 2, 0)
    np.testing.assert_allclose(out[3, 20:24, 8:12], patch, rtol=1e-4, atol=1e-5)


# ---- Masking -------------------------------------------------------------------------


def test_fully_masked_images_do_not_change_the_prediction(tiny):
    model, params, images, mask = tiny
    everything = jnp.ones_like(mask)
    np.testing.assert_array_equal(
        apply(model, params, images, everything),
        apply(model, params, images[::-1] + 1, everything),
    )


def test_hidden_pixels_do_not_change_the_prediction_but_visible_ones_do(tiny):
    model, params, images, mask = tiny
    hidden = masking.upsample(mask, 32, 32)[..., None]
    out = apply(model, params, images, mask)
    np.testing.assert_array_equal(apply(model, params, images + 5 * hidden, mask), out)
    changed = apply(model, params, images + 5 * ~hidden, mask)
    assert (changed != out).all((1, 2, 3)).all()


def test_every_parameter_gets_a_gradient(tiny, fresh):
    model, _, images, mask = tiny
    grad = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
    grads = grad(model, fresh, images, mask)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)


# ---- Dtypes and initial values -------------------------------------------------------


def test_bfloat16_loss_is_within_one_percent_of_float32(tiny):
    model, params, images, mask = tiny
    half = SimMIM(dataclasses.replace(ENCODER, dtype=jnp.bfloat16), jnp.bfloat16)
    assert apply(half, params, images, mask).dtype == jnp.float32
    exact = loss(model, params, images, mask)
    value = loss(half, params, images, mask)
    assert value != exact
    np.testing.assert_allclose(value, exact, rtol=0.01)


@pytest.mark.parametrize("width", [32, 192])
def test_initial_decoder_matches_torchs_default_convolution(width):
    model = SimMIM(dataclasses.replace(ENCODER, embed_dim=width, depth=0))
    decoder = init(model, jnp.zeros((1, 8, 8, 9)), jnp.zeros((1, 2, 2), bool))[
        "decoder"
    ]
    bound = 1 / math.sqrt(width)  # 0.036084 for ViT-B
    kernel, bias = decoder["kernel"], decoder["bias"]
    assert 0.995 * bound < jnp.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.03)
    assert 0.9 * bound < jnp.abs(bias).max() <= bound
    np.testing.assert_allclose(bias.std(), bound / math.sqrt(3), rtol=0.2)


def test_fresh_model_has_the_expected_loss_on_noise(tiny, fresh):
    model, _, images, mask = tiny
    # Targets N(0, 1), predictions N(0, 1/3): E|difference| = sqrt(4/3 * 2/pi). It
    # would be 0.80 for a decoder of zeros and 1.13 for Flax's default weights.
    value = loss(model, fresh, images, mask)
    np.testing.assert_allclose(value, 0.921, atol=0.06)


# ---- Other decoders and targets ------------------------------------------------------


def test_the_mlp_decoder_has_a_hidden_layer_of_the_encoders_width(tiny):
    _, _, images, mask = tiny
    linear = shapes(TINY, images, mask)
    mlp = shapes(dataclasses.replace(TINY, decoder_kind="mlp"), images, mask)
    hidden = mlp.pop("decoder_hidden")
    assert {name: p.shape for name, p in hidden.items()} == {
        "kernel": (32, 32),
        "bias": (32,),
    }
    assert jax.tree.map(jnp.shape, mlp) == jax.tree.map(jnp.shape, linear)


def test_the_mlp_decoder_has_a_gelu_between_its_layers(tiny):
    _, params, images, mask = tiny
    rng = np.random.default_rng(1)
    hidden = {
        "kernel": rng.normal(0, 0.2, (32, 32)).astype(np.float32),
        "bias": rng.normal(0, 0.2, 32).astype(np.float32),
    }
    model = dataclasses.replace(TINY, decoder_kind="mlp")
    out = apply(model, params | {"decoder_hidden": hidden}, images, mask)
    grid = ENCODER.apply({"params": params["encoder"]}, images, mask).grid
    x = jax.nn.gelu(grid @ hidden["kernel"] + hidden["bias"], approximate=False)
    pixels = x @ params["decoder"]["kernel"] + params["decoder"]["bias"]
    patch = pixels[3, 5, 2].reshape(3, 4, 4).transpose(1, 2, 0)
    np.testing.assert_allclose(out[3, 20:24, 8:12], patch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("downsample", "features"), [(1, 48), (2, 12), (4, 3), (8, 3), (16, 3)]
)
def test_smaller_predictions_need_fewer_features_per_token(tiny, downsample, features):
    _, _, images, mask = tiny
    model = dataclasses.replace(TINY, downsample=downsample)
    out, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images, mask
    )
    assert out.shape == (8, 32 // downsample, 32 // downsample, 3)
    assert variables["params"]["decoder"]["kernel"].shape == (32, features)


def test_pixels_larger_than_tokens_average_their_predictions(tiny):
    _, _, images, mask = tiny
    tokens = dataclasses.replace(TINY, downsample=4)
    params = init(tokens, images, mask)
    fine = apply(tokens, params, images, mask)
    coarse = apply(dataclasses.replace(TINY, downsample=16), params, images, mask)
    expected = np.asarray(fine).reshape(8, 2, 4, 2, 4, 3).mean((2, 4))
    np.testing.assert_allclose(coarse, expected, rtol=1e-4, atol=1e-5)


def test_bins_are_logits_per_value_in_pixel_order():
    encoder = dataclasses.replace(ENCODER, patch_size=(2, 3), depth=0)
    model = SimMIM(encoder, bins=8)
    images, mask = jnp.zeros((1, 4, 6, 5)), jnp.zeros((1, 2, 2), bool)
    out = with_decoder_bias(model, images, mask, np.arange(30 * 8))
    assert out.shape == (1, 4, 6, 5, 8)
    pixels = with_decoder_bias(SimMIM(encoder), images, mask, np.arange(30))
    np.testing.assert_array_equal(out, pixels[..., None] * 8 + np.arange(8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_kind": "swin"}, r"config\.decoder\.kind='swin': expected 'linear'"),
        ({"downsample": 16}, "downsample=16 does not divide images of 24x24"),
        ({"downsample": 6}, "downsample=6 must divide the encoder's stride, 4x4"),
    ],
)
def test_invalid_decoders_raise(fields, message):
    images, mask = jnp.zeros((1, 24, 24, 3)), jnp.zeros((1, 6, 6), bool)
    with pytest.raises(ValueError, match=message):
        shapes(dataclasses.replace(TINY, **fields), images, mask)
