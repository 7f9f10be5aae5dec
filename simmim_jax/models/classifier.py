"""An encoder with a linear classification head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simmim_jax.errors import UserError
from simmim_jax.models.layers import Linear, scaled, truncated_normal


class Classifier(nn.Module):
    """Encoder, pooling and a linear head (official fine-tuning models).

    pool: "mean" averages the patch tokens, "cls" takes the class token.
    pool_norm: normalise the pooled features (`fc_norm`), for encoders without a final
    norm.
    head_scale: factor on the head's initial weights; 0.001 for the official ViT
    (`init_scale`), 1 for Swin.
    """

    encoder: nn.Module
    num_classes: int
    pool: str = "mean"
    pool_norm: bool = True
    head_scale: float = 0.001
    norm_eps: float = 1e-6

    def layer_id(self, path: tuple[str, ...]) -> int:
        """Return a parameter's layer as the encoder counts them; the head's is last."""
        return self.encoder.layer_id(path[1:] if path[0] == "encoder" else path)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Map normalised images, float[b h w c], to logits, float32[b num_classes]."""
        encoded = self.encoder(images, train=train)
        if self.pool == "mean":
            features = encoded.grid.mean((1, 2), dtype=jnp.float32)
        elif self.pool == "cls":
            features = encoded.cls.astype(jnp.float32)
        else:
            raise UserError(
                f"config.model.pool={self.pool!r}: expected 'mean' or 'cls'."
            )
        if self.pool_norm:
            features = nn.LayerNorm(self.norm_eps, name="fc_norm")(features)
        init = scaled(truncated_normal(), self.head_scale)
        return Linear(self.num_classes, init, name="head")(features)
