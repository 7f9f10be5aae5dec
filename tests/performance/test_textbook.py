"""Equality of our encoders and the textbook's, which benchmarks compare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.textbook_swin import TextbookSwin
from benchmarks.textbook_vit import TextbookViT
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.swin import Swin
from simmim_jax.models.vit import ViT

HEADS = 4
VIT_NAMES = {
    "relative_position_bias_table": "rel_pos_bias/relative_position_bias_table",
    "Conv_0": "patch_embed",
    "Block_": "blocks_",
    "Attention_0": "attn",
    "Dense_0": "mlp/fc1",
    "Dense_1": "mlp/fc2",
    "0/LayerNorm_0": "0/norm1",
    "1/LayerNorm_0": "1/norm1",
    "LayerNorm_1": "norm2",
    "LayerNorm_0": "norm",
}


SWIN_NAMES = {
    "patch_norm": "patch_embed/norm",
    "_blocks_": "/blocks_",
    "attn/qkv/": "attn/qkv_",
    "fc1": "mlp/fc1",
    "fc2": "mlp/fc2",
    "_reduction": "/downsample/reduction",
    "_norm/": "/downsample/norm/",
}


def textbooks(ours, like, names):
    """Return our parameters with the names and shapes of the textbook's."""
    ours = flatten_dict(ours, sep="/")
    found = {}
    for name, shape in flatten_dict(like, sep="/").items():
        source = name
        for theirs, our in names.items():
            source = source.replace(theirs, our)
        for i, part in enumerate("qkv"):
            if source.endswith(f"attn/{part}/kernel"):
                kernels = ours[source.replace(f"{part}/kernel", "qkv_kernel")]
                value = np.split(kernels, 3, axis=1)[i]
                break
            if source.endswith(f"attn/{part}/bias"):
                value = ours[source.replace(f"{part}/bias", f"{part}_bias")]
                break
        else:
            value = ours[source]
        found[name] = np.reshape(value, shape.shape)
    return unflatten_dict(found, sep="/")


SIZES = {"drop_path_rate": 0.1, "depth": 2, "dtype": jnp.float32}
STAGES = {"depths": (2, 2), "dtype": jnp.float32}
MODELS = {
    "vit": (
        ViT(patch_size=(16, 16), embed_dim=64, num_heads=HEADS, **SIZES),
        TextbookViT(patch_size=16, width=64, heads=HEADS, **SIZES),
        VIT_NAMES,
        (64, 4),
    ),
    "swin": (
        Swin(embed_dim=32, num_heads=(2, 4), window_size=4, **STAGES),
        TextbookSwin(patch_size=4, width=32, heads=(2, 4), window=4, **STAGES),
        SWIN_NAMES,
        (32, 8),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_equal(name):
    encoder, theirs, names, (size, grid) = MODELS[name]
    ours, textbook = SimMIM(encoder), SimMIM(theirs)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, size, size, 3)), jnp.float32)
    mask = jnp.asarray(rng.random((2, grid, grid)) < 0.6)
    key = jax.random.key(0)
    params = ours.init(key, images, mask)["params"]
    # Biases and tables start at zero.
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), params)
    params = jax.tree.map(np.float32, params)
    like = jax.eval_shape(lambda: textbook.init(key, images, mask))["params"]
    assert sum(x.size for x in jax.tree.leaves(like)) == sum(
        x.size for x in jax.tree.leaves(params)
    )
    np.testing.assert_allclose(
        textbook.apply({"params": textbooks(params, like, names)}, images, mask),
        ours.apply({"params": params}, images, mask),
        rtol=2e-4,
        atol=2e-4,
    )
