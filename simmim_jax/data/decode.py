"""Encoded bytes to uint8 pixels, and the crops that training and evaluation take."""

import io
import math

import numpy as np
from PIL import Image, ImageOps

_MODES = {1: "L", 3: "RGB"}
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# torchvision's RandomResizedCrop gives up after as many boxes.
_CROP_TRIES = 10


def decode(data: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Decode an image file; check a raw image and pass it through.

    Photographs are turned upright by their EXIF tag, transparent pixels are laid on
    white, 16-bit gray keeps its upper byte, CMYK and palettes become RGB.

    data: an encoded image, or raw pixels uint8[h w c] or uint8[h w];
    channels: 1 (gray) or 3 (RGB) for encoded images, any number for raw pixels.
    returns: uint8[h w c].
    raises: ValueError if the bytes are no image or the channels cannot be had.
    """
    if isinstance(data, np.ndarray):
        return _check_raw(data, channels)
    if channels not in _MODES:
        raise ValueError(
            f"channels={channels} cannot be decoded from an image file: expected 1 "
            "(gray) or 3 (RGB). Hand other channel counts over as raw uint8 arrays."
        )
    try:
        with Image.open(io.BytesIO(data)) as file:
            image = ImageOps.exif_transpose(file)
            return _to_array(image, _MODES[channels])
    except (OSError, SyntaxError) as error:  # Pillow raises both on broken files.
        raise ValueError(
            f"{len(data)} bytes starting with {data[:8]!r} are not an image that "
            f"Pillow can read ({error}): expected JPEG, PNG, WebP or BMP. Remove or "
            "replace the file."
        ) from error


def random_resized_crop(
    image: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
) -> np.ndarray:
    """Cut a random box and resize it, as torchvision's RandomResizedCrop does.

    image: uint8[h w c]; size: (height, width) of the result; scale: range of the
    box's share of the area; ratio: range of its width / height, drawn on a log scale;
    interpolation: "bilinear" or "bicubic", both antialiased.
    returns: uint8[size c].
    """
    top, left, height, width = _random_box(image.shape[:2], rng, scale, ratio)
    box = image[top : top + height, left : left + width]
    return _resize(box, size, interpolation)


def resize_center_crop(
    image: np.ndarray, size: tuple[int, int], crop_fraction: float, interpolation: str
) -> np.ndarray:
    """Resize to cover size / crop_fraction, then cut `size` out of the middle.

    With crop_fraction=224/256 and a square size S this is the official evaluation:
    the short side to int(256 / 224 * S), then the centre crop. crop_fraction=1 means
    no crop: the whole image is resized to `size`, whatever its proportions.

    image: uint8[h w c]; size: (height, width); crop_fraction: in (0, 1];
    interpolation: "bilinear" or "bicubic".
    returns: uint8[size c]; the same array if there was nothing to do.
    """
    if not 0 < crop_fraction <= 1:
        raise ValueError(
            f"crop_fraction={crop_fraction} must be in (0, 1]: 224/256 is usual, "
            "1 resizes without a crop."
        )
    if crop_fraction == 1:
        return _resize(image, size, interpolation)
    height, width = image.shape[:2]
    cover_height, cover_width = (int(side / crop_fraction) for side in size)
    # The side that needs the larger factor lands exactly, the other one is cut
    # down to an integer, as torchvision's Resize does it.
    if cover_height * width >= cover_width * height:
        cover_width = cover_height * width // height
    else:
        cover_height = cover_width * height // width
    image = _resize(image, (cover_height, cover_width), interpolation)
    top = round((cover_height - size[0]) / 2)
    left = round((cover_width - size[1]) / 2)
    return image[top : top + size[0], left : left + size[1]]


def _check_raw(image: np.ndarray, channels: int) -> np.ndarray:
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        dimensions = " ".join(map(str, image.shape))
        raise ValueError(
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


def _random_box(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a box inside `shape` (height, width)."""
    height, width = shape
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    # The largest centred box whose proportions are allowed.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width = min(width, round(height * aspect))
    box_height = min(height, round(width / aspect))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return top, left, box_height, box_width


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    if interpolation not in _RESAMPLING:
        raise ValueError(
            f"interpolation={interpolation!r} is unknown: expected one of "
            f"{', '.join(map(repr, _RESAMPLING))}."
        )
    if image.shape[:2] == size:
        return image
    channels = image.shape[2]
    if channels not in _MODES:  # Pillow has no mode for them.
        parts = [
            _resize(image[:, :, c : c + 1], size, interpolation)
            for c in range(channels)
        ]
        return np.concatenate(parts, axis=2)
    pixels = image[:, :, 0] if channels == 1 else image
    resized = Image.fromarray(pixels).resize(size[::-1], _RESAMPLING[interpolation])
    return np.asarray(resized).reshape(*size, channels)
