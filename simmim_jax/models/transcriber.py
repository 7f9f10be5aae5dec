"""An encoder with a linear head of characters for each piece of time (CTC)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simmim_jax.models.layers import Linear


class Transcriber(nn.Module):
    """A ViT whose patches are as high as the spectrogram, and a linear head.

    num_classes: characters and the blank, which is class 0.
    """

    encoder: nn.Module
    num_classes: int

    def layer_id(self, path: tuple[str, ...]) -> int:
        """Return a parameter's layer as the encoder counts them; the head's is last."""
        return self.encoder.layer_id(path[1:] if path[0] == "encoder" else path)

    def num_tokens(self, num_frames: jax.Array) -> jax.Array:
        """Return the tokens of so many frames; the last one may be cut short."""
        return -(-num_frames // self.encoder.patch_size[1])

    @nn.compact
    def __call__(
        self, images: jax.Array, num_frames: jax.Array, train: bool = False
    ) -> jax.Array:
        """Map spectrograms to logits, float32[b tokens num_classes].

        images: float[b bands frames 1], normalised; num_frames: int[b], those that
        count: the tokens of the others are padding, which changes nothing.
        """
        tokens = jnp.arange(images.shape[2] // self.encoder.patch_size[1])
        valid = tokens < self.num_tokens(num_frames)[:, None]
        encoded = self.encoder(images, train=train, valid=valid[:, None])
        features = encoded.grid[:, 0].astype(jnp.float32)
        return Linear(self.num_classes, name="head")(features)
