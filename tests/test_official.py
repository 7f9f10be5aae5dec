"""Conversion to official PyTorch names and layouts and back."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from simmim_jax.checkpoints.convert.official import (
    from_official,
    official_name,
    to_official,
)
from simmim_jax.configs import common
from simmim_jax.models import build_classifier, build_simmim
from simmim_jax.models.classifier import Classifier
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.vit import ViT

# All kinds of ViT parameters; axes have different sizes.
ENCODER = ViT(
    patch_size=(4, 2),
    embed_dim=12,
    depth=2,
    num_heads=3,
    mlp_ratio=2.0,
    use_abs_pos_emb=True,
    use_rel_pos_bias=True,
)
PRETRAIN, CLASSIFIER = SimMIM(ENCODER), Classifier(ENCODER, num_classes=5)


def shapes(model, size=16, channels=5):
    images = jnp.zeros((1, size, size, channels))
    inputs = [images]
    if isinstance(model, SimMIM):
        p, q = model.encoder.patch_size
        inputs.append(jnp.zeros((1, size // p, size // q), bool))
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def random_params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: rng.normal(size=p.shape).astype(np.float32), shapes(model)
    )


def layout(params_shapes):
    """Return official names and shapes, without memory for the values."""
    empty = jax.tree.map(lambda p: np.zeros(p.shape, np.int8), params_shapes)
    return {name: value.shape for name, value in to_official(empty).items()}


def block_layout(prefix):
    """Return names and shapes of one block of ViT-B."""
    vectors = ["gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias"]
    vectors += [f"norm{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
    vectors += ["attn.proj.bias", "mlp.fc2.bias"]
    return {prefix + name: (768,) for name in vectors} | {
        f"{prefix}attn.qkv.weight": (2304, 768),
        f"{prefix}attn.proj.weight": (768, 768),
        f"{prefix}mlp.fc1.weight": (3072, 768),
        f"{prefix}mlp.fc1.bias": (3072,),
        f"{prefix}mlp.fc2.weight": (768, 3072),
    }


# ---- Names and shapes ----------------------------------------------------------------


def test_vit_base_has_the_official_pre_training_layout():
    model = build_simmim(dtype="float32", **common.pretrain().model)
    ours = layout(shapes(model, 224, 3))
    expected = {
        "encoder.cls_token": (1, 1, 768),
        "encoder.mask_token": (1, 1, 768),
        "encoder.patch_embed.proj.weight": (768, 3, 16, 16),
        "encoder.patch_embed.proj.bias": (768,),
        "encoder.rel_pos_bias.relative_position_bias_table": (732, 12),
        "encoder.norm.weight": (768,),
        "encoder.norm.bias": (768,),
        "decoder.0.weight": (768, 768, 1, 1),
        "decoder.0.bias": (768,),
    }
    for i in range(12):
        expected |= block_layout(f"encoder.blocks.{i}.")
    assert ours == expected
    assert len(ours) == 189  # of the official 190, one is an index buffer
    assert sum(math.prod(shape) for shape in ours.values()) == 86_256_720


def test_vit_base_has_the_official_fine_tuning_layout():
    fields = common.finetune().model
    model = build_classifier(num_classes=1000, dtype="float32", **fields)
    ours = layout(shapes(model, 224, 3))
    expected = {
        "cls_token": (1, 1, 768),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "patch_embed.proj.bias": (768,),
        "fc_norm.weight": (768,),
        "fc_norm.bias": (768,),
        "head.weight": (1000, 768),
        "head.bias": (1000,),
    }
    for i in range(12):
        expected |= block_layout(f"blocks.{i}.")
        expected[f"blocks.{i}.attn.relative_position_bias_table"] = (732, 12)
    assert ours == expected
    assert len(ours) == 211 - 12  # of the official 211, twelve are index buffers


def test_only_pre_training_names_keep_their_prefix():
    path = "encoder/blocks_10/attn/qkv_kernel"
    pretrain = official_name(path, classifier=False)
    assert pretrain == "encoder.blocks.10.attn.qkv.weight"
    assert official_name(path, classifier=True) == "blocks.10.attn.qkv.weight"


# ---- Values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [PRETRAIN, CLASSIFIER], ids=["pretrain", "classifier"]
)
def test_round_trip_is_exact(model):
    params = random_params(model)
    state = to_official(params)
    back = from_official(state, shapes(model))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    again = to_official(back)
    assert list(again) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value)
        assert value.flags.c_contiguous
        assert value.dtype == np.float32


def test_weights_have_the_axes_of_torch():
    params = random_params(PRETRAIN)
    state, encoder = to_official(params), params["encoder"]
    # Convolution: (out in height width), ours (height width in out).
    kernel = encoder["patch_embed"]["kernel"]
    weight = state["encoder.patch_embed.proj.weight"]
    assert weight.shape == (12, 5, 4, 2)
    assert weight[7, 3, 2, 1] == kernel[2, 1, 3, 7]
    # Linear: (out in), ours (in out).
    fc1 = state["encoder.blocks.1.mlp.fc1.weight"]
    assert fc1.shape == (24, 12)
    assert fc1[20, 3] == encoder["blocks_1"]["mlp"]["fc1"]["kernel"][3, 20]
    qkv = state["encoder.blocks.0.attn.qkv.weight"]
    assert qkv[30, 4] == encoder["blocks_0"]["attn"]["qkv_kernel"][4, 30]
    # The decoder is a 1x1 convolution.
    decoder = state["decoder.0.weight"]
    assert decoder.shape == (40, 12, 1, 1)
    assert decoder[33, 2, 0, 0] == params["decoder"]["kernel"][2, 33]
    # Tables keep their axes.
    np.testing.assert_array_equal(
        state["encoder.blocks.0.attn.relative_position_bias_table"],
        encoder["blocks_0"]["attn"]["relative_position_bias_table"],
    )


def test_index_buffers_are_accepted():
    params = random_params(PRETRAIN)
    index = np.zeros((33, 33), np.int64)
    buffers = {
        "encoder.rel_pos_bias.relative_position_index": index,
        "encoder.blocks.0.attn.relative_position_index": index,
    }
    back = from_official(to_official(params) | buffers, shapes(PRETRAIN))
    assert flatten_dict(back).keys() == flatten_dict(params).keys()


# ---- Errors --------------------------------------------------------------------------


def test_error_lists_everything_that_does_not_fit():
    state = to_official(random_params(PRETRAIN))
    del state["encoder.cls_token"]
    del state["encoder.blocks.1.norm2.weight"]
    state["encoder.norm.bias"] = np.zeros(13, np.float32)
    state["encoder.blocks.0.attn.proj.weight"] = np.zeros((13, 13), np.float32)
    state["encoder.blocks.2.norm1.bias"] = np.zeros(12, np.float32)
    state["head.weight"] = np.zeros((5, 12), np.float32)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        from_official(state, shapes(PRETRAIN))
    assert set(str(error.value).splitlines()[1:]) == {
        "  encoder.cls_token is missing",
        "  encoder.blocks.1.norm2.weight is missing",
        "  encoder.norm.bias has shape (13,), expected (12,)",
        "  encoder.blocks.0.attn.proj.weight has shape (13, 13), expected (12, 12)",
        "  encoder.blocks.2.norm1.bias is not in the model",
        "  head.weight is not in the model",
    }


@pytest.mark.parametrize("shape", [(40, 12), (40, 12, 3, 3)])
def test_decoder_that_is_no_1x1_convolution_is_listed(shape):
    state = to_official(random_params(PRETRAIN))
    state["decoder.0.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=r"decoder\.0\.weight has shape"):
        from_official(state, shapes(PRETRAIN))


def test_pre_training_checkpoint_does_not_load_as_a_classifier():
    state = to_official(random_params(PRETRAIN))
    with pytest.raises(ValueError, match=r"head\.weight is missing") as error:
        from_official(state, shapes(CLASSIFIER))
    assert "encoder.cls_token is not in the model" in str(error.value)
    assert "decoder.0.weight is not in the model" in str(error.value)
