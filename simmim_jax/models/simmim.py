"""SimMIM: a masked encoder and a light decoder that predicts the pixels."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce

from simmim_jax.errors import UserError
from simmim_jax.models.layers import Linear, gelu, uniform


class SimMIM(nn.Module):
    """Encoder and pixel decoder (official `SimMIM`; paper section 3.2).

    The defaults are the official 1x1 convolution and pixel shuffle: each token predicts
    a patch of the encoder's stride, with features ordered (c p q). The number of
    channels follows from the images.

    decoder_kind: "linear", or "mlp" for a hidden layer of the encoder's width and GELU.
    downsample: factor by which the prediction is smaller than the image. If its pixels
    are larger than the encoder's stride, the predictions of their tokens are averaged.
    bins: number of logits for each value of a pixel; 0 predicts the value itself.
    """

    encoder: nn.Module
    dtype: jnp.dtype = jnp.float32
    decoder_kind: str = "linear"
    downsample: int = 1
    bins: int = 0

    @nn.compact
    def __call__(
        self, images: jax.Array, mask: jax.Array, train: bool = False
    ) -> jax.Array:
        """Predict all pixels, visible ones included.

        images: float[b h w c], normalised; mask: bool[b gh gw], True = masked.
        returns: float32[b h w c], or [b h w c bins]; `downsample` divides h and w.
        Raises UserError for an unknown decoder kind and for sizes that do not divide.
        """
        height, width, channels = images.shape[1:]
        stride = self.encoder.stride
        self._check(height, width, stride)
        x = self.encoder(images, mask, train=train).grid
        # PyTorch's default for convolutions, as in the official decoder.
        init = uniform(1 / math.sqrt(x.shape[-1]))
        if self.decoder_kind == "mlp":
            hidden = Linear(x.shape[-1], init, init, self.dtype, name="decoder_hidden")
            x = gelu(hidden(x))
        p, q = (max(s // self.downsample, 1) for s in stride)
        features = p * q * channels * max(self.bins, 1)
        values = Linear(features, init, init, self.dtype, name="decoder")(x)
        values = rearrange(
            values.astype(jnp.float32),
            "b h w (c p q k) -> b (h p) (w q) c k",
            c=channels,
            p=p,
            q=q,
            k=max(self.bins, 1),
        )
        # Crop: an encoder may have padded its grid.
        values = values[:, : height * p // stride[0], : width * q // stride[1]]
        values = reduce(
            values,
            "b (h p) (w q) c k -> b h w c k",
            "mean",
            h=height // self.downsample,
            w=width // self.downsample,
        )
        return values if self.bins else values[..., 0]

    def _check(self, height: int, width: int, stride: tuple[int, int]) -> None:
        if self.decoder_kind not in ("linear", "mlp"):
            raise UserError(
                f"config.decoder.kind={self.decoder_kind!r}: expected 'linear' or "
                "'mlp'."
            )
        factor = self.downsample
        if height % factor or width % factor:
            raise UserError(
                f"config.target.downsample={factor} does not divide images of "
                f"{height}x{width} pixels: choose a divisor of both sides."
            )
        if any(s % factor and factor % s for s in stride):
            raise UserError(
                f"config.target.downsample={factor} must divide the encoder's stride, "
                f"{stride[0]}x{stride[1]} pixels, or be a multiple of it."
            )
