"""Image files to pixels: JPEG by libjpeg-turbo, all other formats by Pillow.

Those of more than 8 bits a sample are left to OpenCV: Pillow cuts colours to 8 bits,
and multiplies grey JPEG 2000 and PGM pixels to fill 16 bits.
"""

import dataclasses
import functools
import io
import struct
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from simmim_jax.data.codecs.base import MAX_PIXELS, BadImage, Codec, Decoding, Raster
from simmim_jax.data.codecs.limits import check_file_size, check_jpeg_size

__all__ = ["IMAGE", "BadImage", "Jpeg", "decode_jpeg", "read_jpeg_header"]

# Grey and RGB, which photographs are converted to.
PHOTO_CHANNELS = (1, 3)
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
# Of ITU-R BT.601, as in Pillow.
_LUMA = np.array([0.299, 0.587, 0.114])
# Pixels that are converted to an array at once: more only take memory.
_BAND = 2**20


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """Header of a JPEG: height and width as stored, EXIF orientation 1 to 8."""

    stored_height: int
    stored_width: int
    channels: int
    orientation: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        is_turned = self.orientation >= 5
        shape = self.stored_height, self.stored_width
        return shape[::-1] if is_turned else shape


def decode_image(data: bytes, decoding: Decoding) -> Raster:
    """Decode an image file.

    Photographs are turned upright by their EXIF tag. CMYK and palettes become RGB, an
    animation its first frame. With channels 1 or 3, colours become grey and grey RGB,
    and transparent pixels white; the grey of a colour JPEG is its own luma, not
    Pillow's conversion. Files of more than 8 bits a sample keep their values.

    returns: uint8 or uint16, with the channels of the file if none are wanted.
    raises: BadImage if the bytes are not a usable image, or one that is too large.
    """
    jpeg = read_jpeg_header(data, decoding.max_pixels)
    if jpeg is not None:
        try:
            channels = decoding.channels
            if channels not in PHOTO_CHANNELS:
                channels = jpeg.channels
            return Raster(decode_jpeg(data, jpeg, channels))
        except ValueError:
            pass  # Pillow may still read it, or explains why it cannot.
    return Raster(_decode_by_pillow(data, decoding))


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
    return Jpeg(height, width, 1 if colors == "Gray" else 3, _exif_orientation(data))


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
    image = simplejpeg.decode_jpeg(
        data,
        _JPEG_COLORS[channels],
        fastupsample=reduction > 1,
        min_height=-(-jpeg.stored_height // reduction) if reduction > 1 else 0,
        min_width=-(-jpeg.stored_width // reduction) if reduction > 1 else 0,
    )
    return turned(image, jpeg.orientation)


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image [h, w, c] of an EXIF orientation upright."""
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


def _decode_by_pillow(data: bytes, decoding: Decoding) -> np.ndarray:
    if not data:
        raise BadImage("empty", "The file is empty.")
    start = f"{len(data)} bytes starting with {data[:8]!r}"
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
            check_file_size(file, data, decoding.max_pixels)
            is_deep = _is_deep(file, data)
            file.load()  # its errors say more than OpenCV's
            orientation = _orientation_in(file.getexif)
            if is_deep:
                image = _decode_deep(data, file.mode, decoding.channels)
            elif decoding.indices:
                image = _indices(file, data)
            else:
                image = _to_array(file, decoding.channels)
            return turned(image, orientation)
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


# ---- 8 bits a sample -----------------------------------------------------------------


def _to_array(image: Image.Image, channels: int | None) -> np.ndarray:
    """Return uint8 [h, w, c], converted strip by strip to save memory."""
    mode, is_transparent = _target(image, channels)
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        return _convert(image, mode, is_transparent)
    array = np.empty((image.height, image.width, len(mode)), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = image.crop((0, top, image.width, bottom))
        array[top:bottom] = _convert(strip, mode, is_transparent)
    return array


def _indices(file: ImageFile.ImageFile, data: bytes) -> np.ndarray:
    """Return uint8 [h, w, c]: indices of a palette, or grey levels as a PNG has them.

    Pillow stretches levels of 1, 2 and 4 bits to 0..255.
    """
    array = np.asarray(file.convert("L") if file.mode == "1" else file)
    bits = data[24] if file.format == "PNG" else 8  # of IHDR, the first chunk
    if file.mode == "1":
        array = array // 255
    elif file.mode == "L":
        array = array // (255 // (2**bits - 1))
    return array if array.ndim == 3 else array[:, :, None]


def _target(image: Image.Image, channels: int | None) -> tuple[str, bool]:
    """Return the mode an image is converted to, and whether pixels become white."""
    has_alpha = image.has_transparency_data
    if channels in PHOTO_CHANNELS:
        return _MODES[channels], has_alpha and _is_mask(image)
    is_grey = image.mode in ("1", "L", "LA")
    return {
        (True, False): "L",
        (True, True): "LA",
        (False, False): "RGB",
        (False, True): "RGBA",
    }[is_grey, has_alpha], False


def _is_mask(image: Image.Image) -> bool:
    """Whether the alpha of an image means transparency.

    Half of it at least is all or nothing then. Otherwise it is a fourth measurement,
    such as near infrared, that somebody stored as a PNG.
    """
    if "A" not in image.getbands():
        return True  # the file names a transparent colour
    counts = image.getchannel("A").histogram()
    return 2 * (counts[0] + counts[255]) >= image.width * image.height


def _convert(image: Image.Image, mode: str, is_transparent: bool) -> np.ndarray:
    if is_transparent:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.array(image if image.mode == mode else image.convert(mode))
    return array if array.ndim == 3 else array[:, :, None]


# ---- More than 8 bits a sample -------------------------------------------------------


def _is_deep(file: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether an image that Pillow has opened has more than 8 bits a sample."""
    match file.format:
        case "PNG":
            return data[24] > 8  # of IHDR, the first chunk
        case "JPEG2000":
            start = data.find(b"\xff\x4f\xff\x51")  # the size marker
            return start >= 0 and data[start + 42] & 0x7F >= 8
        case "PPM":
            # Pillow passes the largest value to its own decoder of such colours.
            args = file.tile[0].args
            is_color = isinstance(args, tuple) and args[-1] > 255
            return is_color or file.mode.startswith("I")
    return False


def _decode_deep(data: bytes, mode: str, channels: int | None) -> np.ndarray:
    """Return uint16 [h, w, c].

    mode: Pillow's name of the file's channels.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        raise ValueError(f"OpenCV cannot decode its {mode} pixels")
    image = image.reshape(*image.shape[:2], -1)
    match image.shape[2]:
        case 3:
            image = image[:, :, ::-1]
        case 4:  # OpenCV repeats the grey of grey with alpha
            image = image[:, :, [0, 3] if mode == "LA" else [2, 1, 0, 3]]
    if channels not in PHOTO_CHANNELS:
        return np.ascontiguousarray(image)
    return as_photograph(image, channels)


def as_photograph(image: np.ndarray, channels: int) -> np.ndarray:
    """Return an image [h, w, c] in grey or RGB; transparent pixels become white.

    image: grey or RGB of any dtype, the last of 2 or 4 channels is alpha; channels: 1
    or 3.
    """
    if image.shape[2] not in PHOTO_CHANNELS:
        image = _on_white(image)
    if image.shape[2] == 3 and channels == 1:
        luma = image @ _LUMA
        if image.dtype.kind in "iu":
            luma = np.rint(luma)
        image = luma.astype(image.dtype)[:, :, None]
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], channels)))


def _on_white(image: np.ndarray) -> np.ndarray:
    """Return an image without the alpha that is its last channel."""
    colors, alpha = image[:, :, :-1], image[:, :, -1:]
    if image.dtype.kind != "u":
        return colors
    white = np.iinfo(image.dtype).max
    if 2 * np.isin(alpha, (0, white)).sum() < alpha.size:
        return colors  # as in `_is_mask`
    share = alpha.astype(np.float32) / white
    return np.rint(share * colors + (1 - share) * white).astype(image.dtype)


# Pillow recognises its formats, most of them by their own signatures.
IMAGE = Codec("image", b"", decode_image)
