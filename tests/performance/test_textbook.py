"""Equality of our ViT and the textbook's, which benchmarks compare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.textbook_vit import TextbookViT
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.vit import ViT

HEADS = 4
NAMES = {
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


def textbooks(ours, like):
    """Return our parameters with the names and shapes of the textbook's."""
    ours = flatten_dict(ours, sep="/")
    found = {}
    for name, shape in flatten_dict(like, sep="/").items():
        source = name
        for theirs, our in NAMES.items():
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


@pytest.mark.slow
def test_predictions_are_equal():
    sizes = {"depth": 2, "drop_path_rate": 0.1, "dtype": jnp.float32}
    ours = SimMIM(ViT(patch_size=(16, 16), embed_dim=64, num_heads=HEADS, **sizes))
    textbook = SimMIM(TextbookViT(patch_size=16, width=64, heads=HEADS, **sizes))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 64, 64, 3)), jnp.float32)
    mask = jnp.asarray(rng.random((2, 4, 4)) < 0.6)
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
        textbook.apply({"params": textbooks(params, like)}, images, mask),
        ours.apply({"params": params}, images, mask),
        rtol=2e-4,
        atol=2e-4,
    )
