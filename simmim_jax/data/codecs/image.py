"""Encoded bytes to uint8 pixels: JPEG by libjpeg-turbo, all else by Pillow."""

import dataclasses
import io
import struct

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from simmim_jax.errors import UserError

_MODES = {1: "L", 3: "RGB"}
# What images on the web are, whatever their names say, and all that Pillow is to try:
# to show an EPS file, it would run Ghostscript on the program in it.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF"),
    *("TIFF", "AVIF", "JPEG2000", "PPM"),
)
_JPEG_COLORS = {1: "GRAY", 3: "RGB"}
# As many as Pillow reads: more is taken for a decompression bomb.
_MAX_PIXELS = 178_956_970
_EXIF_ORIENTATION = 0x0112
# How an EXIF orientation becomes upright: quarter turns to the left, then a mirror.
_UPRIGHT = {
    **{1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True)},
    **{5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)},
}


class BadImage(UserError):
    """Bytes that are no usable image.

    reason: "empty", "not an image", "truncated", "corrupt" or "too large".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(f"{message} Remove or replace the file.")
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """What the header of a JPEG says: sizes as stored, EXIF orientation 1 to 8."""

    stored_height: int
    stored_width: int
    orientation: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        turned = self.orientation >= 5
        shape = self.stored_height, self.stored_width
        return shape[::-1] if turned else shape


def decode(data: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Decode an image file; check a raw image and pass it through.

    Photographs are turned upright by their EXIF tag, transparent pixels are laid on
    white, 16-bit gray keeps its upper byte, CMYK and palettes become RGB, of an
    animation the first picture counts. The pixels are those that Pillow decodes, but
    for the gray of a colour JPEG, which is its own luma.

    data: an encoded image, or raw pixels uint8[h w c] or uint8[h w];
    channels: 1 (gray) or 3 (RGB) for encoded images, any number for raw pixels.
    returns: uint8[h w c].
    raises: BadImage if the bytes are no usable image; ValueError if the channels cannot
    be had.
    """
    if isinstance(data, np.ndarray):
        return _check_raw(data, channels)
    jpeg = read_jpeg_header(data)
    if jpeg is not None:
        try:
            return decode_jpeg(data, jpeg, channels)
        except ValueError:
            pass  # Pillow may still read it, or knows what is wrong with it.
    return _decode_by_pillow(data, channels)


def read_jpeg_header(data: bytes) -> Jpeg | None:
    """The header of a gray, YCbCr or RGB JPEG of a sane size; None for all else."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colors not in ("Gray", "YCbCr", "RGB") or height * width > _MAX_PIXELS:
        return None
    return Jpeg(height, width, _exif_orientation(data))


def decode_jpeg(
    data: bytes, jpeg: Jpeg, channels: int, reduction: int = 1
) -> np.ndarray:
    """Decode a JPEG, `reduction` (1, 2, 4 or 8) times smaller in height and width.

    Reduced in the transform of its 8x8 blocks: 1/4 takes half the time of the whole,
    at better quality than from skipping pixels. What is then made smaller still can do
    without the smooth interpolation of colours, too.

    returns: uint8[ceil(h/reduction) ceil(w/reduction) c] of the upright image.
    raises: ValueError if the file is damaged.
    """
    _check_channels(channels)
    image = simplejpeg.decode_jpeg(
        data,
        _JPEG_COLORS[channels],
        fastupsample=reduction > 1,
        min_height=-(-jpeg.stored_height // reduction) if reduction > 1 else 0,
        min_width=-(-jpeg.stored_width // reduction) if reduction > 1 else 0,
    )
    turns, mirrored = _UPRIGHT[jpeg.orientation]
    if turns or mirrored:
        image = np.rot90(image, turns)
        image = np.ascontiguousarray(image[:, ::-1] if mirrored else image)
    return image


def _exif_orientation(data: bytes) -> int:
    """1 to 8, from the application segments that a JPEG starts with; 1 if unknown."""
    start = 2
    while data[start : start + 1] == b"\xff" and len(data) >= start + 4:
        marker, length = struct.unpack_from(">BH", data, start + 1)
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            break
        segment = data[start + 4 : start + 2 + length]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif = Image.Exif()
            try:
                exif.load(segment)
                orientation = exif.get(_EXIF_ORIENTATION, 1)
            except Exception:  # see `_upright`
                return 1
            return orientation if orientation in _UPRIGHT else 1
        start += 2 + length
    return 1


def _decode_by_pillow(data: bytes, channels: int) -> np.ndarray:
    _check_channels(channels)
    if not data:
        raise BadImage("empty", "The file is empty.")
    start = f"{len(data)} bytes starting with {data[:8]!r}"
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
            if file.width * file.height > _MAX_PIXELS:
                raise Image.DecompressionBombError
            file.load()
            return _to_array(_upright(file), _MODES[channels])
    except Image.DecompressionBombError as error:
        raise BadImage(
            "too large",
            f"{start} are an image of more than {_MAX_PIXELS:,} pixels, which may be "
            "an attack on memory: expected fewer.",
        ) from error
    except UnidentifiedImageError as error:
        raise BadImage(
            "not an image",
            f"{start} are not an image that Pillow can read: expected JPEG, PNG, "
            "WebP, GIF or BMP.",
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever comes up.
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise BadImage(
            reason, f"{start} are not an image that Pillow can read ({error})."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as many kinds as there are broken cameras
        return image


def _check_channels(channels: int) -> None:
    if channels not in _MODES:
        raise UserError(
            f"channels={channels} cannot be decoded from an image file: expected 1 "
            "(gray) or 3 (RGB). Hand other channel counts over as raw uint8 arrays."
        )


def _check_raw(image: np.ndarray, channels: int) -> np.ndarray:
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        dimensions = " ".join(map(str, image.shape))
        raise UserError(
            f"A raw image is {image.dtype}[{dimensions}]: expected "
            f"uint8[h w {channels}] since channels={channels}. Set channels to what "
            "the data has, or convert the data."
        )
    return image


def _to_array(image: Image.Image, mode: str) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit gray; convert() would clip it at 255.
        high_byte = np.clip(np.asarray(image).astype(np.int32) >> 8, 0, 255)
        image = Image.fromarray(high_byte.astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.array(image.convert(mode))
    return array if array.ndim == 3 else array[:, :, None]
