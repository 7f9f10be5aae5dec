"""The textbook's ViT, which ours is measured against, is the same model."""

import jax
import jax.numpy as jnp

from benchmarks.textbook_vit import TextbookViT
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.vit import ViT


def test_it_has_our_parameters_and_predicts_as_many_pixels():
    sizes = {"depth": 2, "drop_path_rate": 0.1, "dtype": jnp.float32}
    ours = ViT(patch_size=(16, 16), embed_dim=64, num_heads=4, **sizes)
    textbook = TextbookViT(patch_size=16, width=64, heads=4, **sizes)
    images, mask = jnp.zeros((2, 64, 64, 3)), jnp.ones((2, 4, 4), bool)

    def count(encoder):
        key = jax.random.key(0)
        predicted, variables = jax.eval_shape(
            lambda: SimMIM(encoder).init_with_output(key, images, mask)
        )
        sizes = [x.size for x in jax.tree.leaves(variables["params"])]
        return predicted.shape, sum(sizes)

    assert count(textbook) == count(ours)
