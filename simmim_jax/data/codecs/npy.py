"""NumPy's .npy files: arrays of numbers."""

import functools
import io
import math
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np

from simmim_jax.data.codecs.base import (
    BadImage,
    Codec,
    Decoding,
    Raster,
    array_dtype,
    check_array_size,
    native,
)
from simmim_jax.errors import UserError

MAGIC = b"\x93NUMPY"
_USUAL_HEADER = 128  # bytes of most headers, padded by NumPy
# Version 3 differs in the names of fields alone, and `array_dtype` refuses fields.
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """Layout of the array in a .npy file; offset: of its first byte."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of a complete file [bytes]."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> Header:
    """Read the header of a .npy file.

    raises: BadImage if it is damaged.
    """
    try:
        version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
        header = _READERS[version](file)  # type: ignore[operator]
        return Header(*header, file.tell())
    except Exception as error:  # NumPy evaluates a literal: damage raises many types
        is_short = str(error).startswith("EOF: reading")
        raise BadImage(
            "truncated" if is_short else "corrupt",
            f"The header of a .npy file cannot be read ({error!s:.100}).",
        ) from error


def decode_npy(data: bytes, decoding: Decoding) -> Raster:
    """Decode a .npy file that holds one array [h, w] or [h, w, c].

    returns: an image in C order and native byte order.
    raises: BadImage if the file is damaged or the image too large, UserError for
    another shape or dtype.
    """
    # Views the bytes, or converts them to at most twice their size.
    image = decode_array(data)
    check_array_size(image, decoding.max_pixels)
    return Raster(image)


def decode_array(data: bytes, where: str = "A .npy file") -> np.ndarray:
    """Decode a .npy file of an image, with as many channels as it has."""
    header = _header_of(data)
    array_dtype(header.dtype, where)
    if len(header.shape) not in (2, 3):
        raise UserError(
            f"{where} has shape {_text(header.shape)}: expected one image, [h, w] or "
            "[h, w, c]. Give a file of many images [n, h, w, c] itself as the data "
            "set, not its folder."
        )
    count = math.prod(header.shape)
    if min(header.shape) < 1:
        raise BadImage("empty", f"{where} has shape {_text(header.shape)}.")
    if len(data) < header.num_bytes:
        raise BadImage(
            "truncated",
            f"{where} has {len(data):,} bytes: expected {header.num_bytes:,} for shape "
            f"{_text(header.shape)}.",
        )
    array = np.frombuffer(data, header.dtype, count, header.offset)
    array = array.reshape(header.shape, order="F" if header.is_fortran else "C")
    if array.ndim == 2:
        array = array[:, :, None]
    return np.ascontiguousarray(native(array, where))


def _header_of(data: bytes) -> Header:
    """Return the header of a file in memory."""
    size = 10 + int.from_bytes(data[8:10], "little")
    if data[6:8] == b"\1\0" and size <= _USUAL_HEADER:
        return _parsed(data[:size])
    return read_header(io.BytesIO(data))


@functools.lru_cache
def _parsed(header: bytes) -> Header:
    """Return the header of a file: often that of the last one; parsing takes 50 us."""
    return read_header(io.BytesIO(header))


def encode_npy(array: np.ndarray) -> bytes:
    """Return the .npy file of an array."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _text(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


NPY = Codec(".npy", MAGIC, decode_npy)
