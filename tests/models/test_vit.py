"""The ViT: positions, masking, sizes, stochastic depth and initial weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.errors import UserError
from simmim_jax.models.attention import attention
from simmim_jax.models.vit import (
    ConvPositions,
    ViT,
    relative_position_index,
    sincos_positions,
)

TINY = ViT(patch_size=(4, 4), embed_dim=32, depth=2, num_heads=4)
# Embeddings only: the output is what would enter the first block.
EMBED = dataclasses.replace(
    TINY, depth=0, use_shared_rel_pos_bias=False, final_norm=False
)


def shapes(model, images, mask=None):
    return jax.eval_shape(model.init, jax.random.key(0), images, mask)["params"]


def random_params(model, images, mask=None, seed=0):
    """Parameters far from their initial values, so that each of them matters."""
    like = shapes(model, images, mask)
    leaves, tree = jax.tree.flatten(like)
    rng = np.random.default_rng(seed)
    values = [rng.normal(0, 0.3, x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, values)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, images, mask=None, key=None):
    """Apply the model, in training mode if there is a key."""
    rngs = None if key is None else {"drop_path": key}
    return model.apply({"params": params}, images, mask, key is not None, rngs=rngs)


def images_like(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def checkerboard(batch, height, width):
    y, x, b = np.ogrid[:height, :width, :batch]
    return np.moveaxis((y + x + b) % 2 == 0, -1, 0)


def flat(tree):
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.fixture(scope="module")
def tiny():
    """Model, parameters, images and mask: a 4x4 grid, half of it masked."""
    images, mask = images_like(2, 16, 16, 3), checkerboard(2, 4, 4)
    return TINY, random_params(TINY, images, mask), images, mask


# ---- Relative positions --------------------------------------------------------------


def test_position_index_of_a_2x2_grid_matches_the_official_one():
    expected = [
        [11, 9, 9, 9, 9],
        [10, 4, 3, 1, 0],
        [10, 5, 4, 2, 1],
        [10, 7, 6, 4, 3],
        [10, 8, 7, 5, 4],
    ]
    np.testing.assert_array_equal(relative_position_index(2, 2), expected)


def test_position_index_of_a_14x14_grid_matches_the_official_one():
    index = relative_position_index(14, 14)
    assert index.shape == (197, 197)
    assert (index[1, 1], index[1, 196], index[196, 1]) == (364, 0, 728)
    assert (index[0, 5], index[5, 0], index[0, 0]) == (729, 730, 731)
    assert index.sum() == 14_270_119


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (3, 5), (7, 2)])
def test_position_index_has_one_row_per_offset(height, width):
    index = relative_position_index(height, width)
    y, x = np.divmod(np.arange(height * width), width)
    dy, dx = y[:, None] - y, x[:, None] - x
    rows = {}
    for row, *offset in zip(index[1:, 1:].flat, dy.flat, dx.flat, strict=True):
        rows.setdefault(row, set()).add(tuple(offset))
    offsets = (2 * height - 1) * (2 * width - 1)
    assert all(len(found) == 1 for found in rows.values())
    assert len(set.union(*rows.values())) == offsets
    assert sorted(rows) == list(range(offsets))
    assert set(index[0, 1:]) == {offsets}
    assert set(index[1:, 0]) == {offsets + 1}
    assert index[0, 0] == offsets + 2


def test_shared_table_equals_the_same_table_in_every_block(tiny):
    model, params, images, mask = tiny
    own = dataclasses.replace(
        model, use_shared_rel_pos_bias=False, use_rel_pos_bias=True
    )
    table = params["rel_pos_bias"]
    copied = {k: v for k, v in params.items() if k != "rel_pos_bias"}
    for i in range(model.depth):
        block = copied[f"blocks_{i}"]
        copied[f"blocks_{i}"] = block | {"attn": block["attn"] | table}
    shared = apply(model, params, images, mask).grid
    np.testing.assert_allclose(
        apply(own, copied, images, mask).grid, shared, rtol=1e-5, atol=1e-5
    )


def test_shared_and_per_block_tables_are_summed(tiny):
    model, _, images, mask = tiny
    both = dataclasses.replace(model, use_rel_pos_bias=True)
    params = random_params(both, images, mask)
    shared = params.pop("rel_pos_bias")["relative_position_bias_table"]
    own = dataclasses.replace(both, use_shared_rel_pos_bias=False)
    added = jax.tree_util.tree_map_with_path(
        lambda path, p: p + shared if "bias_table" in path[-1].key else p, params
    )
    out = apply(
        both,
        params | {"rel_pos_bias": {"relative_position_bias_table": shared}},
        images,
        mask,
    )
    np.testing.assert_allclose(
        apply(own, added, images, mask).grid, out.grid, rtol=1e-5, atol=1e-5
    )


def test_without_positions_permuting_patches_permutes_the_grid(tiny):
    _, _, images, _ = tiny
    model = dataclasses.replace(TINY, use_shared_rel_pos_bias=False)
    params = random_params(model, images)
    patches = images.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    order = np.random.default_rng(0).permutation(16)
    shuffled = patches.reshape(2, 16, 4, 4, 3)[:, order].reshape(2, 4, 4, 4, 4, 3)
    shuffled = shuffled.transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, 3)
    out, moved = apply(model, params, images), apply(model, params, shuffled)
    np.testing.assert_allclose(
        moved.grid.reshape(2, 16, 32),
        out.grid.reshape(2, 16, 32)[:, order],
        rtol=1e-4,
        atol=1e-4,
    )
    np.testing.assert_allclose(moved.cls, out.cls, rtol=1e-4, atol=1e-4)


def test_bias_table_distinguishes_positions(tiny):
    model, params, images, _ = tiny
    mask = np.ones((2, 4, 4), bool)

    def differences(params):  # between every position and the first
        grid = apply(model, params, images, mask).grid[0].reshape(16, 32)
        return np.abs(grid[1:] - grid[0]).max(1)

    assert differences(params).min() > 1e-4
    table = jax.tree.map(np.zeros_like, params["rel_pos_bias"])
    assert differences(params | {"rel_pos_bias": table}).max() < 1e-5


# ---- Embeddings and masking ----------------------------------------------------------


def test_patch_embedding_equals_the_strided_convolution():
    images = images_like(2, 24, 40, 3)
    model = dataclasses.replace(EMBED, patch_size=(4, 8))
    params = random_params(model, images)
    expected = jax.lax.conv_general_dilated(
        images,
        params["patch_embed"]["kernel"],
        window_strides=(4, 8),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(
        apply(model, params, images).grid,
        expected + params["patch_embed"]["bias"],
        rtol=1e-4,
        atol=1e-4,
    )


def test_mask_token_replaces_patches_before_positions_are_added():
    images, mask = images_like(2, 16, 16, 3), checkerboard(2, 4, 4)
    model = dataclasses.replace(EMBED, use_abs_pos_emb=True)
    params = random_params(model, images, mask)
    without = {k: v for k, v in params.items() if k not in ("mask_token", "pos_embed")}
    patches = apply(EMBED, without, images).grid
    positions = params["pos_embed"][0]
    assert positions.shape == (17, 32)
    out = apply(model, params, images, mask)
    expected = np.where(mask[..., None], params["mask_token"][0, 0], patches)
    np.testing.assert_allclose(
        out.grid, expected + positions[1:].reshape(4, 4, 32), rtol=1e-5, atol=1e-5
    )
    cls = params["cls_token"][0, 0] + positions[0]
    np.testing.assert_allclose(out.cls, np.stack([cls, cls]), rtol=1e-5, atol=1e-6)


def test_fully_masked_images_do_not_change_the_output(tiny):
    model, params, images, _ = tiny
    mask = np.ones((2, 4, 4), bool)
    out = apply(model, params, images, mask)
    other = apply(model, params, images_like(2, 16, 16, 3, seed=1), mask)
    np.testing.assert_array_equal(out.grid, other.grid)
    np.testing.assert_array_equal(out.cls, other.cls)


def test_masked_pixels_do_not_leak_and_visible_ones_matter(tiny):
    model, params, images, mask = tiny

    def total(images):
        out = model.apply({"params": params}, images, mask)
        return (out.grid**2).sum() + (out.cls**2).sum()

    grads = jax.jit(jax.grad(total))(images)
    hidden = mask.repeat(4, 1).repeat(4, 2)
    assert (grads[hidden] == 0).all()
    assert (grads[~hidden] != 0).all()


def test_samples_of_a_batch_are_independent(tiny):
    model, params, images, mask = tiny
    out = apply(model, params, images, mask).grid
    changed = images.copy()
    changed[1] += 1
    other = apply(model, params, changed, mask).grid
    np.testing.assert_array_equal(other[0], out[0])
    assert np.abs(other[1] - out[1]).max() > 1e-3


def test_without_a_mask_there_is_no_mask_token(tiny):
    model, params, images, _ = tiny
    assert "mask_token" not in shapes(model, images)
    nothing = apply(model, params, images, np.zeros((2, 4, 4), bool)).grid
    np.testing.assert_allclose(nothing, apply(model, params, images).grid, rtol=1e-6)


# ---- Sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_supports_any_image_size_patch_shape_and_number_of_channels(channels):
    model = dataclasses.replace(TINY, patch_size=(4, 8))
    for height, width in ((24, 40), (8, 8)):
        images = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
        grid = (height // 4, width // 8)
        mask = jax.ShapeDtypeStruct((2, *grid), bool)
        out, variables = jax.eval_shape(
            model.init_with_output, jax.random.key(0), images, mask
        )
        assert out.grid.shape == (2, *grid, 32)
        assert out.cls.shape == (2, 32)
        params = variables["params"]
        assert params["patch_embed"]["kernel"].shape == (4, 8, channels, 32)
        table = params["rel_pos_bias"]["relative_position_bias_table"]
        assert table.shape == ((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, 4)


def test_parameters_without_positions_work_at_two_sizes():
    model = dataclasses.replace(TINY, use_shared_rel_pos_bias=False)
    params = random_params(model, images_like(1, 16, 16, 3))
    assert apply(model, params, images_like(1, 8, 24, 3)).grid.shape == (1, 2, 6, 32)


@pytest.mark.parametrize("size", [(30, 32), (32, 36)])
def test_indivisible_images_raise_with_both_sizes(size):
    model = dataclasses.replace(TINY, patch_size=(4, 8))
    with pytest.raises(ValueError, match="cannot be cut") as error:
        shapes(model, jnp.zeros((1, *size, 3)))
    assert f"{size[0]}x{size[1]} pixels" in str(error.value)
    assert "patches of 4x8" in str(error.value)
    assert "config.model.patch_size" in str(error.value)


def test_a_mask_of_another_size_raises_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), expected \(2, 4, 4\)"):
        shapes(TINY, jnp.zeros((2, 16, 16, 3)), jnp.zeros((2, 3, 4), bool))


def test_a_width_that_heads_do_not_divide_raises_with_both():
    model = dataclasses.replace(TINY, embed_dim=30)
    with pytest.raises(ValueError, match=r"embed_dim=30.*num_heads=4"):
        shapes(model, jnp.zeros((1, 16, 16, 3)))


# ---- Blocks --------------------------------------------------------------------------


def test_attention_is_softmax_of_scaled_products_plus_bias():
    rng = np.random.default_rng(0)
    qkv, bias = rng.normal(size=(2, 5, 3, 4, 8)), rng.normal(size=(4, 5, 5))
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    logits = q @ k.swapaxes(-1, -2) + bias
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (weights @ v).transpose(0, 2, 1, 3).reshape(10, 32)
    out = attention(
        jnp.asarray(qkv.reshape(10, 96)),
        None,
        jnp.asarray(bias),
        batch=2,
        num_heads=4,
        tokens=5,
    )
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_keys_have_no_bias_and_that_of_queries_and_values_is_optional(tiny):
    model, params, images, _ = tiny
    attn = params["blocks_0"]["attn"]
    assert set(attn) == {"qkv_kernel", "q_bias", "v_bias", "proj"}
    without = shapes(dataclasses.replace(model, qkv_bias=False), images)
    assert set(without["blocks_0"]["attn"]) == {"qkv_kernel", "proj"}


def test_layer_scale_0_has_no_gamma_and_equals_gammas_of_one(tiny):
    model, params, images, mask = tiny
    plain = dataclasses.replace(model, layer_scale=0.0)
    assert not [name for name in flat(shapes(plain, images, mask)) if "gamma" in name]
    without = jax.tree.map(lambda p: p, params)
    ones = jax.tree.map(lambda p: p, params)
    for i in range(model.depth):
        for name in ("gamma_1", "gamma_2"):
            del without[f"blocks_{i}"][name]
            ones[f"blocks_{i}"][name] = np.ones(32, np.float32)
    np.testing.assert_allclose(
        apply(plain, without, images, mask).grid,
        apply(model, ones, images, mask).grid,
        rtol=1e-5,
        atol=1e-5,
    )


def test_gamma_scales_a_whole_branch_including_its_bias(tiny):
    model, params, images, _ = tiny
    zeros = jax.tree_util.tree_map_with_path(
        lambda path, p: p * 0 if "gamma" in path[-1].key else p, params
    )
    model = dataclasses.replace(model, final_norm=False)
    embedded = {k: params[k] for k in ("patch_embed", "cls_token")}
    np.testing.assert_allclose(
        apply(model, zeros, images).grid, apply(EMBED, embedded, images).grid, rtol=1e-6
    )


def test_final_norm_normalises_every_token(tiny):
    _, params, images, _ = tiny
    model = dataclasses.replace(EMBED, final_norm=True)
    norm = {"scale": np.ones(32, np.float32), "bias": np.zeros(32, np.float32)}
    params = {k: params[k] for k in ("patch_embed", "cls_token")} | {"norm": norm}
    out = apply(model, params, images)
    for tokens in out[:2]:
        np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-5)
        np.testing.assert_allclose(tokens.std(-1), 1, rtol=1e-3)


def test_dtype_is_that_of_activations_not_of_parameters(tiny):
    model, params, images, mask = tiny
    half = dataclasses.replace(model, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(shapes(half, images, mask))} == {
        jnp.dtype("float32")
    }
    out = apply(half, params, images, mask).grid
    assert out.dtype == jnp.bfloat16
    exact = apply(model, params, images, mask).grid
    error = np.abs(out.astype(np.float32) - exact).mean()
    assert 0 < error < 0.03 * np.abs(exact).mean()


# ---- Stochastic depth ----------------------------------------------------------------


@pytest.fixture(scope="module")
def kept():
    """Output of each branch of three blocks, float[samples tokens block branch].

    All parameters are zero except one bias per branch, which marks it in the output.
    """
    model = dataclasses.replace(
        TINY,
        depth=3,
        drop_path_rate=0.5,
        layer_scale=0.0,
        final_norm=False,
        use_shared_rel_pos_bias=False,
    )
    images = np.zeros((2000, 8, 8, 1), np.float32)
    params = jax.tree.map(lambda p: np.zeros(p.shape), shapes(model, images))
    for i in range(3):
        params[f"blocks_{i}"]["attn"]["proj"]["bias"][2 * i] = 1
        params[f"blocks_{i}"]["mlp"]["fc2"]["bias"][2 * i + 1] = 1
    grid = apply(model, params, images, key=jax.random.key(0)).grid
    return np.asarray(grid)[..., :6].reshape(2000, 4, 3, 2)


def test_drop_path_rate_increases_linearly_over_blocks(kept):
    for i, rate in enumerate((0.0, 0.25, 0.5)):
        added = kept[:, :, i]
        assert set(np.unique(added)) == {0, np.float32(1 / (1 - rate))} - (
            {0} if rate == 0 else set()
        )
        dropped = (added[:, 0] == 0).mean(0)
        assert (np.abs(dropped - rate) <= 5 * np.sqrt(rate / 2000)).all()


def test_drop_path_preserves_the_expectation(kept):
    np.testing.assert_allclose(kept.mean((0, 1)), 1, atol=5 / np.sqrt(2000))


def test_drop_path_drops_whole_samples_independently(kept):
    assert (kept == kept[:, :1]).all()  # all tokens of a sample together
    dropped = kept[:, 0, 2] == 0
    assert abs((dropped[1:, 0] & dropped[:-1, 0]).mean() - 0.25) < 0.05
    # attention and MLP of a block independently
    assert abs(dropped.all(1).mean() - 0.25) < 0.05


def test_drop_path_is_off_in_evaluation(tiny):
    model, params, images, mask = tiny
    dropping = dataclasses.replace(model, drop_path_rate=0.9)
    np.testing.assert_array_equal(
        apply(dropping, params, images, mask).grid,
        apply(model, params, images, mask).grid,
    )


# ---- Layer ids -----------------------------------------------------------------------


def test_layer_ids_match_the_official_code():
    model = ViT()
    for name in ("cls_token", "pos_embed", "mask_token", "patch_embed"):
        assert model.layer_id((name, "kernel")) == 0
    for i in range(12):
        assert model.layer_id((f"blocks_{i}", "attn", "q_bias")) == i + 1
    for name in ("rel_pos_bias", "norm", "fc_norm", "head"):
        assert model.layer_id((name, "scale")) == 13


# ---- Initial weights -----------------------------------------------------------------


def initial(**fields):
    model = ViT(embed_dim=192, use_abs_pos_emb=True, **fields)
    images, mask = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 14, 14), bool)
    return flat(jax.jit(model.init)(jax.random.key(0), images, mask)["params"])


@pytest.fixture(scope="module")
def truncated_at_one_sigma():
    """Initial parameters of a narrow ViT-B/16: the rules do not depend on width."""
    return initial(init_cut=1.0)


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("patch_embed/kernel", 0.01079),
        ("blocks_0/attn/qkv_kernel", 0.01079),
        ("blocks_11/mlp/fc1/kernel", 0.01079),
        ("blocks_0/attn/proj/kernel", 0.00763),
        ("blocks_0/mlp/fc2/kernel", 0.00763),
        ("blocks_5/attn/proj/kernel", 0.01079 / 12**0.5),
        ("blocks_11/attn/proj/kernel", 0.00220),
        ("blocks_11/mlp/fc2/kernel", 0.00220),
        ("pos_embed", 0.01079),
    ],
)
def test_initial_standard_deviations_match_the_official_code(
    truncated_at_one_sigma, name, std
):
    np.testing.assert_allclose(truncated_at_one_sigma[name].std(), std, rtol=0.015)
    np.testing.assert_allclose(truncated_at_one_sigma[name].mean(), 0, atol=std / 30)


def test_initial_tokens_are_random_and_differ(truncated_at_one_sigma):
    cls, mask = (
        truncated_at_one_sigma["cls_token"],
        truncated_at_one_sigma["mask_token"],
    )
    for token in (cls, mask):
        np.testing.assert_allclose(token.std(), 0.01079, rtol=0.2)
    assert (cls != mask).any()


def test_pretraining_truncates_initial_weights_at_one_sigma(truncated_at_one_sigma):
    for name in ("patch_embed/kernel", "blocks_3/attn/qkv_kernel", "mask_token"):
        assert 0.0195 < np.abs(truncated_at_one_sigma[name]).max() <= 0.02
    proj = truncated_at_one_sigma["blocks_11/attn/proj/kernel"]
    assert np.abs(proj).max() <= 0.02 / 24**0.5


def test_initial_constants_match_the_official_code(truncated_at_one_sigma):
    for name, value in truncated_at_one_sigma.items():
        if name.endswith(("bias", "relative_position_bias_table")):
            assert (value == 0).all(), name
        elif name.endswith("scale"):
            assert (value == 1).all(), name
        elif "gamma" in name:
            np.testing.assert_allclose(value, 0.1, err_msg=name)
        else:
            assert value.std() > 0, name


def test_zero_cut_truncates_nothing():
    params = initial(init_cut=0.0, depth=2)
    qkv = params["blocks_0/attn/qkv_kernel"]
    np.testing.assert_allclose(qkv.std(), 0.02, rtol=0.015)
    assert np.abs(qkv).max() > 0.07
    proj = params["blocks_1/attn/proj/kernel"]
    np.testing.assert_allclose(proj.std(), 0.01, rtol=0.015)


# ---- Positions for any length, and padding -------------------------------------------


def test_sincos_positions_have_the_column_then_the_row():
    positions = sincos_positions(3, 3, 8)
    assert positions.shape == (9, 8)
    expected = [
        [0, 0, 1, 1, 0, 0, 1, 1],
        [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01), 0, 0, 1, 1],
        [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02), *np.sin([1, 0.01])],
    ]
    for place, values in zip((0, 1, 5), expected, strict=True):
        np.testing.assert_allclose(positions[place, : len(values)], values, rtol=1e-6)


def test_a_wider_grid_continues_the_positions_of_a_narrow_one():
    np.testing.assert_array_equal(
        sincos_positions(1, 9, 16)[:4], sincos_positions(1, 4, 16)
    )


def test_sincos_positions_need_a_width_that_divides():
    with pytest.raises(UserError, match="multiple of 4"):
        sincos_positions(1, 4, 6)


@pytest.mark.parametrize("size", [(1, 9), (4, 6)])
def test_convolved_positions_are_a_depthwise_convolution(size):
    positions = ConvPositions(3)
    tokens = jax.random.normal(jax.random.key(0), (2, *size, 5))
    params = positions.init(jax.random.key(1), tokens, None)
    kernel = params["params"]["kernel"]
    assert kernel.shape == (1 if size[0] == 1 else 3, 3, 5)
    expected = jax.lax.conv_general_dilated(
        tokens,
        kernel[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )
    found = positions.apply(params, tokens, None)
    expected = jax.nn.gelu(expected, approximate=False)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_convolved_positions_need_a_middle():
    with pytest.raises(UserError, match="conv_pos_width=4: expected an odd number"):
        ConvPositions(4).init(jax.random.key(0), jnp.zeros((1, 2, 3, 5)), None)


def test_masked_patches_do_not_leak_through_convolved_positions():
    model = ViT(patch_size=(4, 4), embed_dim=16, depth=1, num_heads=2, conv_pos_width=3)
    images = jax.random.normal(jax.random.key(0), (1, 4, 32, 1))
    mask = jnp.zeros((1, 1, 8), bool).at[:, :, 3].set(True)
    params = model.init(jax.random.key(1), images, mask)
    changed = images.at[:, :, 12:16].set(7.0)
    np.testing.assert_array_equal(
        model.apply(params, images, mask).grid, model.apply(params, changed, mask).grid
    )


def test_the_kernel_for_tpus_refuses_padding():
    model = ViT(depth=1, embed_dim=16, num_heads=2, attention="pallas")
    images = jnp.zeros((1, 16, 32, 1))
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    valid = jnp.ones((1, 1, 2), bool)
    with pytest.raises(UserError, match="no mask of padding"):
        jax.eval_shape(functools.partial(model.apply, valid=valid), params, images)
