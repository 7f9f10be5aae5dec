"""Values of a batch to what the model sees, and back."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Integers that float32 does not hold exactly.
_WIDE = (jnp.dtype("int32"), jnp.dtype("uint32"))


@dataclasses.dataclass(frozen=True)
class Normalization:
    """(x / scale - mean) / std per channel, clipped, and 0 where there is no data.

    mean, std: a value per channel; scale: 255 for the uint8 pixels of photographs, 1
    for measured values; clip: lowest and highest result; decibel: 10 log10(x) takes the
    place of x; nodata: value that marks pixels without a measurement. NaN and, with
    `decibel`, values up to 0 mark them as well.
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    scale: float = 255.0
    clip: tuple[float, float] | None = None
    decibel: bool = False
    nodata: float | None = None

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Return float32[b h w c] of a batch [b h w c] of any dtype."""
        valid = self.valid(images)
        values = self._affine(images)
        if self.clip:
            values = jnp.clip(values, *self.clip)
        return values if valid is None else jnp.where(valid, values, 0)

    def valid(self, images: jax.Array | np.ndarray) -> jax.Array | None:
        """Return bool[b h w c], where there is data; None if that is everywhere."""
        found: jax.Array | None = None
        if jnp.issubdtype(images.dtype, jnp.floating):
            found = ~jnp.isnan(images)
        if self.decibel:
            found = jnp.asarray(images) > 0  # false for NaN as well
        if self.nodata is not None and _holds(images.dtype, self.nodata):
            marked = jnp.asarray(images) != jnp.asarray(self.nodata, images.dtype)
            found = marked if found is None else found & marked
        return found

    def inverse(self, values: jax.Array) -> jax.Array:
        """Return float32[b h w c] in the units of the batch; what was clipped stays."""
        found = (values * jnp.array(self.std) + jnp.array(self.mean)) * self.scale
        return 10 ** (found / 10) if self.decibel else found

    def _affine(self, images: jax.Array | np.ndarray) -> jax.Array:
        mean, std = np.asarray(self.mean, np.float64), jnp.array(self.std)
        if self.decibel:
            values = jnp.asarray(images, jnp.float32)
            # The logarithm of what has none would make gradients NaN.
            levels = 10 * jnp.log10(jnp.where(values > 0, values, 1))
            return (levels - jnp.asarray(mean, jnp.float32)) / std
        if self.scale != 1:
            pixels = jnp.asarray(images, jnp.float32) / self.scale
            return (pixels - jnp.asarray(mean, jnp.float32)) / std
        # What float32 cannot hold of a large mean is subtracted after the division,
        # where it is small: subtracted before, XLA would add both into one number.
        if images.dtype in _WIDE:
            near = np.rint(mean)
            offset = _difference(images, near)
        else:
            near = mean.astype(np.float32)
            offset = jnp.asarray(images, jnp.float32) - near
        return offset / std - jnp.asarray(mean - near, jnp.float32) / std


# Photographs in 0..1.
PIXELS = Normalization()


def _difference(images: jax.Array | np.ndarray, whole: np.ndarray) -> jax.Array:
    """Return images - whole of 32-bit integers, rounded once, to float32.

    whole: whole numbers, float64[c]. Each half of 16 bits is exact in float32.
    """
    high, low = np.divmod(whole, 2**16)
    images = jnp.asarray(images)
    upper = (images >> 16).astype(jnp.float32) - high.astype(np.float32)
    lower = (images & 0xFFFF).astype(jnp.float32) - low.astype(np.float32)
    return upper * 2**16 + lower


def _holds(dtype: jnp.dtype, value: float) -> bool:
    """Whether arrays of a dtype can have a value; NaN is always recognised."""
    if np.isnan(value):
        return False
    if jnp.issubdtype(dtype, jnp.floating):
        return True
    limits = jnp.iinfo(dtype)
    return value == int(value) and limits.min <= value <= limits.max
