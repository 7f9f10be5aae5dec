"""What a codec is: one encoding of images, recognised by its first bytes."""

import dataclasses
from collections.abc import Callable

import numpy as np

from simmim_jax.errors import UserError

# Largest image that is decoded, unless a config says otherwise [pixels].
MAX_PIXELS = 64_000_000
# What arrays may hold: images, and measured values.
DTYPES = (np.dtype(np.uint8), np.dtype(np.float32))
# float16 converts exactly, float64 is rounded to 7 digits.
_TO_FLOAT32 = (np.dtype(np.float16), np.dtype(np.float64))


class BadImage(UserError):
    """Bytes that are not a usable image.

    reason: "empty", "not an image", "truncated", "corrupt" or "too large";
    filename: the file they came from, if a source decoded it.
    """

    filename = ""

    def __init__(self, reason: str, message: str):
        remedy = "" if reason == "too large" else " Remove or replace the file."
        super().__init__(message + remedy)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Codec:
    """One encoding of images.

    name: for messages; signature: the bytes, or one of several, that stand at `offset`
    of every such file; decode(data, channels, max_pixels): returns [h, w, c], uint8 or
    float32, and raises BadImage if the bytes are damaged or their header announces more
    than `max_pixels` pixels, UserError if they can never be decoded so.
    """

    name: str
    signature: bytes | tuple[bytes, ...]
    decode: Callable[[bytes, int, int], np.ndarray]
    offset: int = 0

    def matches(self, data: bytes) -> bool:
        """Whether the signature is there."""
        return data.startswith(self.signature, self.offset)


def check_array_size(image: np.ndarray, max_pixels: int) -> None:
    """Raise BadImage if an array [h, w, c] has more than `max_pixels` pixels."""
    height, width, _ = image.shape
    if height * width > max_pixels:
        raise too_large(
            f"An array has {width:,} x {height:,} pixels", f"{max_pixels:,}", max_pixels
        )


def too_large(what: str, allowed: str, max_pixels: int) -> BadImage:
    """Return the error for an image that is not decoded.

    what: its size, in words; allowed: what `max_pixels` allows such an image.
    """
    return BadImage(
        "too large",
        f"{what}: expected at most {allowed} with max_image_pixels={max_pixels:,}. "
        "Raise --config.data.max_image_pixels (simmim pack: --max_image_pixels), or "
        "shrink the image.",
    )


def check_array(image: np.ndarray, channels: int) -> np.ndarray:
    """Return an array [h, w, c] or [h, w] as [h, w, c].

    raises: UserError unless it is uint8 or float32 and has that many channels.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype not in DTYPES or image.ndim != 3 or image.shape[2] != channels:
        dimensions = ", ".join(map(str, image.shape))
        raise UserError(
            f"An image is {image.dtype} [{dimensions}]: expected uint8 or float32 "
            f"[h, w, {channels}] since channels={channels}. Set --config.data.channels "
            "(simmim pack: --channels) to what the data has, or convert the data."
        )
    return image


def array_dtype(dtype: np.dtype, where: str) -> np.dtype:
    """Return the dtype that arrays of this dtype are converted to: uint8 or float32.

    where: the array, for messages.
    raises: UserError for all dtypes other than uint8, float16, float32 and float64.
    """
    native = dtype.newbyteorder("=")
    if native in DTYPES:
        return native
    if native in _TO_FLOAT32:
        return np.dtype(np.float32)
    hint = (
        "Python objects are never unpickled: save one array of numbers."
        if dtype.hasobject
        else "Convert it, with array.astype(np.float32) for example."
    )
    raise UserError(
        f"{where} has dtype {dtype}: expected uint8 or float32 (float16 and float64 "
        f"are converted to float32). {hint}"
    )
