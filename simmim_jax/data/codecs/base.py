"""What a codec is: one encoding of images, recognised by its first bytes."""

import dataclasses
from collections.abc import Callable

import numpy as np

from simmim_jax.errors import UserError

# What arrays may hold: images, and measured values.
DTYPES = (np.dtype(np.uint8), np.dtype(np.float32))


class BadImage(UserError):
    """Bytes that are not a usable image.

    reason: "empty", "not an image", "truncated", "corrupt" or "too large".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(f"{message} Remove or replace the file.")
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Codec:
    """One encoding of images.

    name: for messages; signature: the bytes, or one of several, that stand at `offset`
    of every such file; decode(data, channels): returns [h, w, c], uint8 or float32, and
    raises BadImage if the bytes are damaged, UserError if they can never be decoded so.
    """

    name: str
    signature: bytes | tuple[bytes, ...]
    decode: Callable[[bytes, int], np.ndarray]
    offset: int = 0

    def matches(self, data: bytes) -> bool:
        """Whether the signature is there."""
        return data.startswith(self.signature, self.offset)


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
            f"[h, w, {channels}] since channels={channels}. Set channels to what the "
            "data has, or convert the data."
        )
    return image
