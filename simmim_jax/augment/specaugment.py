"""SpecAugment (Park et al. 2019): hide spans of time and ranges of bands."""

import jax
import jax.numpy as jnp

# Share of an utterance that one mask hides at most (Park et al. 2020, adaptive size).
_LARGEST = 0.2


def spec_augment(
    key: jax.Array,
    images: jax.Array,
    num_frames: jax.Array,
    *,
    time_masks: int,
    time_width: int,
    band_masks: int,
    band_width: int,
) -> jax.Array:
    """Replace parts of each spectrogram of [b bands frames 1] by 0, the mean.

    num_frames: int[b], those that count; time_masks, band_masks: how many parts;
    time_width [frames], band_width [bands]: a width is uniform from 0 to it, or to a
    fifth of an utterance. There is no time warping.
    """
    _, bands, frames, _ = images.shape
    in_time, in_bands = jax.random.split(key)
    longest = jnp.minimum(time_width, jnp.floor(_LARGEST * num_frames))
    hidden = _spans(in_time, time_masks, longest, num_frames, frames)[:, None, :]
    widest = jnp.full(len(images), min(band_width, bands))
    all_bands = jnp.full(len(images), bands)
    hidden |= _spans(in_bands, band_masks, widest, all_bands, bands)[:, :, None]
    return jnp.where(hidden[..., None], 0, images)


def _spans(
    key: jax.Array, count: int, widest: jax.Array, end: jax.Array, length: int
) -> jax.Array:
    """Return bool[b length], True in `count` spans that end before `end` float[b]."""
    width, start = jax.random.uniform(key, (2, len(end), count, 1))
    width = jnp.floor(width * (widest[:, None, None] + 1))
    start = jnp.floor(start * (end[:, None, None] - width + 1))
    place = jnp.arange(length)
    return ((place >= start) & (place < start + width)).any(1)
