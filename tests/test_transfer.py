"""Pre-trained parameters in a fine-tuning model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from simmim_jax.models.classifier import Classifier
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.vit import ViT
from simmim_jax.transfer import transfer

PRETRAINED = ViT(patch_size=(4, 4), embed_dim=16, depth=2, num_heads=2)
FINETUNED = dataclasses.replace(
    PRETRAINED,
    use_shared_rel_pos_bias=False,
    use_rel_pos_bias=True,
    final_norm=False,
)
TABLE = "relative_position_bias_table"


def random_params(model, *, size=16, seed=0):
    images, mask = jnp.zeros((1, size, size, 3)), jnp.zeros((1,) + (size // 4,) * 2)
    inputs = (images, mask > 0) if isinstance(model, SimMIM) else (images,)
    like = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), like)


def flat(params):
    return flatten_dict(params, sep="/")


@pytest.fixture
def pretrained():
    return random_params(SimMIM(PRETRAINED))


@pytest.fixture
def fresh():
    return random_params(Classifier(FINETUNED, 10), seed=1)


def test_encoder_is_the_pretrained_one_and_the_head_is_new(pretrained, fresh):
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


def test_transferred_encoder_computes_what_the_pretrained_one_does(pretrained, fresh):
    merged, _ = transfer(pretrained, fresh)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)

    def encode(model, params):
        return jax.jit(model.apply)({"params": params["encoder"]}, images).grid

    unnormed = dataclasses.replace(PRETRAINED, final_norm=False)
    np.testing.assert_allclose(
        encode(FINETUNED, merged), encode(unnormed, pretrained), rtol=1e-4, atol=1e-5
    )


def test_report_says_what_is_restored_new_and_left_out(pretrained, fresh):
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


def test_shared_table_goes_to_a_shared_table(pretrained):
    model = Classifier(dataclasses.replace(PRETRAINED, final_norm=False), 10)
    merged, report = transfer(pretrained, random_params(model, seed=1))
    np.testing.assert_array_equal(
        merged["encoder"]["rel_pos_bias"][TABLE],
        pretrained["encoder"]["rel_pos_bias"][TABLE],
    )
    assert TABLE not in report


def test_tables_stay_new_where_the_checkpoint_has_none(fresh):
    model = dataclasses.replace(PRETRAINED, use_shared_rel_pos_bias=False)
    merged, report = transfer(random_params(SimMIM(model)), fresh)
    for i in range(2):
        name = f"encoder/blocks_{i}/attn/{TABLE}"
        np.testing.assert_array_equal(flat(merged)[name], flat(fresh)[name])
        assert name in report.splitlines()[1]


def test_classifier_gives_another_all_of_its_encoder_but_not_its_head(fresh):
    trained = random_params(Classifier(FINETUNED, 7), seed=2)
    merged, report = transfer(trained, fresh)
    assert merged["head"]["kernel"].shape == (16, 10)
    np.testing.assert_array_equal(merged["head"]["kernel"], fresh["head"]["kernel"])
    for name, value in flat(merged["encoder"]).items():
        np.testing.assert_array_equal(value, flat(trained["encoder"])[name], name)
    assert "left out: " in report
    assert "head/kernel" in report.splitlines()[2]


def test_inputs_are_left_alone(pretrained, fresh):
    before = [jax.tree.map(np.copy, tree) for tree in (pretrained, fresh)]
    transfer(pretrained, fresh)
    for tree, copy in zip((pretrained, fresh), before, strict=True):
        assert jax.tree.structure(tree) == jax.tree.structure(copy)
        jax.tree.map(np.testing.assert_array_equal, tree, copy)


def test_nothing_in_common_raises_and_names_what_each_holds(fresh):
    with pytest.raises(ValueError, match="nothing in the checkpoint matches") as error:
        transfer({"backbone": {"stem": np.zeros(3)}}, fresh)
    assert "It holds backbone/stem" in str(error.value)
    assert "expected encoder/blocks_0/attn/" in str(error.value)
    assert "config.init_from" in str(error.value)


def test_other_widths_raise_and_name_both_shapes_of_every_parameter(fresh):
    wide = dataclasses.replace(PRETRAINED, embed_dim=32)
    with pytest.raises(ValueError, match="other shapes") as error:
        transfer(random_params(SimMIM(wide)), fresh)
    lines = str(error.value).splitlines()[1:]
    assert "  encoder/cls_token: (1, 1, 32) in the checkpoint, (1, 1, 16) here" in lines
    # All but the tables, whose shape does not depend on the width.
    assert len(lines) == len(flat(fresh["encoder"])) - 2


def test_other_image_size_raises_and_names_the_tables(fresh):
    with pytest.raises(ValueError, match=r"config\.data\.image_size") as error:
        transfer(random_params(SimMIM(PRETRAINED), size=24), fresh)
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        f"  encoder/blocks_{i}/attn/{TABLE}: (124, 2) in the checkpoint, (52, 2) here"
        for i in range(2)
    ]
