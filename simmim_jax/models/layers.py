"""Layers shared by the encoders. Activations of matrix products are 2-D, [b*n d].

The compilers for TPUs and CPUs both do better on one tall matrix than on a batch of
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
    """Output of an encoder: patch features on their grid, and the class token.

    stages: float[b h w d] of each stage of a Swin, before patches are merged, or of a
    ViT after each quarter of its blocks, if it was asked for them; the last one is
    `grid`, the only one that the encoder's final norm applies to.
    """

    grid: jax.Array  # float[b h w d]
    cls: jax.Array | None  # float[b d]; None if the encoder has no class token
    stages: tuple[jax.Array, ...] = ()


def on_tpu() -> bool:
    """Return whether the traced program targets TPUs: by the mesh, or else locally.

    The mesh counts first because `aot` compiles for TPUs on machines without any.
    """
    return _device_kind().startswith("TPU")


def on_cpu() -> bool:
    """Return whether the traced program targets CPUs, as `on_tpu`."""
    return _device_kind() == "cpu"


def _device_kind() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind


def truncated_normal(std: float = 0.02, cut: float = 0.0) -> Initializer:
    """Return a normal initializer truncated at ±cut standard deviations; 0: nowhere.

    The official SimMIM ViT truncates at one standard deviation, which leaves an
    effective 0.0108. Its Swin and classifiers truncate at an absolute 2.0: no effect.
    """
    if not cut:
        return nn.initializers.normal(std)
    return nn.initializers.truncated_normal(std, lower=-cut, upper=cut)


def uniform(bound: float) -> Initializer:
    """Return a uniform initializer in ±bound; PyTorch convolutions use 1 / √fan_in."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def scaled(initializer: Initializer, factor: float) -> Initializer:
    """Return the initializer with its values multiplied by `factor`."""
    return lambda *args, **kwargs: factor * initializer(*args, **kwargs)


def product(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return x @ kernel in the type of x, of operands rounded to `dtype`.

    x: float[... c]; kernel: float32[c d]. With float32 x and a bfloat16 `dtype` sums,
    results and gradients are float32, which is the fast form on CPUs.
    """
    if x.dtype == dtype:
        return x @ kernel.astype(dtype)
    rows = x.reshape(-1, x.shape[-1])
    return _rounded_product(rows, kernel).reshape(*x.shape[:-1], kernel.shape[1])


# Cost of transposing a number of a float32 result, in those of a bfloat16 operand.
# With 0, steps of Swin-B and ViT-B were 3 and 7 % slower (AMD EPYC) than by x alone.
_RESULT_COST = 4


@jax.custom_vjp
def _rounded_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _rounded_product_forward(x, kernel)[0]


def _rounded_product_forward(x, kernel):
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _wide_dot(x, kernel, (1, 0)), (x, kernel)


def _rounded_product_backward(residuals, gradient):
    x, kernel = residuals
    gradient = gradient.astype(jnp.bfloat16)
    dkernel = _kernel_gradient(x, gradient)
    return _wide_dot(gradient, kernel, (1, 1)), dkernel


def _kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Return x.T @ gradient, float32[c d], of bfloat16[n c] and bfloat16[n d].

    XLA has no bfloat16 kernel for CPUs that contracts the rows of both, so it gets a
    transposed copy of x, or of the gradient where that costs less although the result
    is then transposed as well.
    """
    rows, width = x.shape
    features = gradient.shape[1]
    if rows * width > rows * features + _RESULT_COST * width * features:
        return _wide_dot(_transposed(gradient), x, (1, 0)).T
    return _wide_dot(_transposed(x), gradient, (1, 0))


def _transposed(x: jax.Array) -> jax.Array:
    """Transpose a bfloat16 matrix in halves: XLA would fold a whole one into a product.

    As integers: a CPU widens other arrays of two bytes to move them.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
    half = len(x) // 2
    bits = jnp.concatenate([bits[:half].T, bits[half:].T], axis=1)
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


_rounded_product.defvjp(_rounded_product_forward, _rounded_product_backward)


def gelu_product(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return gelu(x) @ kernel as `product` does; x: float[n c]; kernel: float32[c d].

    On CPUs x alone is kept for the gradient, and GELU is computed again.
    """
    if x.dtype != dtype:
        return _rounded_gelu_product(x, kernel)
    compute = jax.checkpoint(_gelu_product) if on_cpu() else _gelu_product
    return compute(x, kernel.astype(dtype))


def _gelu_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return gelu(x) @ kernel


@jax.custom_vjp
def _rounded_gelu_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _rounded_gelu_product_forward(x, kernel)[0]


def _rounded_gelu_product_forward(x, kernel):
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _wide_dot(gelu(x), kernel, (1, 0)), (x, kernel)


def _rounded_gelu_product_backward(residuals, gradient):
    x, kernel = residuals
    # Without a barrier XLA would find erf(x) in the forward pass, and keep it.
    x = jax.lax.optimization_barrier(x)
    gradient = gradient.astype(jnp.bfloat16)
    dkernel = _kernel_gradient(gelu(x), gradient)
    inner = _wide_dot(gradient, kernel, (1, 1))
    return (*_gelu_backward(x.astype(jnp.float32), inner), dkernel)


_rounded_gelu_product.defvjp(
    _rounded_gelu_product_forward, _rounded_gelu_product_backward
)


def _wide_dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contract one axis of each of two matrices; the result is float32.

    With a barrier, since jaxlib 0.10.2 for CPUs cannot run what it compiles a transpose
    of the result into.
    """
    contracted = ((axes[0],), (axes[1],))
    return jax.lax.optimization_barrier(
        jax.lax.dot_general(
            a, b, (contracted, ((), ())), preferred_element_type=jnp.float32
        )
    )


class Linear(nn.Module):
    """x @ kernel + bias, with an optional `scale` folded into both.

    Folding LayerScale into the weights costs a pass over the kernel instead of one over
    the activations, which are larger.
    """

    features: int
    kernel_init: Initializer = truncated_normal()
    bias_init: Initializer | None = nn.initializers.zeros  # None: no bias
    dtype: jnp.dtype = jnp.float32
    of_gelu: bool = False  # gelu(x) in place of x, which is then float[n c]

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Map x, float[... c], to [... features] of its type; scale: [features]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if scale is not None:
            kernel = kernel * scale  # in place, it would change NumPy parameters
        x = (gelu_product if self.of_gelu else product)(x, kernel, self.dtype)
        if self.bias_init is None:
            return x
        bias = self.param("bias", self.bias_init, (self.features,))
        if scale is not None:
            bias = bias * scale
        return x + bias.astype(x.dtype)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Φ(x), by erf as in PyTorch; any shape.

    Only x is saved for the gradient. Autodiff would save a second array of that size,
    which costs more to write and read than recomputing Φ. `flax.linen.gelu` uses erfc,
    which takes about twice as long on a CPU.
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
    """Two linear layers with an exact (erf) GELU between them."""

    hidden: int
    kernel_init: Initializer
    out_init: Initializer
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Apply the MLP to x, float[b*n d]; scale: float[d], folded into `fc2`."""
        width = x.shape[-1]
        x = Linear(self.hidden, self.kernel_init, dtype=self.dtype, name="fc1")(x)
        return Linear(width, self.out_init, dtype=self.dtype, of_gelu=True, name="fc2")(
            x, scale
        )


class PatchEmbed(nn.Module):
    """Patch embedding: the strided convolution as a matrix product.

    The kernel keeps the convolution's shape, [p q c d]. Without kernel_init, kernel and
    bias are initialised like PyTorch's convolutions.
    """

    patch_size: tuple[int, int]
    features: int
    kernel_init: Initializer | None = None
    norm_eps: float | None = None  # of a LayerNorm after the projection; None: no norm
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Map float[b h w c] to [b h/p w/q d]; UserError if not divisible."""
        height, width, channels = images.shape[1:]
        p, q = self.patch_size
        if height % p or width % q:
            raise UserError(
                f"images of {height}x{width} pixels cannot be cut into patches of "
                f"{p}x{q}. Height and width must be multiples of the patch size: "
                "change config.data.image_size or config.model.patch_size."
            )
        default = uniform((p * q * channels) ** -0.5)
        kernel_init = self.kernel_init or default
        bias_init = nn.initializers.zeros if self.kernel_init else default
        kernel = self.param("kernel", kernel_init, (p, q, channels, self.features))
        bias = self.param("bias", bias_init, (self.features,))
        patches = rearrange(images, "b (h p) (w q) c -> b h w (p q c)", p=p, q=q)
        kernel = rearrange(kernel, "p q c d -> (p q c) d")
        x = product(patches, kernel, self.dtype)
        x += bias.astype(x.dtype)
        if self.norm_eps is None:
            return x
        # Flax's fast variance, E[x²] - E[x]², cancels where the mean is large, as that
        # of projected pixels may be. Later norms see sums of many such terms, near 0.
        return nn.LayerNorm(
            self.norm_eps, dtype=x.dtype, use_fast_variance=False, name="norm"
        )(x)


def replace_masked(
    patches: jax.Array, mask: jax.Array, mask_token: jax.Array
) -> jax.Array:
    """Replace masked patches by the mask token.

    patches: float[b h w d]; mask: bool[b h w], True = masked; mask_token: float[1 1 d].
    Raises UserError if the shapes of patches and mask differ.
    """
    if mask.shape != patches.shape[:3]:
        raise UserError(
            f"mask has shape {mask.shape}, expected {patches.shape[:3]}: one value per "
            "patch."
        )
    return jnp.where(mask[..., None], mask_token.astype(patches.dtype), patches)


def relative_offsets(height: int, width: int) -> np.ndarray:
    """Return the index of the offset between every two tokens of a grid.

    returns: int[query key] in 0..(2h-1)(2w-1)-1, tokens row by row (Swin, BEiT).
    """
    y, x = np.divmod(np.arange(height * width), width)
    dy = y[:, None] - y[None, :] + height - 1
    dx = x[:, None] - x[None, :] + width - 1
    return dy * (2 * width - 1) + dx
