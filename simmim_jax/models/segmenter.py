"""An encoder with UperNet's head for semantic segmentation (Xiao et al., ECCV 2018).

Channels are normalised by LayerNorm, pixel by pixel, where the published heads have
batch norm: there are no running statistics, and small batches learn alike.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.models.layers import Linear, gelu
from simmim_jax.models.vit import ViT

# Grids that the last stage is pooled to (PSPNet's pyramid).
POOLS = (1, 2, 3, 6)
# Width of the auxiliary head.
AUXILIARY_DIM = 256
# Of centred values: mean(x²) - mean(x)² cancels.
LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)


class Segmenter(nn.Module):
    """Encoder, UperNet head and auxiliary head.

    The stages of a Swin are normalised; the quarters of a ViT's blocks become a pyramid
    of strides 1/4, 1/2, 1 and 2 patches (BEiT's segmentation).

    head_dim: width of the head; dropout: share of channels that are dropped before the
    classification of pixels.
    """

    encoder: nn.Module
    num_classes: int
    head_dim: int = 512
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    def layer_id(self, path: tuple[str, ...]) -> int:
        """Return a parameter's layer as the encoder counts them; heads are last."""
        return self.encoder.layer_id(path[1:] if path[0] == "encoder" else path)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Map normalised images, float[b h w c], to logits of both heads.

        returns: float32[b h/s w/s num_classes] for the strides s of the first stage and
        of the last but one. `train` enables drop path and dropout (rng streams
        `drop_path` and `dropout`).
        """
        stages = self.encoder(images, train=train, stages=True).stages
        if isinstance(self.encoder, ViT):
            pyramid = Pyramid(self.encoder.norm_eps, self.dtype, name="pyramid")
            stages = pyramid(stages)
        else:  # which has normalised the last one
            norms = [
                LayerNorm(self.encoder.norm_eps, dtype=self.dtype, name=f"norm_{i}")
                for i in range(len(stages) - 1)
            ]
            stages = (
                *(norm(x) for norm, x in zip(norms, stages[:-1], strict=True)),
                stages[-1],
            )
        head = UperHead(self.head_dim, self.dtype, name="head")
        auxiliary = ConvNorm(AUXILIARY_DIM, 3, self.dtype, name="auxiliary")
        return (
            self._classify(head(stages), train, "classify"),
            self._classify(auxiliary(stages[-2]), train, "classify_auxiliary"),
        )

    def _classify(self, x: jax.Array, train: bool, name: str) -> jax.Array:
        drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        classify = Linear(self.num_classes, nn.initializers.normal(0.01), name=name)
        return classify(drop(x).astype(jnp.float32))


class ConvNorm(nn.Module):
    """Convolution, LayerNorm over the channels of each pixel, ReLU."""

    features: int
    kernel: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[b h w c] to dtype[b h w features]."""
        conv = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            name="conv",
        )
        norm = LayerNorm(dtype=self.dtype, name="norm")
        return nn.relu(norm(conv(x)))


class UperHead(nn.Module):
    """Pyramid pooling of the last stage, then a feature pyramid of all stages."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array]) -> jax.Array:
        """Map float[b h w d], finest first, to dtype[b h w features] of the finest."""

        def conv(kernel: int, name: str) -> ConvNorm:
            return ConvNorm(self.features, kernel, self.dtype, name=name)

        *finer, last = stages
        pooled = [
            resized(conv(1, f"pool_{side}")(pool(last, side)), last.shape[1:3])
            for side in POOLS
        ]
        x = conv(3, "context")(jnp.concatenate([last, *pooled], axis=-1))
        levels = [x]
        for i, stage in reversed(list(enumerate(finer))):
            x = conv(1, f"lateral_{i}")(stage) + resized(x, stage.shape[1:3])
            levels.append(x)
        outputs = [levels[0]] + [
            conv(3, f"output_{i}")(level)
            for i, level in zip(range(len(finer))[::-1], levels[1:], strict=True)
        ]
        size = stages[0].shape[1:3]
        return conv(3, "fusion")(
            jnp.concatenate([resized(x, size) for x in outputs[::-1]], axis=-1)
        )


class Pyramid(nn.Module):
    """Four maps of one grid to strides of 1/4, 1/2, 1 and 2 of its cells."""

    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Map four float[b h w d] to [b 4h 4w d], [b 2h 2w d], [b h w d] and half."""
        first, second, third, fourth = stages
        finest = self._doubled(first, "first_0")
        norm = LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")
        return (
            self._doubled(gelu(norm(finest)), "first_1"),
            self._doubled(second, "second"),
            third,
            nn.max_pool(fourth, (2, 2), (2, 2), "SAME"),
        )

    def _doubled(self, x: jax.Array, name: str) -> jax.Array:
        """A transposed convolution of 2x2 with stride 2, as a matrix product."""
        x = Linear(4 * x.shape[-1], dtype=self.dtype, name=name)(x)
        return rearrange(x, "b h w (p q d) -> b (h p) (w q) d", p=2, q=2)


def resized(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Return [b h w c] at another size (h, w), bilinear between centres of pixels."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "linear")


def pool(x: jax.Array, side: int) -> jax.Array:
    """Return means over side x side cells that cover [b h w c] (adaptive pooling)."""
    rows, columns = (jnp.asarray(_cells(n, side), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ph,bhwc,qw->bpqc", rows, x, columns)


def _cells(length: int, count: int) -> np.ndarray:
    """Return weights, float64[count length], of means over cells that may overlap."""
    starts = np.arange(count) * length // count
    ends = -(-(np.arange(count) + 1) * length // count)
    places = np.arange(length)
    inside = (starts[:, None] <= places) & (places < ends[:, None])
    return inside / inside.sum(1, keepdims=True)
