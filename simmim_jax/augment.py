"""What happens to pixels on the device: flip and normalisation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalize(
    images: jax.Array | np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """uint8[b h w c] -> float32, (x/255 - mean) / std; one mean and std a channel."""
    pixels = jnp.asarray(images, jnp.float32) / 255
    return (pixels - jnp.array(mean)) / jnp.array(std)


def denormalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """The inverse of `normalize`, to float32 in 0..255 where the image allows it."""
    return (images * jnp.array(std) + jnp.array(mean)) * 255


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image of [b h w c] left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
