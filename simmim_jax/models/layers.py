"""Layers that the encoders share. Activations around matrix products are 2-D, [b*n d].

Both the TPU's and the CPU's compilers do better on one tall matrix than on a batch of
small ones: no copies between layouts, one large product.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from simmim_jax.errors import UserError

Initializer = Callable[..., jax.Array]


class Encoded(NamedTuple):
    """What an encoder returns: patch features on their grid, and the class token."""

    grid: jax.Array  # float[b h w d]
    cls: jax.Array | None  # float[b d]; None where the encoder has no class token


def truncated_normal(std: float = 0.02, cut: float = 0.0) -> Initializer:
    """Normal weights of that standard deviation, cut at `cut` times it.

    The official SimMIM ViT cuts at one standard deviation, which leaves an effective
    0.0108; its Swin and its classifiers cut at an absolute 2.0, which cuts nothing.
    """
    if not cut:
        return nn.initializers.normal(std)
    return nn.initializers.truncated_normal(std, lower=-cut, upper=cut)


def uniform(bound: float) -> Initializer:
    """Uniform in ±bound. PyTorch's convolutions start at 1 / √(their inputs)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def scaled(initializer: Initializer, factor: float) -> Initializer:
    """The initializer with all that it draws multiplied by `factor`."""
    return lambda *args, **kwargs: factor * initializer(*args, **kwargs)


class Linear(nn.Module):
    """x @ kernel + bias, where `scale` may be folded into both.

    Folding a LayerScale or query scale into the weights costs a pass over the kernel
    instead of one over the activations, which are larger.
    """

    features: int
    kernel_init: Initializer = truncated_normal()
    bias_init: Initializer = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """x: float[... c]; scale: float[features] -> dtype[... features]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,))
        if scale is not None:
            kernel, bias = kernel * scale, bias * scale
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(
            self.dtype
        )


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Φ(x), by erf as PyTorch computes it; any shape.

    For its gradient it keeps x alone. What autodiff keeps beside it is an array as
    large, and more work to write and read than to compute Φ again. `flax.linen.gelu`
    goes by erfc, which takes a CPU about twice as long.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return jax.lax.erf(x * 0.5**0.5) / 2 + 0.5


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    pdf = jnp.exp(-jnp.square(wide) / 2) / (2 * jnp.pi) ** 0.5
    return (((_normal_cdf(wide) + wide * pdf) * gradient).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    hidden: int
    kernel_init: Initializer
    out_init: Initializer
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """x: float[b*n d]; scale: float[d], folded into the second layer."""
        width = x.shape[-1]
        x = Linear(self.hidden, self.kernel_init, dtype=self.dtype, name="fc1")(x)
        x = gelu(x)
        return Linear(width, self.out_init, dtype=self.dtype, name="fc2")(x, scale)


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each: the strided convolution, as a matmul.

    The kernel keeps the convolution's shape, [p q c d]. Without kernel_init, both start
    as PyTorch's convolutions do.
    """

    patch_size: tuple[int, int]
    features: int
    kernel_init: Initializer | None = None
    norm_eps: float | None = None  # of a layer norm after the projection; None: no norm
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images: float[b h w c] -> dtype[b h/p w/q d]; ValueError if not divisible."""
        height, width, channels = images.shape[1:]
        p, q = self.patch_size
        if height % p or width % q:
            raise UserError(
                f"images of {height}x{width} pixels cannot be cut into patches of "
                f"{p}x{q}: height and width must be multiples of the patch's. Change "
                "config.data.image_size or config.model.patch_size."
            )
        default = uniform((p * q * channels) ** -0.5)
        kernel_init = self.kernel_init or default
        bias_init = nn.initializers.zeros if self.kernel_init else default
        kernel = self.param("kernel", kernel_init, (p, q, channels, self.features))
        bias = self.param("bias", bias_init, (self.features,))
        patches = rearrange(images, "b (h p) (w q) c -> b h w (p q c)", p=p, q=q)
        kernel = rearrange(kernel, "p q c d -> (p q c) d")
        x = patches.astype(self.dtype) @ kernel.astype(self.dtype)
        x += bias.astype(self.dtype)
        if self.norm_eps is None:
            return x
        return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")(x)


def replace_masked(
    patches: jax.Array, mask: jax.Array, mask_token: jax.Array
) -> jax.Array:
    """Puts the mask token where patches are masked.

    patches: float[b h w d]; mask: bool[b h w], True = masked; mask_token: float[1 1 d];
    returns: as patches. ValueError where the mask has another shape.
    """
    if mask.shape != patches.shape[:3]:
        raise UserError(
            f"mask has shape {mask.shape}, expected {patches.shape[:3]}: one value for "
            "each patch."
        )
    return jnp.where(mask[..., None], mask_token.astype(patches.dtype), patches)


def relative_offsets(height: int, width: int) -> np.ndarray:
    """Number of the offset between each query and key of a grid, row by row.

    returns: int[h*w h*w] in 0..(2h-1)(2w-1)-1, for queries before keys (Swin, BEiT).
    """
    y, x = np.divmod(np.arange(height * width), width)
    dy = y[:, None] - y[None, :] + height - 1
    dx = x[:, None] - x[None, :] + width - 1
    return dy * (2 * width - 1) + dx
