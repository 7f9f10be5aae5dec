"""What a codec is: one encoding of images, recognised by its first bytes."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from simmim_jax.errors import UserError

# Largest image that is decoded, unless a config says otherwise [pixels].
MAX_PIXELS = 64_000_000
# What arrays may hold, in native byte order: images, and measured values.
DTYPES = tuple(
    np.dtype(name)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
)
# Devices have no 64-bit numbers. float16 and bool convert exactly, float64 is rounded
# to 7 digits, and integers have to fit.
_CONVERTED = {
    np.dtype(given): np.dtype(taken)
    for given, taken in {
        "bool": "uint8",
        "int64": "int32",
        "uint64": "uint32",
        "float16": "float32",
        "float64": "float32",
    }.items()
}


class BadImage(UserError):
    """Bytes that are not a usable image.

    reason: "empty", "not an image", "not audio", "truncated", "corrupt", "other
    values", "wrong mask", "too large" or "needs raqm"; filename: the file they came
    from, if a source decoded it.
    """

    filename = ""

    def __init__(self, reason: str, message: str):
        has_remedy = reason in _WITH_REMEDY
        super().__init__(message + ("" if has_remedy else _REMEDY))
        self.reason = reason


_REMEDY = " Remove or replace the file."
# Reasons whose messages say what to do.
_WITH_REMEDY = ("too large", "other values", "wrong mask", "needs raqm")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What is wanted of an image.

    channels: number of channels; 1 or 3 turns photographs into grey or RGB; None: as
    many as the file has;
    bands: names of the channels, in the order of the result; (): the file's own;
    fill_bands: those that a file lacks become pixels without a measurement;
    value_range: these values become 0 and 255, in uint8; None: values stay;
    nodata: replaces a file's own value for pixels without a measurement; None: it
    stays;
    level: of an image pyramid, 0 is the full resolution;
    max_pixels: larger images are bad images; some codecs allow fewer;
    indices: of a palette, in place of its colours, and grey levels of 1, 2 or 4 bits as
    they are, not stretched to 8.
    """

    channels: int | None = None
    bands: tuple[str, ...] = ()
    fill_bands: bool = False
    value_range: tuple[float, float] | None = None
    nodata: float | None = None
    level: int = 0
    max_pixels: int = MAX_PIXELS
    indices: bool = False


@dataclasses.dataclass(frozen=True)
class Raster:
    """A decoded image.

    pixels: [h, w, c] of one of DTYPES;
    bands: a name per channel, () where the file has none;
    nodata: value of pixels without a measurement, None if the file declares none. NaN
    never is a measurement.
    """

    pixels: np.ndarray
    bands: tuple[str, ...] = ()
    nodata: float | None = None


class BandArray(np.ndarray):
    """An array [h, w, c] of a source, with what a file says of it.

    bands, nodata: as in `Raster`; arrays made of this one do not have them.
    """

    bands: tuple[str, ...] = ()
    nodata: float | None = None

    @staticmethod
    def of(raster: Raster) -> "BandArray":
        """Return the pixels of a raster, which know the rest of it."""
        array = raster.pixels.view(BandArray)
        array.bands, array.nodata = raster.bands, raster.nodata
        return array


@dataclasses.dataclass(frozen=True)
class Codec:
    """One encoding of images.

    name: for messages; signature: the bytes, or one of several, that stand at `offset`
    of every such file; decode(data, decoding): returns a Raster, and raises BadImage if
    the bytes are damaged or their header announces more than `decoding.max_pixels`
    pixels, UserError if they can never be decoded so. Of `decoding`, a codec sees to
    channels of photographs, level and max_pixels; `registry.decode` to the rest.
    """

    name: str
    signature: bytes | tuple[bytes, ...]
    decode: Callable[[bytes, Decoding], Raster]
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


def as_image(array: np.ndarray, where: str) -> np.ndarray:
    """Return an array [h, w] or [h, w, c] as [h, w, c] of one of DTYPES.

    where: the array, for messages.
    raises: UserError for other shapes and dtypes, and for integers that do not fit.
    """
    if array.ndim not in (2, 3):
        raise UserError(
            f"{where} has shape {list(array.shape)}: expected one image, [h, w] or "
            "[h, w, c]."
        )
    array = native(array, where)
    return array if array.ndim == 3 else array[:, :, None]


def native(array: np.ndarray, where: str) -> np.ndarray:
    """Return an array in the dtype that `array_dtype` says; the same one if it has it.

    raises: UserError as `array_dtype`, and for integers that do not fit.
    """
    dtype = array_dtype(array.dtype, where)
    if array.dtype.itemsize > dtype.itemsize and dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        low, high = array.min(), array.max()
        if low < limits.min or high > limits.max:
            raise UserError(
                f"{where} has {array.dtype} values from {low} to {high}: expected "
                f"{limits.min} to {limits.max}, which is {dtype}. Scale them, or "
                "convert them to float32."
            )
    return array.astype(dtype, copy=False)


def array_dtype(dtype: np.dtype, where: str) -> np.dtype:
    """Return the dtype that arrays of this dtype are converted to, one of DTYPES.

    where: the array, for messages.
    raises: UserError for dtypes that are not real numbers.
    """
    own = dtype.newbyteorder("=")
    if own in DTYPES:
        return own
    if own in _CONVERTED:
        return _CONVERTED[own]
    hint = (
        "Python objects are never unpickled: save one array of numbers."
        if dtype.hasobject
        else "Convert it, with array.astype(np.float32) for example."
    )
    raise UserError(
        f"{where} has dtype {dtype}: expected integers of 8 to 32 bits or float32 "
        f"(64-bit integers that fit, float16 and float64 are converted). {hint}"
    )


def check_channels(image: np.ndarray, channels: int | None, what: str) -> None:
    """Raise UserError unless an image [h, w, c] has that many channels.

    what: the image, for messages.
    """
    if channels is not None and image.shape[2] != channels:
        raise UserError(
            f"{what} is {image.dtype} {list(image.shape)}: expected "
            f"[h, w, {channels}] since channels={channels}. Set --config.data.channels "
            "(simmim pack: --channels) to what the data has, or choose bands with "
            "--config.data.bands."
        )


def to_range(
    image: np.ndarray, value_range: Sequence[float], nodata: float | None = None
) -> np.ndarray:
    """Map values linearly to 0..255, as uint8; those outside are clipped.

    value_range: the values that become 0 and 255. NaN and `nodata` become 0.
    """
    low, high = value_range
    levels = (image.astype(np.float64) - low) * (255 / (high - low))
    if nodata is not None:
        levels[image == nodata] = 0
    return np.nan_to_num(np.rint(levels.clip(0, 255))).astype(np.uint8)
