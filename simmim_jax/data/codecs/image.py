"""Image files to uint8 pixels: JPEG by libjpeg-turbo, all other formats by Pillow."""

import dataclasses
import functools
import io
import struct
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from simmim_jax.data.codecs.base import MAX_PIXELS, BadImage, Codec
from simmim_jax.data.codecs.limits import check_file_size, check_jpeg_size
from simmim_jax.errors import UserError

__all__ = ["IMAGE", "BadImage", "Jpeg", "decode_jpeg", "read_jpeg_header"]

_MODES = {1: "L", 3: "RGB"}
# Formats found on the web, whatever the file names say. Pillow must not try others: it
# would run Ghostscript on the program in an EPS file.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF"),
    *("TIFF", "AVIF", "JPEG2000", "PPM"),
)
_JPEG_COLORS = {1: "GRAY", 3: "RGB"}
# EXIF orientation -> quarter turns to the left, then a mirror. By hand because Pillow
# takes twice as long: it copies the decoded image into its own layout and back.
_UPRIGHT = {
    **{1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True)},
    **{5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)},
}
# Pixels that are converted to an array at once: more only take memory.
_BAND = 2**20


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """Header of a JPEG: height and width as stored, EXIF orientation 1 to 8."""

    stored_height: int
    stored_width: int
    orientation: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        is_turned = self.orientation >= 5
        shape = self.stored_height, self.stored_width
        return shape[::-1] if is_turned else shape


def decode_image(
    data: bytes, channels: int, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an image file as Pillow does.

    Photographs are turned upright by their EXIF tag. Transparent pixels become white,
    16-bit gray keeps its upper byte, CMYK and palettes become RGB, an animation its
    first frame. The gray of a colour JPEG is its own luma, not Pillow's conversion.

    channels: 1 (gray) or 3 (RGB); max_pixels: a JPEG may have this
    many, some other formats fewer; see `limits`.
    returns: uint8 [h, w, c].
    raises: BadImage if the bytes are not a usable image, or one that is too large,
    UserError for other channels.
    """
    jpeg = read_jpeg_header(data, max_pixels)
    if jpeg is not None:
        try:
            return decode_jpeg(data, jpeg, channels)
        except ValueError:
            pass  # Pillow may still read it, or explains why it cannot.
    return _decode_by_pillow(data, channels, max_pixels)


def read_jpeg_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Jpeg | None:
    """Return the header of a gray, YCbCr or RGB JPEG; None for all other images.

    raises: BadImage if it is too large.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colors not in ("Gray", "YCbCr", "RGB"):
        return None
    check_jpeg_size(data, height, width, max_pixels)
    return Jpeg(height, width, _exif_orientation(data))


def decode_jpeg(
    data: bytes, jpeg: Jpeg, channels: int, reduction: int = 1
) -> np.ndarray:
    """Decode a JPEG, optionally at 1/2, 1/4 or 1/8 of its height and width.

    The reduction happens in the transform of 8x8 blocks: 1/4 takes half the time of the
    full image, at a better quality than skipping pixels. Reduced images also skip the
    smooth interpolation of colours, which nobody sees after the resize that follows.

    reduction: 1, 2, 4 or 8.
    returns: uint8 [ceil(h/reduction), ceil(w/reduction), c], upright.
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
    return _turned(image, jpeg.orientation)


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image [h w c] upright."""
    turns, mirrored = _UPRIGHT[orientation]
    if turns or mirrored:
        image = np.rot90(image, turns)
        image = np.ascontiguousarray(image[:, ::-1] if mirrored else image)
    return image


def _exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, 1 if unknown.

    Segments are walked by hand (2 us): Image.open takes 80 us, a tenth of the time to
    decode a 500x375 photograph. Pillow parses the EXIF segment itself.
    """
    start = 2
    while data[start : start + 1] == b"\xff" and len(data) >= start + 4:
        marker, length = struct.unpack_from(">BH", data, start + 1)
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            break
        segment = data[start + 4 : start + 2 + length]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            return _orientation_in(functools.partial(_loaded, segment))
        start += 2 + length
    return 1


def _orientation_in(exif: Callable[[], Image.Exif]) -> int:
    """Return the EXIF orientation, 1 if there is none or the EXIF data is broken."""
    try:
        orientation = exif().get(ExifTags.Base.Orientation)
        return orientation if orientation in _UPRIGHT else 1
    except Exception:  # Broken EXIF raises exceptions of many types.
        return 1


def _loaded(segment: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(segment)
    return exif


def _decode_by_pillow(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    _check_channels(channels)
    if not data:
        raise BadImage("empty", "The file is empty.")
    start = f"{len(data)} bytes starting with {data[:8]!r}"
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
            check_file_size(file, data, max_pixels)
            file.load()
            orientation = _orientation_in(file.getexif)
            return _turned(_to_array(file, channels), orientation)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(
            "too large",
            f"{start} are too large for Pillow ({error}): shrink the image.",
        ) from error
    except UnidentifiedImageError as error:
        raise BadImage(
            "not an image",
            f"{start} are not an image that Pillow can read: expected JPEG, PNG, "
            "WebP, GIF or BMP.",
        ) from error
    except Exception as error:  # Pillow's decoders raise exceptions of many types.
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise BadImage(
            reason, f"{start} are not an image that Pillow can read ({error})."
        ) from error


def _check_channels(channels: int) -> None:
    if channels not in _MODES:
        raise UserError(
            f"channels={channels} cannot be decoded from an image file: expected 1 "
            "(gray) or 3 (RGB). Set --config.data.channels (simmim pack: --channels) "
            "to one of them, or store other channel counts as .npy arrays."
        )


def _to_array(image: Image.Image, channels: int) -> np.ndarray:
    """Return uint8 [h, w, c], converted band by band to save memory."""
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        return _convert(image, channels)
    array = np.empty((image.height, image.width, channels), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        band = image.crop((0, top, image.width, bottom))
        array[top:bottom] = _convert(band, channels)
    return array


def _convert(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit gray: convert() would clip it at 255
        high_byte = np.clip(np.asarray(image).astype(np.int32) >> 8, 0, 255)
        image = Image.fromarray(high_byte.astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.array(image.convert(_MODES[channels]))
    return array if array.ndim == 3 else array[:, :, None]


# Pillow recognises its formats, most of them by their own signatures.
IMAGE = Codec("image", b"", decode_image)
