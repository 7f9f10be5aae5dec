"""Swin and Swin V2: sizes, windows, masking, initial weights, layer ids."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.swin import Swin
from simmim_jax.models.swin_v2 import SwinV2, log_spaced_offsets, unit

SWIN = Swin((2, 2), embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4)
SWIN_V2 = SwinV2((2, 2), embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4)
both = pytest.mark.parametrize("model", [SWIN, SWIN_V2], ids=["swin", "swin_v2"])


def images_like(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(model, *inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


@functools.lru_cache
def random_params(model, size=(32, 32)):
    """Parameters far from their initial values, so that each of them matters."""
    images = jnp.zeros((1, *size, 3))
    mask = jnp.zeros((1, size[0] // 2, size[1] // 2), bool)
    leaves, tree = jax.tree.flatten(shapes(model, images, mask))
    rng = np.random.default_rng(0)
    values = [rng.normal(0, 0.3, x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, values)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, images, mask=None, key=None):
    rngs = None if key is None else {"drop_path": key}
    return model.apply({"params": params}, images, mask, key is not None, rngs=rngs)


# ---- Sizes and masks -----------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("size", "channels", "grid"),
    [((32, 32), 3, (8, 8)), ((16, 48), 1, (4, 12)), ((36, 20), 5, (9, 5))],
)
def test_any_size_and_any_number_of_channels(model, size, channels, grid):
    images = jnp.zeros((2, *size, channels))
    mask = jnp.zeros((2, size[0] // 2, size[1] // 2), bool)
    simmim = SimMIM(model)
    variables = jax.eval_shape(simmim.init, jax.random.key(0), images, mask)
    out = jax.eval_shape(simmim.apply, variables, images, mask)
    assert out.shape == images.shape
    encoded = jax.eval_shape(
        model.apply, {"params": variables["params"]["encoder"]}, images
    )
    assert encoded.grid.shape == (2, *grid, 16)
    assert encoded.cls is None


def test_an_odd_grid_is_padded_and_its_pixels_are_cropped():
    # 7x9 patches become 4x5 cells of 4x4 pixels, 16x20 pixels in all.
    images, mask = images_like(1, 14, 18, 3), np.zeros((1, 7, 9), bool)
    model = SimMIM(SWIN)
    params = random_params(model, (14, 18))
    out = apply(model, params, images, mask)
    assert out.shape == images.shape
    grid = apply(SWIN, params["encoder"], images, mask).grid
    assert grid.shape[1:3] == (4, 5)
    np.testing.assert_allclose(
        out[0, -2:, -2:, 0],
        (
            grid[0, -1, -1] @ params["decoder"]["kernel"] + params["decoder"]["bias"]
        ).reshape(3, 4, 4)[0, :2, :2],
        rtol=1e-4,
        atol=1e-4,
    )


@both
def test_patches_that_do_not_divide_the_image_raise(model):
    with pytest.raises(ValueError, match="images of 33x32 pixels cannot be cut"):
        shapes(model, jnp.zeros((1, 33, 32, 3)))


@both
def test_a_mask_of_another_shape_raises(model):
    with pytest.raises(ValueError, match=r"mask has shape \(1, 8, 8\), expected"):
        shapes(model, jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 8, 8), bool))


@both
def test_masked_pixels_have_no_effect_and_visible_ones_do(model):
    params, images = random_params(model), images_like(1, 32, 32, 3)
    mask = np.zeros((1, 16, 16), bool)
    mask[:, 4:8] = True
    out = apply(model, params, images, mask).grid
    other = images.copy()
    other[:, 8:16] = 7
    np.testing.assert_array_equal(apply(model, params, other, mask).grid, out)
    other[:, 17] = 7
    assert not np.allclose(apply(model, params, other, mask).grid, out)


@both
def test_the_shift_connects_neighbouring_windows(model):
    """In the first stage, cells change in windows that touch the changed patch."""
    model = dataclasses.replace(model, depths=(2,), num_heads=(2,))
    params, images = random_params(model), images_like(1, 32, 32, 3)
    other = images.copy()
    other[0, 6, 6] += 1  # patch (3, 3): the corner of the first window of 4x4
    changed = np.any(
        np.abs(apply(model, params, other).grid - apply(model, params, images).grid)
        > 1e-6,
        axis=-1,
    )[0]
    # Unshifted windows spread the change to rows and columns 0 to 3, and windows
    # shifted by two from there to 0 to 5.
    expected = np.zeros((16, 16), bool)
    expected[:6, :6] = True
    np.testing.assert_array_equal(changed, expected)


@both
def test_the_order_of_padding_matters_only_where_there_is_padding(model):
    other = dataclasses.replace(model, pad_after_shift=True)
    for size, same in (((32, 32), True), ((36, 36), False)):
        params, images = random_params(model, size), images_like(1, *size, 3)
        outputs = (apply(each, params, images).grid for each in (model, other))
        assert np.array_equal(*outputs) == same


# ---- Training ------------------------------------------------------------------------


@both
def test_drop_path_drops_only_in_training(model):
    model = dataclasses.replace(model, drop_path_rate=0.5)
    params, images = random_params(model), images_like(2, 32, 32, 3)
    out = apply(model, params, images).grid
    dropped = [
        apply(model, params, images, None, jax.random.key(i)).grid for i in range(2)
    ]
    assert not np.allclose(dropped[0], dropped[1])
    assert not np.allclose(dropped[0], out)


@both
def test_bfloat16_activations_are_close_to_float32(model):
    params, images = random_params(model), images_like(1, 32, 32, 3)
    out = apply(dataclasses.replace(model, dtype=jnp.bfloat16), params, images).grid
    expected = apply(model, params, images).grid
    assert out.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out, np.float32) - expected).mean()
    assert error < 0.05 * np.abs(expected).mean()


# ---- Layer ids and initial weights ---------------------------------------------------


def test_layer_ids_of_swin_base_match_the_official_code():
    swin = Swin()
    assert swin.layer_id(("patch_embed", "norm", "scale")) == 0
    assert swin.layer_id(("mask_token",)) == 0
    assert swin.layer_id(("layers_0", "blocks_0", "norm1", "scale")) == 1
    assert swin.layer_id(("layers_0", "downsample", "norm", "scale")) == 2
    assert swin.layer_id(("layers_2", "blocks_17", "attn", "qkv_kernel")) == 22
    assert swin.layer_id(("layers_2", "downsample", "reduction", "kernel")) == 22
    assert swin.layer_id(("layers_3", "blocks_1", "attn", "qkv_kernel")) == 24
    assert swin.layer_id(("norm", "scale")) == 25
    assert swin.layer_id(("absolute_pos_embed",)) == 25


def test_initial_weights_match_the_official_code():
    model = Swin(depths=(2, 2), num_heads=(4, 8))
    images, mask = jnp.zeros((1, 48, 48, 3)), jnp.zeros((1, 12, 12), bool)
    params = jax.jit(model.init)(jax.random.key(0), images, mask)["params"]
    attn = params["layers_1"]["blocks_1"]["attn"]
    for kernel in (attn["qkv_kernel"], attn["proj"]["kernel"], params["mask_token"]):
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.2)
    np.testing.assert_allclose(
        attn["relative_position_bias_table"].std(), 0.02, rtol=0.1
    )
    assert not attn["qkv_bias"].any()
    # PyTorch's convolution: uniform within 1 / √48, the bias too.
    kernel, bias = params["patch_embed"]["kernel"], params["patch_embed"]["bias"]
    bound = 48**-0.5
    for values in (kernel, bias):
        assert np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / 3**0.5, rtol=0.15)


def test_swin_v2_branches_start_at_zero():
    images = images_like(1, 32, 32, 3)
    params = jax.jit(SWIN_V2.init)(jax.random.key(0), images)["params"]
    block = params["layers_0"]["blocks_0"]
    for norm in ("norm1", "norm2"):
        assert not block[norm]["scale"].any()
        assert not block[norm]["bias"].any()
    np.testing.assert_allclose(block["attn"]["logit_scale"], math.log(10))
    assert block["attn"]["cpb_mlp_0"]["kernel"].shape == (2, 512)
    assert block["attn"]["cpb_mlp_2"]["kernel"].shape == (512, 2)


# ---- Swin V2's attention -------------------------------------------------------------


def test_offsets_are_spaced_logarithmically_up_to_the_edge_of_the_window():
    offsets = log_spaced_offsets(3)
    np.testing.assert_allclose(offsets[0], [-math.log2(9) / 3] * 2, rtol=1e-6)
    np.testing.assert_allclose(offsets[12], [0, 0])
    np.testing.assert_allclose(offsets[13], [0, math.log2(5) / 3], rtol=1e-6)
    # Pre-trained with a smaller window: the same offsets extend beyond its edge.
    wide = log_spaced_offsets(7, pretrained_window=3)
    np.testing.assert_allclose(wide[6 * 13 + 6 + 1], offsets[13], rtol=1e-6)
    assert np.isfinite(log_spaced_offsets(1)).all()


def test_attention_does_not_depend_on_the_length_of_queries_and_keys():
    """Cosines are invariant to scaling the kernel of queries and keys."""
    params, images = random_params(SWIN_V2), images_like(1, 32, 32, 3)
    out = apply(SWIN_V2, params, images).grid

    def scale(path, value):
        if path[-1].key == "qkv_kernel":
            return value.at[:, : 2 * len(value)].multiply(3.0)
        return 3.0 * value if path[-1].key == "q_bias" else value

    params = jax.tree.map(jnp.asarray, params)
    scaled = jax.tree_util.tree_map_with_path(scale, params)
    np.testing.assert_allclose(
        apply(SWIN_V2, scaled, images).grid, out, rtol=1e-3, atol=1e-3
    )


def test_logit_scales_are_clamped():
    params, images = random_params(SWIN_V2), images_like(1, 32, 32, 3)

    def with_scale(value):
        return jax.tree_util.tree_map_with_path(
            lambda path, p: (
                jnp.full_like(p, value) if path[-1].key == "logit_scale" else p
            ),
            params,
        )

    at_limit, beyond, below = (
        apply(SWIN_V2, with_scale(value), images).grid
        for value in (math.log(100), 9.0, 3.0)
    )
    np.testing.assert_array_equal(at_limit, beyond)
    assert not np.allclose(at_limit, below)


def test_unit_vectors_have_a_gradient_at_zero():
    gradient = jax.grad(lambda x: unit(x).sum())(jnp.zeros((1, 4)))
    assert np.isfinite(gradient).all()


# ---- Errors --------------------------------------------------------------------------


def test_inconsistent_stages_raise():
    images = jnp.zeros((1, 32, 32, 3))
    with pytest.raises(ValueError, match="expected one value per stage"):
        shapes(dataclasses.replace(SWIN, num_heads=(2,)), images)
    with pytest.raises(ValueError, match=r"stage 1 has width 16, .* num_heads=3"):
        shapes(dataclasses.replace(SWIN, num_heads=(2, 3)), images)
    with pytest.raises(ValueError, match=r"pretrained_window_sizes=\(4,\)"):
        shapes(dataclasses.replace(SWIN_V2, pretrained_window_sizes=(4,)), images)
