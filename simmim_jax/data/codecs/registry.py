"""Decode images of any encoding; the content decides which, not the file name."""

import numpy as np

from simmim_jax.data.codecs.base import MAX_PIXELS, Codec, check_array, check_array_size
from simmim_jax.data.codecs.image import IMAGE
from simmim_jax.data.codecs.npy import NPY

# The first match decodes. IMAGE matches everything: Pillow tells its formats apart.
CODECS = (NPY, IMAGE)
_registered: list[Codec] = []


def register_codec(codec: Codec) -> Codec:
    """Add a codec, tried before all others; one of the same name is replaced.

    Worker processes import the main module again, and no other: call this at its top
    level or in a module that it imports.
    """
    _registered[:] = [codec, *(c for c in _registered if c.name != codec.name)]
    return codec


def registered_codecs() -> tuple[Codec, ...]:
    """Return what `register_codec` has added, to register it in another process."""
    return tuple(_registered)


def codec_of(data: bytes) -> Codec:
    """Return the codec that decodes these bytes."""
    matching = (c for c in (*_registered, *CODECS) if c.matches(data))
    return next(matching)  # IMAGE matches all bytes


def decode(
    data: bytes | np.ndarray, channels: int, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an encoded image; check an array and return it unchanged.

    data: an encoded image, or an array [h, w, c] or [h, w], uint8 or float32;
    channels: 1 (gray) or 3 (RGB) for photographs, what the data has for arrays;
    max_pixels: largest image that is decoded; some codecs allow fewer.
    returns: [h, w, c], uint8 or float32.
    raises: BadImage if the bytes are not a usable image, or one that is too large;
    UserError for a wrong dtype or number of channels.
    """
    if isinstance(data, np.ndarray):
        image = check_array(data, channels)
        check_array_size(image, max_pixels)
        return image
    return codec_of(data).decode(data, channels, max_pixels)
