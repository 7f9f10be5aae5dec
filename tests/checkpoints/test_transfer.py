"""Transfer of pre-trained parameters to a fine-tuning model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from scipy.interpolate import RectBivariateSpline

from simmim_jax.checkpoints.transfer import (
    adapted_channels,
    geometric_coordinates,
    interpolate_offsets,
    interpolate_positions,
    named_channels,
    spacing,
    transfer,
)
from simmim_jax.models.classifier import Classifier
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.swin import Swin
from simmim_jax.models.swin_v2 import SwinV2
from simmim_jax.models.vit import ViT

PRETRAINED = ViT(patch_size=(4, 4), embed_dim=16, depth=2, num_heads=2)
FINETUNED = dataclasses.replace(
    PRETRAINED,
    use_shared_rel_pos_bias=False,
    use_rel_pos_bias=True,
    final_norm=False,
)
TABLE = "relative_position_bias_table"


def random_params(model, *, grid=(4, 4), patch=4, channels=3, seed=0):
    images = jnp.zeros((1, patch * grid[0], patch * grid[1], channels))
    mask = jnp.zeros((1, *grid))
    inputs = (images, mask > 0) if isinstance(model, SimMIM) else (images,)
    like = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), like)


def to_classes(encoder):
    return Classifier(encoder, 10)


def flat(params):
    return flatten_dict(params, sep="/")


@pytest.fixture
def pretrained():
    return random_params(SimMIM(PRETRAINED))


@pytest.fixture
def fresh():
    return random_params(Classifier(FINETUNED, 10), seed=1)


def test_encoder_is_pretrained_and_head_is_new(pretrained, fresh):
    merged, _ = transfer(pretrained, fresh)
    assert jax.tree.structure(merged) == jax.tree.structure(fresh)
    old, new = flat(pretrained), flat(fresh)
    for name, value in flat(merged).items():
        if name.startswith("encoder/") and not name.endswith(TABLE):
            np.testing.assert_array_equal(value, old[name], err_msg=name)
        elif not name.startswith("encoder/"):
            np.testing.assert_array_equal(value, new[name], err_msg=name)


def test_shared_table_is_copied_to_every_block(pretrained, fresh):
    merged, _ = transfer(pretrained, fresh)
    shared = pretrained["encoder"]["rel_pos_bias"][TABLE]
    for i in range(2):
        own = merged["encoder"][f"blocks_{i}"]["attn"][TABLE]
        np.testing.assert_array_equal(own, shared)


def test_transferred_encoder_gives_the_same_features(pretrained, fresh):
    merged, _ = transfer(pretrained, fresh)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)

    def encode(model, params):
        return jax.jit(model.apply)({"params": params["encoder"]}, images).grid

    unnormed = dataclasses.replace(PRETRAINED, final_norm=False)
    np.testing.assert_allclose(
        encode(FINETUNED, merged), encode(unnormed, pretrained), rtol=1e-4, atol=1e-5
    )


def test_report_lists_restored_new_and_left_out_parameters(pretrained, fresh):
    _, report = transfer(pretrained, fresh)
    restored, new, left_out = report.splitlines()
    count = len(flat(fresh["encoder"]))
    start, _, groups = restored.partition(": ")
    assert start == f"restored {count} of the encoder's parameters"
    assert set(groups.split(", ")) == set(fresh["encoder"])
    assert new.removeprefix("new: ").split(", ") == [
        name for name in flat(fresh) if not name.startswith("encoder/")
    ]
    assert set(left_out.removeprefix("left out: ").split(", ")) == {
        "decoder/kernel",
        "decoder/bias",
        "encoder/mask_token",
        "encoder/norm/scale",
        "encoder/norm/bias",
    }


def test_shared_table_is_kept_by_a_model_that_shares_it(pretrained):
    model = Classifier(dataclasses.replace(PRETRAINED, final_norm=False), 10)
    merged, report = transfer(pretrained, random_params(model, seed=1))
    np.testing.assert_array_equal(
        merged["encoder"]["rel_pos_bias"][TABLE],
        pretrained["encoder"]["rel_pos_bias"][TABLE],
    )
    assert TABLE not in report


def test_shared_table_is_used_once_if_blocks_have_tables_too(pretrained):
    both = dataclasses.replace(FINETUNED, use_shared_rel_pos_bias=True)
    like = random_params(Classifier(both, 10), seed=1)
    merged, _ = transfer(pretrained, like)
    np.testing.assert_array_equal(
        merged["encoder"]["rel_pos_bias"][TABLE],
        pretrained["encoder"]["rel_pos_bias"][TABLE],
    )
    np.testing.assert_array_equal(
        merged["encoder"]["blocks_0"]["attn"][TABLE],
        like["encoder"]["blocks_0"]["attn"][TABLE],
    )


def test_shared_table_is_added_to_the_blocks_own():
    both = dataclasses.replace(PRETRAINED, use_rel_pos_bias=True, final_norm=False)
    old = random_params(Classifier(both, 10))
    merged, _ = transfer(old, random_params(Classifier(FINETUNED, 10), seed=1))
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    found, expected = (
        jax.jit(model.apply)({"params": params["encoder"]}, images).grid
        for model, params in ((FINETUNED, merged), (both, old))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_unused_shared_table_is_reported(pretrained):
    model = dataclasses.replace(FINETUNED, use_rel_pos_bias=False)
    _, report = transfer(pretrained, random_params(Classifier(model, 10), seed=1))
    assert f"encoder/rel_pos_bias/{TABLE}" in report.split("left out: ")[1]


def test_tables_are_new_if_the_checkpoint_has_none(fresh):
    model = dataclasses.replace(PRETRAINED, use_shared_rel_pos_bias=False)
    merged, report = transfer(random_params(SimMIM(model)), fresh)
    for i in range(2):
        name = f"encoder/blocks_{i}/attn/{TABLE}"
        np.testing.assert_array_equal(flat(merged)[name], flat(fresh)[name])
        assert name in report.splitlines()[1]


def test_transfer_from_a_classifier_leaves_out_its_head(fresh):
    trained = random_params(Classifier(FINETUNED, 7), seed=2)
    merged, report = transfer(trained, fresh)
    assert merged["head"]["kernel"].shape == (16, 10)
    np.testing.assert_array_equal(merged["head"]["kernel"], fresh["head"]["kernel"])
    for name, value in flat(merged["encoder"]).items():
        np.testing.assert_array_equal(value, flat(trained["encoder"])[name], name)
    assert "left out: " in report
    assert "head/kernel" in report.splitlines()[2]


def test_inputs_are_not_modified(pretrained, fresh):
    before = [jax.tree.map(np.copy, tree) for tree in (pretrained, fresh)]
    transfer(pretrained, fresh)
    for tree, copy in zip((pretrained, fresh), before, strict=True):
        assert jax.tree.structure(tree) == jax.tree.structure(copy)
        jax.tree.map(np.testing.assert_array_equal, tree, copy)


def test_nothing_in_common_raises_with_names_of_both(fresh):
    with pytest.raises(ValueError, match="nothing in the checkpoint matches") as error:
        transfer({"backbone": {"stem": np.zeros(3)}}, fresh)
    assert "It holds backbone/stem" in str(error.value)
    assert "expected encoder/blocks_0/attn/" in str(error.value)
    assert "config.init_from" in str(error.value)


def differences(old, new, **options):
    """Lines of the error, one per difference."""
    with pytest.raises(ValueError, match="is not that of") as error:
        transfer(old, new, **options)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_other_widths_raise_with_both_shapes_of_every_parameter(fresh):
    wide = dataclasses.replace(PRETRAINED, embed_dim=32)
    lines = differences(random_params(SimMIM(wide)), fresh)
    assert "encoder/cls_token: (1, 1, 32) in the checkpoint, (1, 1, 16) here" in lines
    # All except the tables, whose shape does not depend on the width.
    assert len(lines) == len(flat(fresh["encoder"])) - 2


def test_other_number_of_heads_raises_with_both_shapes(fresh):
    model = dataclasses.replace(PRETRAINED, num_heads=4)
    assert differences(random_params(SimMIM(model), grid=(6, 6)), fresh) == [
        f"encoder/blocks_{i}/attn/{TABLE}: (124, 4) in the checkpoint, (52, 2) here"
        for i in range(2)
    ]


@pytest.mark.parametrize(("there", "here"), [(2, 3), (3, 2)])
def test_other_depth_raises_with_both_depths(there, here):
    old, new = (dataclasses.replace(PRETRAINED, depth=depth) for depth in (there, here))
    (line,) = differences(random_params(SimMIM(old)), random_params(SimMIM(new)))
    assert line.startswith(f"blocks: {there} in the checkpoint, {here} here")
    assert ("config.init_first_blocks=True" in line) == (there > here)


def test_block_parameters_that_one_side_lacks_raise(pretrained):
    plain = random_params(SimMIM(dataclasses.replace(PRETRAINED, layer_scale=0.0)))
    names = [f"encoder/blocks_{i}/gamma_{k}" for i in range(2) for k in (1, 2)]
    assert differences(pretrained, plain) == [
        f"{name}: (16,) in the checkpoint, nothing here" for name in names
    ]
    assert differences(plain, pretrained) == [
        f"{name}: nothing in the checkpoint, (16,) here" for name in names
    ]


def test_first_blocks_of_a_deeper_encoder(fresh):
    deep = random_params(SimMIM(dataclasses.replace(PRETRAINED, depth=4)))
    merged, report = transfer(deep, fresh, first_blocks=True)
    assert jax.tree.structure(merged) == jax.tree.structure(fresh)
    for i in range(2):
        block = flat(merged["encoder"][f"blocks_{i}"])
        shared = {f"attn/{TABLE}": deep["encoder"]["rel_pos_bias"][TABLE]}
        expected = flat(deep["encoder"][f"blocks_{i}"]) | shared
        assert set(block) == set(expected)
        for name, value in block.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    left_out = report.splitlines()[-1]
    assert "encoder/blocks_2, encoder/blocks_3" in left_out
    assert "encoder/blocks_1" not in left_out


def test_first_blocks_of_a_shallower_encoder_raise(pretrained):
    deep = dataclasses.replace(FINETUNED, depth=3)
    (line,) = differences(
        pretrained, random_params(Classifier(deep, 10)), first_blocks=True
    )
    assert line == "blocks: 2 in the checkpoint, 3 here"


# ---- Interpolation of relative positions ---------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "q"),
    [
        (11, 13, 1.09128130),
        (11, 15, 1.16895971),
        (23, 27, 1.03289305),
        (27, 47, 1.09030745),
        (13, 23, 1.24072397),
        (7, 9, 1.30277586),
        (13, 11, 1.01000),
        (27, 13, 1.01000),
    ],
)
def test_spacing_is_the_official_one(before, after, q):
    assert spacing(before // 2, after // 2) == pytest.approx(q, abs=2e-6)
    coordinates = geometric_coordinates(before, after)
    assert len(coordinates) == before
    np.testing.assert_array_equal(coordinates, -coordinates[::-1])
    steps = np.diff(coordinates[before // 2 :])
    np.testing.assert_allclose(steps, q ** np.arange(before // 2), rtol=1e-4)
    if after > before:
        assert coordinates[-1] == pytest.approx(after // 2, abs=1e-4)


def cosine_table(side):
    """T[i, h] = cos(.05 (2i + h)), the input of the official code for the values."""
    i, h = np.arange(side**2)[:, None], np.arange(2)
    return np.cos(0.05 * (2 * i + h)).reshape(side, side, 2)


def test_interpolated_tables_equal_the_official_ones():
    table = interpolate_offsets(cosine_table(11), (13, 13)).reshape(-1, 2)
    np.testing.assert_allclose(table[84], [0.9601703, 0.9729354], atol=1e-7)
    np.testing.assert_allclose(table[0], [1.0000013, 0.9987512], atol=1e-7)
    assert table.mean() == pytest.approx(-0.075197, abs=1e-6)
    assert table.std(ddof=1) == pytest.approx(0.682498, abs=1e-6)
    table = interpolate_offsets(cosine_table(23), (27, 27)).reshape(-1, 2)
    np.testing.assert_allclose(table[0], [1.0, 0.9987503], atol=1e-7)
    np.testing.assert_allclose(table[1], [0.9974076, 0.9925647], atol=1e-7)
    assert table.mean() == pytest.approx(0.007125, abs=1e-6)


@pytest.mark.parametrize(
    ("before", "after"), [((11, 7), (13, 9)), ((9, 13), (15, 7)), ((7, 9), (7, 27))]
)
def test_tables_need_not_be_square(before, after):
    table = np.random.default_rng(0).normal(size=(*before, 3))
    axes = zip(before, after, strict=True)
    coordinates = [geometric_coordinates(*pair) for pair in axes]
    for axis in range(2):
        if before[axis] == after[axis]:
            coordinates[axis] = np.arange(after[axis]) - after[axis] // 2
    points = [np.arange(n) - n // 2 for n in after]  # FITPACK clamps them itself
    expected = [
        RectBivariateSpline(*coordinates, table[..., h], kx=3, ky=3, s=0)(*points)
        for h in range(3)
    ]
    ours = interpolate_offsets(table, after)
    np.testing.assert_allclose(ours, np.stack(expected, -1), atol=1e-12)
    middle = table[before[0] // 2, before[1] // 2]
    np.testing.assert_allclose(ours[after[0] // 2, after[1] // 2], middle, atol=1e-12)


@pytest.mark.parametrize("before", [1, 3])
def test_small_tables_keep_their_range(before):
    table = np.random.default_rng(0).normal(size=(before, before, 2))
    ours = interpolate_offsets(table, (9, 9))
    np.testing.assert_allclose(ours[4, 4], table[before // 2, before // 2], atol=1e-12)
    corners = np.ix_([0, -1], [0, -1])
    np.testing.assert_allclose(ours[corners], table[corners], atol=1e-12)


def resized(before, after, model=PRETRAINED):
    """Transfer a table to another grid; return old table, new table and report."""
    pretrained = random_params(SimMIM(model), grid=before)
    like = random_params(Classifier(FINETUNED, 10), grid=after)
    merged, report = transfer(pretrained, like, source_grid=before, target_grid=after)
    old = pretrained["encoder"]["rel_pos_bias"][TABLE]
    tables = [merged["encoder"][f"blocks_{i}"]["attn"][TABLE] for i in range(2)]
    np.testing.assert_array_equal(*tables)
    assert tables[0].dtype == np.float32
    return old, tables[0], report


@pytest.mark.parametrize(
    ("before", "after"), [((4, 4), (6, 6)), ((4, 6), (5, 3)), ((3, 5), (5, 3))]
)
def test_table_is_interpolated_for_another_image_size(before, after):
    old, new, report = resized(before, after)
    size, new_size = ([2 * n - 1 for n in grid] for grid in (before, after))
    expected = interpolate_offsets(old[:-3].reshape(*size, 2), new_size)
    np.testing.assert_allclose(new[:-3], expected.reshape(-1, 2), atol=1e-6)
    np.testing.assert_array_equal(new[-3:], old[-3:])  # rows of the class token
    assert report.splitlines()[1] == (
        f"interpolated: 2 {TABLE} from {size[0]}x{size[1]} to "
        f"{new_size[0]}x{new_size[1]}"
    )


def test_table_of_the_same_grid_is_unchanged():
    old, new, report = resized((3, 5), (3, 5))
    np.testing.assert_array_equal(new, old)
    assert "interpolated" not in report


def test_grids_default_to_square():
    pretrained = random_params(SimMIM(PRETRAINED), grid=(4, 4))
    like = random_params(Classifier(FINETUNED, 10), grid=(6, 6))
    merged, _ = transfer(pretrained, like)
    explicit, _ = transfer(pretrained, like, source_grid=(4, 4), target_grid=(6, 6))
    jax.tree.map(np.testing.assert_array_equal, merged, explicit)


@pytest.mark.parametrize("grid", [None, (4, 4)])
def test_table_of_another_grid_raises(grid, fresh):
    pretrained = random_params(SimMIM(PRETRAINED), grid=(3, 5))
    text = "4x4" if grid else "square"
    with pytest.raises(ValueError, match=f"48 rows, which fit no {text} grid"):
        transfer(pretrained, fresh, source_grid=grid)


def swin(window, image, encoder=Swin, wrap=SimMIM, **fields):
    """Parameters of a Swin with two stages, whose windows are clamped to the grid."""
    fields = {"embed_dim": 8, "depths": (1, 2), "num_heads": (2, 4)} | fields
    model = wrap(encoder(patch_size=(2, 2), window_size=window, **fields))
    return random_params(model, grid=(image[0] // 2, image[1] // 2), patch=2)


def test_each_table_of_a_swin_is_interpolated_to_its_window():
    old = swin(6, (20, 20))  # 10x10 patches, then 5x5: windows of 6 and 5
    like = swin(7, (24, 48), wrap=to_classes)
    merged, report = transfer(old, like, source_grid=(10, 10), target_grid=(12, 24))
    for (stage, block), before, after in (
        ((0, 0), 11, 13),
        ((1, 0), 9, 11),
        ((1, 1), 9, 11),
    ):
        path = f"encoder/layers_{stage}/blocks_{block}/attn/{TABLE}"
        table = flat(old)[path].reshape(before, before, -1)
        expected = interpolate_offsets(table, (after, after)).reshape(after**2, -1)
        np.testing.assert_allclose(flat(merged)[path], expected, atol=1e-6)
    assert report.splitlines()[1:3] == [
        f"interpolated: 1 {TABLE} from 11x11 to 13x13",
        f"interpolated: 2 {TABLE} from 9x9 to 11x11",
    ]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"depths": (1, 3)}, "blocks: 1, 2 in the checkpoint, 1, 3 here"),
        (
            {"num_heads": (2, 8)},
            f"encoder/layers_1/blocks_0/attn/{TABLE}: (81, 4) in the checkpoint, "
            "(81, 8) here",
        ),
    ],
)
def test_swins_of_other_depths_or_heads_raise_with_both(fields, line):
    old, new = swin(6, (20, 20)), swin(6, (20, 20), **fields)
    assert differences(old, new)[0] == line


def test_first_blocks_of_a_swin_must_be_a_prefix():
    old, new = swin(6, (20, 20), depths=(2, 2)), swin(6, (20, 20))
    lines = differences(old, new, first_blocks=True)
    assert lines == ["blocks: 2, 2 in the checkpoint, 1, 2 here"]


def test_swin_v2_is_transferred_unchanged_to_another_window():
    old = swin(6, (24, 24), SwinV2)
    like = swin(8, (32, 32), SwinV2, to_classes, pretrained_window_sizes=(6, 6))
    merged, report = transfer(old, like, source_grid=(12, 12), target_grid=(16, 16))
    assert "interpolated" not in report
    encoder = flat(merged["encoder"])
    assert any(name.endswith("cpb_mlp_2/kernel") for name in encoder)
    for name, value in encoder.items():
        np.testing.assert_array_equal(value, flat(old["encoder"])[name], err_msg=name)


def test_swin_does_not_fit_swin_v2():
    old, new = swin(6, (24, 24)), swin(6, (24, 24), SwinV2)
    lines = differences(old, new)
    assert (
        "encoder/layers_0/blocks_0/attn/logit_scale: nothing in the checkpoint, "
        in ("\n".join(lines))
    )


# ---- Channels and decoders -----------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"), [(3, 1), (1, 3), (3, 4), (3, 13), (13, 3), (3, 3)]
)
def test_tokens_of_equal_channels_stay_when_channels_are_adapted(before, after):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 4, before, 5)).astype(np.float32)
    adapted = adapted_channels(kernel, after)
    assert adapted.shape == (2, 4, after, 5)
    assert adapted.dtype == np.float32
    # One image in `before` and in `after` equal channels.
    np.testing.assert_allclose(adapted.sum(2), kernel.sum(2), atol=1e-5)


def test_channels_are_repeated_or_averaged():
    kernel = np.arange(1.0, 4.0)[None, None, :, None]  # of red, green and blue
    for channels, expected in (
        (1, [6]),
        (2, [3, 3]),
        (4, [0.5, 2, 3, 0.5]),
        (6, [0.5, 1, 1.5, 0.5, 1, 1.5]),
    ):
        adapted = adapted_channels(kernel, channels)
        np.testing.assert_allclose(adapted.ravel(), expected)


def test_named_bands_give_the_tokens_of_images_that_lack_the_others():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    image = rng.normal(size=(2, 4, 4))  # of bands a, b, c and d
    taken = named_channels(kernel, ("a", "b", "c"), ("c", "d", "a"))
    assert taken.shape == (2, 4, 3, 5)
    assert taken.dtype == np.float32
    found = np.einsum("pqc,pqcd->d", image[..., [2, 3, 0]], taken)
    without_b = image[..., :3] * [1, 0, 1]
    expected = np.einsum("pqc,pqcd->d", without_b, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_other_channels_are_adapted_on_request_alone(pretrained):
    like = random_params(SimMIM(PRETRAINED), channels=5)
    name = "encoder/patch_embed/kernel"
    lines = differences(pretrained, like)
    assert lines == [f"{name}: (4, 4, 3, 16) in the checkpoint, (4, 4, 5, 16) here"]
    merged, report = transfer(pretrained, like, adapt_channels=True)
    expected = adapted_channels(flat(pretrained)[name], 5)
    np.testing.assert_array_equal(flat(merged)[name], expected)
    assert report.splitlines()[1:] == [
        "adapted: patch_embed, repeated from 3 to 5 channels",
        "the decoder starts anew: decoder/bias is (48,) in the checkpoint, (80,) here",
        "new: decoder/bias, decoder/kernel",
        "left out: decoder/bias, decoder/kernel",
    ]
    larger = SimMIM(dataclasses.replace(PRETRAINED, patch_size=(8, 8)))
    like = random_params(larger, patch=8, channels=5)
    lines = differences(pretrained, like, adapt_channels=True)
    assert f"{name}: (4, 4, 5, 16) in the checkpoint, (8, 8, 5, 16) here" in lines


def test_a_decoder_of_the_same_shapes_is_restored(pretrained):
    merged, report = transfer(pretrained, random_params(SimMIM(PRETRAINED), seed=1))
    jax.tree.map(np.testing.assert_array_equal, merged, pretrained)
    assert "restored the decoder: decoder/bias, decoder/kernel" in report
    deeper = SimMIM(PRETRAINED, decoder_kind="mlp")
    _, report = transfer(pretrained, random_params(deeper, seed=1))
    assert (
        "the decoder starts anew: decoder_hidden/bias is nothing in the checkpoint, "
        "(16,) here"
    ) in report


# ---- Interpolation of absolute positions ---------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"), [((5, 7), (8, 7)), ((9, 8), (4, 6)), ((6, 6), (9, 12))]
)
def test_absolute_positions_are_resized_like_pillow(before, after):
    positions = np.random.default_rng(0).normal(size=(*before, 2)).astype(np.float32)
    expected = [
        np.asarray(Image.fromarray(plane).resize(after[::-1], Image.Resampling.BICUBIC))
        for plane in positions.transpose(2, 0, 1)
    ]
    ours = interpolate_positions(positions, after)
    np.testing.assert_allclose(ours, np.stack(expected, -1), atol=1e-5)


def test_constant_and_linear_positions_are_preserved():
    even = interpolate_positions(np.full((4, 6, 1), 3.0, np.float32), (7, 11))
    np.testing.assert_allclose(even, 3, rtol=1e-6)
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 3, 1))
    finer = interpolate_positions(ramp, (16, 3))
    centres = (np.arange(16) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(finer[4:-4, :, 0].T, [centres[4:-4]] * 3, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "after"), [((4, 4), (6, 6)), ((3, 5), (5, 3)), ((3, 5), (3, 5))]
)
def test_absolute_position_of_the_class_token_is_kept(before, after):
    model = dataclasses.replace(FINETUNED, use_abs_pos_emb=True)
    old, like = (random_params(Classifier(model, 10), grid=g) for g in (before, after))
    merged, report = transfer(old, like, source_grid=before, target_grid=after)
    ours, theirs = (p["encoder"]["pos_embed"] for p in (merged, old))
    np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
    expected = theirs[0, 1:].reshape(*before, 16)
    if before != after:
        expected = interpolate_positions(expected, after)
    np.testing.assert_array_equal(ours[0, 1:].reshape(*after, 16), expected)
    assert ("pos_embed from" in report) == (before != after)


def test_absolute_positions_of_a_swin_lack_a_class_token():
    old, like = (swin(6, image, use_abs_pos_emb=True) for image in ((12, 20), (16, 24)))
    merged, _ = transfer(old, like, source_grid=(6, 10), target_grid=(8, 12))
    grid = old["encoder"]["absolute_pos_embed"].reshape(6, 10, 8)
    np.testing.assert_array_equal(
        merged["encoder"]["absolute_pos_embed"].reshape(8, 12, 8),
        interpolate_positions(grid, (8, 12)),
    )


def test_encoder_with_interpolated_positions_runs():
    model = dataclasses.replace(FINETUNED, use_abs_pos_emb=True)
    old = random_params(Classifier(model, 10), grid=(4, 4))
    like = random_params(Classifier(model, 10), grid=(5, 3))
    merged, _ = transfer(old, like, source_grid=(4, 4), target_grid=(5, 3))
    images = np.random.default_rng(0).normal(size=(1, 20, 12, 3)).astype(np.float32)
    logits = Classifier(model, 10).apply({"params": merged}, images)
    assert np.isfinite(logits).all()
