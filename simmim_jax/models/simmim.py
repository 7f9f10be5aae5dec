"""SimMIM: a masked encoder and one linear layer that predicts the pixels."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from simmim_jax.models.layers import Linear, uniform


class SimMIM(nn.Module):
    """Encoder and one-layer pixel decoder (official `SimMIM`; paper section 3.2).

    The decoder is the official 1x1 convolution and pixel shuffle: channels of a
    prediction are ordered (c p q), its stride is the encoder's, its
    channels follow from the image.
    """

    encoder: nn.Module
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, mask: jax.Array, train: bool = False
    ) -> jax.Array:
        """images: float[b h w c], normalised; mask: bool[b gh gw], True = masked.

        returns: float32[b h w c], all pixels as predicted, visible ones included.
        """
        height, width, channels = images.shape[1:]
        grid = self.encoder(images, mask, train=train).grid
        p, q = self.encoder.stride
        # PyTorch's default for a convolution, which the official decoder keeps.
        init = uniform(1 / math.sqrt(grid.shape[-1]))
        pixels = Linear(p * q * channels, init, init, self.dtype, name="decoder")(grid)
        image = rearrange(
            pixels.astype(jnp.float32),
            "b h w (c p q) -> b (h p) (w q) c",
            c=channels,
            p=p,
            q=q,
        )
        return image[:, :height, :width]  # an encoder may have padded its grid
