"""Crops of training and evaluation, and how they are resized.

Exact means: box by box and pixel by pixel what torchvision computes with Pillow. Fast
means the same boxes, and pixels that differ by about 1 of 255 on average (bounds:
tests/data/views/test_crop.py): a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where
the crop allows it, and OpenCV resizes the rest, also values of 16 bits and float32.
"""

import functools
import math

import cv2
import numpy as np
from PIL import Image

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.image import (
    IMAGE,
    PHOTO_CHANNELS,
    Jpeg,
    decode_jpeg,
    read_jpeg_header,
)
from simmim_jax.data.codecs.registry import codec_of, decode
from simmim_jax.errors import UserError

Box = tuple[float, float, float, float]  # top, left, height, width

_RESAMPLING = {each.name.lower(): each for each in Image.Resampling}
# Numbers of channels that Pillow has a mode for.
_PILLOW_CHANNELS = (1, 3)
_PILLOW_DTYPES = tuple(np.dtype(name) for name in ("uint8", "int32", "float32"))
# What float32 holds exactly, and how many channels OpenCV resizes at once.
_FAST_DTYPES = tuple(
    map(np.dtype, ("uint8", "int8", "uint16", "int16", "float32")),
)
_FAST_CHANNELS = 128
# Maximum number of boxes drawn, as in torchvision's RandomResizedCrop.
_CROP_TRIES = 10
# The three taps of `_smoothing` cannot shrink more; a reduced JPEG and boxes of 3:4 to
# 4:3 of the result need at most this.
_MAX_SHRINK = 2 * 4 / 3
# Largest image that is resized as a whole before its middle is cut out; 64 MB in
# Pillow.
_MAX_PIXELS_TO_CUT = 2**24


def random_crop(
    data: bytes | np.ndarray,
    decoding: Decoding,
    *,
    size: tuple[int, int],
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
    fast: bool,
) -> np.ndarray:
    """Decode, cut a random box and resize it, as torchvision's RandomResizedCrop does.

    data, decoding: as in `decode`; size: (height, width) of the result;
    scale: range of the box's share of the area; ratio: range of its width / height,
    drawn on a log scale; interpolation: a filter of Pillow, such as "bilinear"; fast:
    see above; the boxes are the same.
    returns: [size c] of the dtype of the image.
    raises: as `decode`; UserError for an unknown interpolation.
    """
    jpeg = _reducible(data, decoding) if fast else None
    if jpeg is None:
        image = decode(data, decoding)
        box = _random_box(image.shape[:2], rng, scale, ratio)
        return _resize(image, box, size, interpolation, decoding.nodata, fast)
    box = _random_box(jpeg.shape, rng, scale, ratio)
    shrink = min(box[2] / size[0], box[3] / size[1])
    reduction = next(n for n in (8, 4, 2, 1) if shrink >= n or n == 1)
    try:
        image = decode_jpeg(bytes(data), jpeg, decoding.channels or 3, reduction)
    except ValueError:
        image, reduction = decode(data, decoding), 1
    top, left, height, width = (side / reduction for side in box)
    reduced = (top, left, height, width)
    return _resize(image, reduced, size, interpolation, decoding.nodata, fast)


def _reducible(data: bytes | np.ndarray, decoding: Decoding) -> Jpeg | None:
    """Return the header of a JPEG that may be decoded at a part of its size."""
    if not isinstance(data, bytes) or codec_of(data) is not IMAGE:
        return None
    if decoding.channels not in PHOTO_CHANNELS or decoding.value_range:
        return None
    if decoding.nodata is not None:
        return None  # a smaller image has mixtures with it
    return read_jpeg_header(data, decoding.max_pixels)


def resize_center_crop(
    image: np.ndarray,
    size: tuple[int, int],
    crop_fraction: float,
    interpolation: str,
    *,
    fit: str = "official",
    center: str = "round",
    fill: tuple[float, ...] = (0,),
    nodata: float | None = None,
) -> np.ndarray:
    """Resize to size / crop_fraction, then cut `size` out of the middle.

    fit: "cover" keeps proportions, and the shorter side fits. "squash" does not keep
    them. "pad" keeps them, the longer side fits, and the rest becomes `fill`.
    "official" covers, or squashes with crop_fraction=1.

    With fit="official", crop_fraction=224/256 and a square size S this is the official
    evaluation: the short side to int(256 / 224 * S), then the centre crop. The others
    are timm's crop modes center, squash and border. Of images that would become larger
    than 2^24 pixels, such as lines, only the middle is resized, which gives nearly the
    same pixels.

    image: [h w c]; size: (height, width); crop_fraction: in (0, 1]; interpolation: a
    filter of Pillow; center: the crop's offset is rounded half to even, "round", or
    down, "floor"; fill: a value per channel, or one for all; nodata: value of pixels
    without a measurement, which do not mix with others.
    returns: [size c] of the dtype of the image; the same pixels if it fits already.
    """
    if not 0 < crop_fraction <= 1:
        raise UserError(
            f"crop_fraction={crop_fraction} must be in (0, 1]: 224/256 is usual, "
            "1 resizes without a crop."
        )
    height, width = image.shape[:2]
    whole = (0, 0, height, width)
    if fit == "official":
        fit = "squash" if crop_fraction == 1 else "truncated cover"
    target = int(size[0] / crop_fraction), int(size[1] / crop_fraction)
    resized = _fitted((height, width), target, fit)
    top = _offset(resized[0] - size[0], center)
    left = _offset(resized[1] - size[1], center)
    if fit != "pad" and resized[0] * resized[1] > _MAX_PIXELS_TO_CUT:
        # A line of 20,000 pixels would take gigabytes.
        y, x = height / resized[0], width / resized[1]
        middle = (top * y, left * x, size[0] * y, size[1] * x)
        return _resize(image, middle, size, interpolation, nodata)
    image = _resize(image, whole, resized, interpolation, nodata)
    if fit == "pad":
        image = _pad(image, size, fill)
        top, left = max(top, 0), max(left, 0)
    return image[top : top + size[0], left : left + size[1]]


def _fitted(
    shape: tuple[int, int], target: tuple[int, int], fit: str
) -> tuple[int, int]:
    """Return the size to which an image of `shape` is resized to fit `target`."""
    if fit == "squash":
        return target
    (height, width), (rows, columns) = shape, target
    if fit == "truncated cover" or (fit == "cover" and rows == columns):
        # The side with the larger factor is exact, the other one truncated to an
        # integer, as in torchvision's Resize.
        if rows * width >= columns * height:
            return rows, rows * width // height
        return columns * height // width, columns
    # timm's ResizeKeepRatio.
    choose = max if fit == "pad" else min
    shrink = choose(height / rows, width / columns)
    return max(1, round(height / shrink)), max(1, round(width / shrink))


def _offset(excess: int, center: str) -> int:
    """Return where the middle begins if `excess` pixels are cut off."""
    return excess // 2 if center == "floor" else round(excess / 2)


def _pad(
    image: np.ndarray, size: tuple[int, int], fill: tuple[float, ...]
) -> np.ndarray:
    """Pad an image to `size` where it is smaller, around its middle."""
    height, width, channels = image.shape
    shape = max(height, size[0]), max(width, size[1])
    padded = np.full((*shape, channels), np.asarray(fill, image.dtype))
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    padded[top : top + height, left : left + width] = image
    return padded


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
    # The largest centred box whose proportions are allowed, of at least one pixel.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width = min(width, max(1, round(height * aspect)))
    box_height = min(height, max(1, round(width / aspect)))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return top, left, box_height, box_width


# ---- Resizing ------------------------------------------------------------------------


def _resize(
    image: np.ndarray,
    box: Box,
    size: tuple[int, int],
    interpolation: str,
    nodata: float | None = None,
    fast: bool = False,
) -> np.ndarray:
    """Resize a box of an image; the same pixels where it has that size already.

    nodata: value of pixels without a measurement, as NaN always is: see
    `_resize_measured`.
    """
    if interpolation not in _RESAMPLING:
        raise UserError(
            f"interpolation={interpolation!r} is unknown: expected one of "
            f"{', '.join(map(repr, _RESAMPLING))}."
        )
    top, left = math.floor(box[0]), math.floor(box[1])
    bottom, right = math.ceil(box[0] + box[2]), math.ceil(box[1] + box[3])
    image = image[top:bottom, left:right]
    box = (box[0] - top, box[1] - left, box[2], box[3])
    is_whole = box == (0, 0, *image.shape[:2])
    if is_whole and image.shape[:2] == size:
        return image
    measured = _measured(image, nodata)
    if measured is not None:
        mark = np.nan if nodata is None else nodata
        parts = [
            _resize_measured(
                image[:, :, c], measured[:, :, c], box, size, interpolation, mark
            )
            for c in range(image.shape[2])
        ]
        return np.stack(parts, axis=2)
    shrink = max(box[2] / size[0], box[3] / size[1])
    channels = image.shape[2]
    is_fast = fast and interpolation == "bilinear" and shrink <= _MAX_SHRINK
    if is_fast and image.dtype in _FAST_DTYPES:
        parts = [
            _resize_fast(image[:, :, c : c + _FAST_CHANNELS], box, size, is_whole)
            for c in range(0, channels, _FAST_CHANNELS)
        ]
        return np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
    if channels not in _PILLOW_CHANNELS or image.dtype != np.uint8:
        parts = [
            _resize_channel(image[:, :, c], box, size, interpolation)
            for c in range(channels)
        ]
        return np.stack(parts, axis=2)
    pixels = image[:, :, 0] if channels == 1 else image
    resized = _resize_by_pillow(pixels, box, size, interpolation)
    return resized.reshape(*size, channels)


def _resize_channel(
    pixels: np.ndarray, box: Box, size: tuple[int, int], interpolation: str
) -> np.ndarray:
    """Resize [h w] of any dtype of `DTYPES`; integers are rounded, and stay in range.

    Pillow resizes uint8, int32 and float32 only, the latter two in double precision.
    """
    dtype = pixels.dtype
    if dtype in _PILLOW_DTYPES:
        return _resize_by_pillow(pixels, box, size, interpolation)
    # int32 holds the differences from the middle of uint32.
    middle = 2**31 if dtype == np.uint32 else 0
    resized = _resize_by_pillow(
        (pixels.astype(np.int64) - middle).astype(np.int32), box, size, interpolation
    )
    limits = np.iinfo(dtype)
    return (
        (resized.astype(np.int64) + middle).clip(limits.min, limits.max).astype(dtype)
    )


def _measured(image: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """Return bool[h w c], where an image has measurements; None if it is everywhere."""
    if image.dtype.kind == "f":
        found = ~np.isnan(image)
        if nodata is not None:
            found &= image != nodata
    elif nodata is not None:
        found = image != nodata
    else:
        return None
    return None if found.all() else found


def _resize_measured(
    pixels: np.ndarray,
    measured: np.ndarray,
    box: Box,
    size: tuple[int, int],
    interpolation: str,
    mark: float,
) -> np.ndarray:
    """Resize [h w] of which only the pixels `measured` bool[h w] count.

    The result is the weighted mean of those under the filter, or `mark` where they have
    less than half of its weight.
    """
    dtype = pixels.dtype
    if measured.all():
        return _resize_channel(pixels, box, size, interpolation)
    if not measured.any():
        return np.full(size, mark, dtype)
    # float32 holds differences from the mean of integers that it does not hold.
    center = pixels[measured].mean(dtype=np.float64)
    offsets = np.where(measured, pixels - center, 0).astype(np.float32)
    total = _resize_by_pillow(offsets, box, size, interpolation).astype(np.float64)
    weight = _resize_by_pillow(measured.astype(np.float32), box, size, interpolation)
    enough = weight >= 0.5
    values = center + total / np.where(enough, weight, 1)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    return np.where(enough, values, mark).astype(dtype)


def _resize_by_pillow(
    pixels: np.ndarray, box: Box, size: tuple[int, int], interpolation: str
) -> np.ndarray:
    top, left, height, width = box
    return np.asarray(
        Image.fromarray(pixels).resize(
            size[::-1],
            _RESAMPLING[interpolation],
            box=(left, top, left + width, top + height),
        )
    )


def _resize_fast(
    image: np.ndarray, box: Box, size: tuple[int, int], is_whole: bool
) -> np.ndarray:
    """Approximate antialiased bilinear: smooth a little, then interpolate linearly.

    In float32 where it is not uint8, for which OpenCV is as fast.
    """
    dtype = image.dtype
    if dtype != np.uint8:
        image = image.astype(np.float32, copy=False)
    top, left, height, width = box
    y, x = height / size[0], width / size[1]
    smooth_y, smooth_x = _smoothing(round(16 * y)), _smoothing(round(16 * x))
    if len(smooth_y) > 1 or len(smooth_x) > 1:
        border = cv2.BORDER_REPLICATE
        image = cv2.sepFilter2D(image, -1, smooth_x, smooth_y, borderType=border)
    if is_whole:
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    else:
        # From the centre of a result pixel to a point in the image.
        to_image = np.array([[x, 0, left + x / 2 - 0.5], [0, y, top + y / 2 - 0.5]])
        resized = cv2.warpAffine(
            image,
            to_image,
            size[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    if dtype.kind in "iu" and dtype != np.uint8:
        resized = np.rint(resized, out=resized)
    return resized.reshape(*size, -1).astype(dtype, copy=False)


@functools.cache
def _smoothing(shrink_in_16ths: int) -> np.ndarray:
    """Return a filter along one axis, float32[3], or [1] if there is nothing to smooth.

    Followed by linear interpolation, its three taps come closest to Pillow's
    antialiased bilinear, a triangle `shrink` wide to either side: least squares over
    points between two pixels.
    """
    shrink = shrink_in_16ths / 16
    if shrink <= 1:
        return np.ones(1, np.float32)
    taps = np.arange(-8, 10)
    wanted, center, side = [], [], []
    for place in (np.arange(16) + 0.5) / 16:
        triangle = np.maximum(0, 1 - np.abs(taps - place) / shrink)
        linear = np.maximum(0, 1 - np.abs(taps - place))
        wanted.append(triangle / triangle.sum())
        center.append(linear)
        side.append(np.roll(linear, 1) + np.roll(linear, -1))
    # weight * side + (1 - 2 * weight) * center = wanted
    basis = np.ravel(side) - 2 * np.ravel(center)
    weight = basis @ (np.ravel(wanted) - np.ravel(center)) / (basis @ basis)
    return np.array([weight, 1 - 2 * weight, weight], np.float32)
