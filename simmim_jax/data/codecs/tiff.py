"""TIFF files: photographs by Pillow, all others by tifffile, as they were written.

Pillow and OpenCV get many of the others wrong, without an error.
"""

import contextlib
import functools
import io
import itertools
import logging
import math
import mmap
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from simmim_jax.data.codecs.base import (
    BadImage,
    Codec,
    Decoding,
    Raster,
    native,
    too_large,
)
from simmim_jax.data.codecs.headers import encoded_size
from simmim_jax.data.codecs.image import (
    PHOTO_CHANNELS,
    as_photograph,
    decode_image,
    turned,
)
from simmim_jax.data.codecs.scaling import rescale
from simmim_jax.errors import MissingPackageError, UserError

# Little- and big-endian, then BigTIFF.
_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags.
_SUBFILE, _WIDTH, _HEIGHT, _BITS = 254, 256, 257, 258
_COMPRESSION, _PHOTOMETRIC = 259, 262
_SAMPLES, _EXTRA, _SAMPLE_FORMAT = 277, 338, 339
_ORIENTATION = 274
_GDAL_METADATA, _GDAL_NODATA = 42112, 42113
# Types of whole numbers, by their code in struct.
_WHOLE = {1: "B", 3: "H", 4: "L", 16: "Q"}
# Values of a tag that are read.
_MAX_VALUES = 1024
_REDUCED, _MASK = 1, 4  # bits of _SUBFILE
_UNSIGNED = 1  # of _SAMPLE_FORMAT
_ALPHA = (1, 2)  # of _EXTRA, associated or not
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
# Colours by photometric interpretation; 5 is CMYK, 8 is Lab.
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, 5: 4, 6: 3, 8: 3}
# Those that tifffile leaves as they are, or converts to RGB.
_MEASURED = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR)
# What Pillow decodes: none, CCITT, LZW, JPEG, deflate, PackBits.
_PHOTO_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)
# JPEG and JPEG 2000, whose tiles have a size of their own.
_HEADED = (7, 33003, 33004, 33005, 34712)
# What imagecodecs decodes in the size of a tile: also LZMA and Zstandard.
_COMPRESSIONS = (1, 5, 8, 32773, 32946, 34925, 50000, *_HEADED)
# Axes of tifffile that are channels: bands and samples.
_CHANNEL_AXES = "CS"
# Axes of a file that does not say what its pages are.
_PAGE_AXES = "IQ"
# Bytes that an image may have, for each pixel allowed: 13 bands of 16 bits have 26.
_BYTES_PER_PIXEL = 32
_NO_PIXELS = "A TIFF image has no pixels."
_CUT_OFF = "A TIFF file ends within an image."

Directory = dict[int, tuple[int, ...]]


def decode_tiff(data: bytes, decoding: Decoding) -> Raster:
    """Decode a TIFF file of one image.

    Photographs, which have 8 bits a sample, are decoded like those in other formats.
    All others keep their values: bands may be samples of a page or pages of the file.
    GDAL's scale and offset are applied, its nodata value and descriptions of bands and
    the names of OME's channels are kept. Pixels under an internal mask are NaN, and
    white where they are uint8. White-is-zero is inverted. With channels 1 or 3, colours
    become grey, grey is repeated, and samples that are no colours are left out.

    raises: BadImage if the file is damaged or too large, UserError if it has several
    images or an encoding that cannot be read.
    """
    directories = read_directories(data)
    if not decoding.level and is_photograph(directories):
        return decode_image(data, decoding)
    with contextlib.closing(
        TiffImages(io.BytesIO(data), directories, decoding)
    ) as images:
        if len(images) > 1:
            raise _several(f"{len(images)} images (axes {images.axes})")
        raster = images.read(0)
        wanted = None if decoding.bands else decoding.channels
        if images.num_pages > 1 and wanted not in (None, raster.pixels.shape[2]):
            raise _several(
                f"{images.num_pages} pages, {raster.pixels.shape[2]} channels if all "
                f"are bands of one image, and channels={wanted}"
            )
        return raster


def _several(what: str) -> UserError:
    return UserError(
        f"A TIFF file has {what}: expected one image. Make each page an image: name "
        "the file or its folder with ':pages' behind it as --config.data.dataset."
    )


# ---- Directories ---------------------------------------------------------------------


def read_directories(data: bytes | mmap.mmap) -> list[Directory]:
    """Return the whole numbers in the tags of all pages; other values are empty.

    raises: BadImage if one is cut off.
    """
    try:
        return list(_directories(data))
    except (struct.error, OverflowError) as error:
        raise BadImage("truncated", "A TIFF file ends within a page.") from error


def _directories(data: bytes | mmap.mmap) -> Iterator[Directory]:
    order = "<" if data[:2] == b"II" else ">"
    is_big = 43 in data[2:4]
    place, number, size = ("Q", "Q", 8) if is_big else ("L", "H", 4)
    entry = struct.Struct(f"{order}HH{place}{size}s")
    width = struct.calcsize(number)
    (start,) = struct.unpack_from(order + place, data, 8 if is_big else 4)
    seen = set()
    while start:
        if start in seen:
            raise BadImage("corrupt", "The pages of a TIFF file go round in a circle.")
        seen.add(start)
        (count,) = struct.unpack_from(order + number, data, start)
        start += width
        if start + count * entry.size > len(data):
            raise struct.error
        tags: Directory = {}
        for i in range(count):
            tag, kind, length, value = entry.unpack_from(data, start + i * entry.size)
            tags[tag] = ()
            if kind in _WHOLE and length <= _MAX_VALUES:
                form = f"{order}{length}{_WHOLE[kind]}"
                if struct.calcsize(form) <= size:
                    tags[tag] = struct.unpack_from(form, value)
                else:
                    (at,) = struct.unpack(order + place, value)
                    tags[tag] = struct.unpack_from(form, data, at)
        yield tags
        (start,) = struct.unpack_from(order + place, data, start + count * entry.size)


def _one(directory: Directory, tag: int, default: int) -> int:
    return (directory.get(tag) or (default,))[0]


def is_photograph(directories: Sequence[Directory]) -> bool:
    """Whether a file is one picture for the eye, which Pillow decodes."""
    if not directories:
        raise BadImage("corrupt", "A TIFF file has no page.")
    first, *others = directories
    photometric = _one(first, _PHOTOMETRIC, _BLACK_IS_ZERO)
    extra = first.get(_EXTRA, ())
    has_alpha = photometric <= _RGB and len(extra) == 1 and extra[0] in _ALPHA
    is_measured = _GDAL_METADATA in first or _GDAL_NODATA in first
    return (
        max(first.get(_BITS) or (1,)) <= 8
        and set(first.get(_SAMPLE_FORMAT) or (_UNSIGNED,)) == {_UNSIGNED}
        and _one(first, _SAMPLES, 1) == _COLORS.get(photometric, 0) + has_alpha
        and _one(first, _COMPRESSION, 1) in _PHOTO_COMPRESSIONS
        and (photometric == _PALETTE or not is_measured)
        and all(_one(other, _SUBFILE, 0) & _REDUCED for other in others)
    )


# ---- Images --------------------------------------------------------------------------


class _Part(NamedTuple):
    """Images of one size: a series of tifffile, and numbers [images, c] of pages."""

    series: Any
    pages: np.ndarray


class TiffImages:
    """The images of a TIFF file, which is open until `close`.

    file: a path, or bytes; directories: of `read_directories`; decoding: level, limit
    and channels of images; by_page: pages are images rather than channels where the
    file does not say what they are; in_parts: images may have any size, since they are
    not read as a whole. Several threads may read.
    raises: as `decode_tiff`.
    """

    def __init__(
        self,
        file: str | io.BytesIO,
        directories: Sequence[Directory],
        decoding: Decoding,
        *,
        by_page: bool = False,
        in_parts: bool = False,
    ):
        tifffile = import_tifffile()
        for directory in directories:
            _check(directory, sys.maxsize if in_parts else decoding.max_pixels)
        self._channels = None if decoding.bands else decoding.channels
        self._max_pixels = decoding.max_pixels
        # Of a path, which is mapped, None.
        self._data = None if isinstance(file, str) else file.getvalue()
        try:
            # Other files, which OME may name, stay closed.
            self._tiff = tifffile.TiffFile(file, _multifile=False)
            found = [_level(each, decoding.level) for each in self._tiff.series]
            self._masks = [each for each in found if each.keyframe.is_mask]
            self._parts = [
                _part(each, by_page) for each in found if each not in self._masks
            ]
            for part in self._parts:
                _check_segments(part.series, decoding.max_pixels)
                if not in_parts:
                    _check_bytes(part, decoding.max_pixels)
            if self._tiff.is_ome:
                _check_complete(self._parts)
        except UserError:
            raise
        except Exception as error:  # from tifffile, of many types
            raise _damaged(error) from error
        if not self._parts:
            raise BadImage("not an image", "A TIFF file has masks alone.")
        self.axes = self._parts[0].series.axes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(len(part.pages) for part in self._parts)

    @property
    def num_pages(self) -> int:
        """Number of pages of the first image."""
        return self._parts[0].pages.shape[1]

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()

    def shape(self, index: int) -> tuple[int, int]:
        """Return height and width of an image, as stored."""
        return _shape(self._find(index)[0].series)

    def read(
        self, index: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> Raster:
        """Read an image, or a part of it as it is stored."""
        part, within = self._find(index)
        try:
            pixels = self._stored(part, within, rows, columns)
            masks = [
                mask for mask in self._masks if _shape(mask) == _shape(part.series)
            ]
            missing = None
            if masks:
                with self._lock:
                    missing = masks[0].asarray(maxworkers=1)[rows, columns] == 0
            return _values(pixels, part.series.keyframe, missing, self._channels)
        except UserError:
            raise
        except Exception as error:  # from tifffile and imagecodecs, of many types
            raise _damaged(error) from error

    def _find(self, index: int) -> tuple[_Part, int]:
        for part in self._parts:
            if index < len(part.pages):
                return part, index
            index -= len(part.pages)
        raise IndexError("there are fewer images in a TIFF file")

    def _stored(
        self, part: _Part, within: int, rows: slice, columns: slice
    ) -> np.ndarray:
        """Return the stored numbers of an image [h, w, c] or a part of it."""
        series, numbers = part.series, part.pages[within]
        shape, axes = series.keyframe.shape, series.keyframe.axes
        if series.dataoffset is None:
            pages = [self._window(series, int(n), rows, columns) for n in numbers]
        else:  # pages that follow each other may have a single directory
            dtype = self._tiff.byteorder + series.dtype.char
            start, count = series.dataoffset, series.size // math.prod(shape)
            if self._data is None:
                file = self._tiff.filehandle
                stored = file.memmap_array(dtype, (count, *shape), start)
            else:
                if len(self._data) < start + series.size * series.dtype.itemsize:
                    raise BadImage("truncated", _CUT_OFF)
                stored = np.frombuffer(self._data, dtype, series.size, start)
                stored = stored.reshape(count, *shape)
            place = {"Y": rows, "X": columns}
            part_of = tuple(place.get(axis, slice(None)) for axis in axes)
            pages = [stored[(number, *part_of)] for number in numbers]
        planes = [_channels_last(page, axes) for page in pages]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _window(
        self, series: Any, number: int, rows: slice, columns: slice
    ) -> np.ndarray:
        """Return a part of a page, decoding the strips or tiles that it touches."""
        with self._lock:
            page, first = series.pages[number], series.keyframe
        separate, _, height, width, samples = first.shaped
        top, bottom, _ = rows.indices(height)
        left, right, _ = columns.indices(width)
        down, across = _segment_shape(first)
        grid = separate, -(-height // down), -(-width // across)
        # Segments that a sparse file lacks have no measurement.
        window = np.full(
            (separate, bottom - top, right - left, samples), first.nodata, first.dtype
        )
        for plane, row, column in itertools.product(
            range(separate),
            range(top // down, -(-bottom // down)),
            range(left // across, -(-right // across)),
        ):
            index = int(np.ravel_multi_index((plane, row, column), grid))
            size = page.databytecounts[index]
            if not size:
                continue
            with self._lock:
                self._tiff.filehandle.seek(page.dataoffsets[index])
                data = self._tiff.filehandle.read(size)
            if len(data) < size:
                raise BadImage("truncated", _CUT_OFF)
            if first.compression in _HEADED:
                _check_pixels(encoded_size(data) or (0, 0), self._max_pixels)
            segment = first.decode(data, index, jpegtables=page.jpegtables)[0][0]
            y, x = row * down - top, column * across - left
            segment = segment[max(0, -y) :, max(0, -x) :]
            y, x = max(0, y), max(0, x)
            place = window[plane, y : y + len(segment), x : x + segment.shape[1]]
            place[...] = segment[: place.shape[0], : place.shape[1]]
        if separate == 1:
            window = window[0]
        return window if "S" in first.axes else window[..., 0]


def _level(series: Any, level: int) -> Any:
    """Return a level of a pyramid, of masks as well."""
    if level >= len(series.levels):
        raise UserError(
            f"config.data.level={level}, but a TIFF file has levels from 0 to "
            f"{len(series.levels) - 1}: choose one of them."
        )
    return series.levels[level]


def _part(series: Any, by_page: bool) -> _Part:
    """Return the images of a series; bands before samples are their channels."""
    inner = series.keyframe.axes
    outer, shape = series.axes[: -len(inner)], series.shape[: -len(inner)]
    if series.axes[-len(inner) :] != inner or set(inner) - set("YXS"):
        raise UserError(
            f"A TIFF file has the axes {series.axes}: expected pages of height and "
            "width. Save each image of it as a file."
        )
    channels = _CHANNEL_AXES + ("" if by_page else _PAGE_AXES)
    counted = [i for i, axis in enumerate(outer) if axis not in channels]
    bands = [i for i, axis in enumerate(outer) if axis in channels]
    numbers = np.arange(math.prod(shape)).reshape(shape).transpose(counted + bands)
    return _Part(series, numbers.reshape(math.prod(shape[i] for i in counted), -1))


def _shape(series: Any) -> tuple[int, int]:
    size = dict(zip(series.keyframe.axes, series.keyframe.shape, strict=True))
    return size["Y"], size["X"]


def _segment_shape(page: Any) -> tuple[int, int]:
    """Return height and width of the tiles or strips of a page."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return page.rowsperstrip, page.imagewidth


def _channels_last(page: np.ndarray, axes: str) -> np.ndarray:
    """Return a page as [h, w, c]; axes: "YX", "YXS" or "SYX"."""
    page = page if "S" in axes else page[..., None]
    return np.moveaxis(page, 0, -1) if axes == "SYX" else page


# ---- Checks --------------------------------------------------------------------------


@functools.cache
def import_tifffile() -> ModuleType:
    """Return tifffile, with imagecodecs at hand."""
    try:
        import imagecodecs  # noqa: F401
        import tifffile
    except ImportError as error:
        raise MissingPackageError(
            "TIFF files that are not photographs of 8 bits need the packages tifffile "
            "and imagecodecs: pip install 'simmim_jax[raster]'."
        ) from error
    # It logs what is raised here.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile


def _check(directory: Directory, max_pixels: int) -> None:
    """Raise UserError for pixels of an unknown kind, BadImage for too many."""
    if _one(directory, _SUBFILE, 0) & (_REDUCED | _MASK):
        return
    compression = _one(directory, _COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        raise UserError(
            f"A TIFF file is compressed by method {compression}: expected none, LZW, "
            "JPEG, deflate, PackBits, LZMA, Zstandard or JPEG 2000. Convert it, with "
            "gdal_translate -co COMPRESS=DEFLATE for example."
        )
    photometric = _one(directory, _PHOTOMETRIC, _BLACK_IS_ZERO)
    if photometric not in _MEASURED:
        raise UserError(
            f"A TIFF file has the photometric interpretation {photometric}: expected "
            "grey (0, 1) or RGB (2), or one image of 8 bits a sample. Convert it."
        )
    width, height = _one(directory, _WIDTH, 0), _one(directory, _HEIGHT, 0)
    if not width * height:
        raise BadImage("corrupt", _NO_PIXELS)
    _check_pixels((width, height), max_pixels)


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise too_large(
            f"A TIFF image or a tile of it has {width:,} x {height:,} pixels",
            f"{max_pixels:,}",
            max_pixels,
        )


def _check_segments(series: Any, max_pixels: int) -> None:
    """Raise BadImage for no pixels, or tiles or strips that are too large to decode."""
    if series.keyframe.dtype is None:
        raise BadImage("corrupt", "A TIFF file has samples of an unknown type.")
    if not series.keyframe.size:
        raise BadImage("corrupt", _NO_PIXELS)
    if series.dataoffset is None:
        height, width = _segment_shape(series.keyframe)
        _check_pixels((width, height), max_pixels)


def _check_bytes(part: _Part, max_pixels: int) -> None:
    """Raise BadImage if an image takes too much memory for its number of pixels."""
    page = part.series.keyframe
    size = part.pages.shape[1] * page.size * page.dtype.itemsize
    if size > _BYTES_PER_PIXEL * max_pixels:
        raise too_large(
            f"An image in a TIFF file has {size:,} bytes",
            f"{_BYTES_PER_PIXEL * max_pixels:,}",
            max_pixels,
        )


def _check_complete(parts: Sequence[_Part]) -> None:
    """Raise UserError if an OME-TIFF lacks pages; tifffile would return zeros."""
    for series, numbers in parts:
        is_whole = series.kind == "ome"
        if not is_whole or any(series.pages[int(n)] is None for n in numbers.flat):
            raise UserError(
                "An OME-TIFF has planes in other files: expected all in one. Write it "
                "anew as a single file."
            )


def _damaged(error: Exception) -> BadImage:
    text = " ".join(str(error).split())
    is_short = "failed to read" in text or "mmap length" in text
    reason = "truncated" if is_short else "corrupt"
    return BadImage(reason, f"A TIFF file cannot be read ({text:.200}).")


# ---- Values --------------------------------------------------------------------------


def _values(
    pixels: np.ndarray, page: Any, missing: np.ndarray | None, channels: int | None
) -> Raster:
    """Return what stored numbers [h, w, c] stand for.

    page: of tifffile, whose tags apply; missing: bool [h, w], pixels that are masked.
    """
    nodata = _nodata(page)
    if page.photometric == _WHITE_IS_ZERO and pixels.dtype.kind == "u":
        white = 2**page.bitspersample - 1
        pixels = (white - pixels).astype(page.dtype)
        nodata = None if nodata is None else white - nodata
    pixels = native(pixels, "A TIFF image")
    names, slopes, intercepts = _gdal_metadata(page, pixels.shape[2])
    names = names or _ome_names(page, pixels.shape[2])
    if missing is not None and channels in PHOTO_CHANNELS and pixels.dtype == np.uint8:
        pixels = np.where(missing[:, :, None], np.uint8(255), pixels)
        missing = None
    pixels, nodata = _scaled(pixels, slopes, intercepts, missing, nodata)
    colors = 3 if page.photometric in (_RGB, _YCBCR) else 1
    extra = page.extrasamples
    has_alpha = len(extra) == 1 and extra[0] in _ALPHA
    is_colors = colors == 3 or has_alpha or not extra
    is_picture = is_colors and pixels.shape[2] == colors + len(extra)
    if channels in PHOTO_CHANNELS and is_picture:
        pixels = pixels if has_alpha else pixels[:, :, :colors]
        pixels = as_photograph(pixels, channels)
        names = names[:colors] if channels == colors else ()
    pixels = turned(pixels, page.tags.valueof(_ORIENTATION, 1))
    return Raster(np.ascontiguousarray(pixels), names, nodata)


def _nodata(page: Any) -> float | None:
    """Return GDAL's value for pixels without a measurement, if pixels can have it."""
    try:
        value = float(str(page.tags.valueof(_GDAL_NODATA, "")).strip(" \0"))
    except ValueError:
        return None
    if page.dtype.kind == "f":
        value = float(np.float64(value).astype(page.dtype))
        return None if math.isnan(value) else value
    if page.dtype.kind not in "iu" or not value.is_integer():
        return None
    limits = np.iinfo(page.dtype)
    return value if limits.min <= value <= limits.max else None


def _gdal_metadata(
    page: Any, num_bands: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return names, scales and offsets [c] of bands; (), ones and zeros for none."""
    found: dict[str, dict[int, str]] = {"description": {}, "scale": {}, "offset": {}}
    text = str(page.tags.valueof(_GDAL_METADATA, "")).strip(" \0")
    for item in ElementTree.fromstring(text) if text else ():
        band, role = item.get("sample"), item.get("role", "")
        if band is not None and role in found:
            found[role][int(band)] = item.text or ""
    names = tuple(found["description"].get(i, "") for i in range(num_bands))
    slopes, intercepts = np.ones(num_bands), np.zeros(num_bands)
    for role, numbers in (("scale", slopes), ("offset", intercepts)):
        for number, text in found[role].items():
            numbers[number] = float(text)
    return _unique(names), slopes, intercepts


def _ome_names(page: Any, num_bands: int) -> tuple[str, ...]:
    """Return the names of channels in OME's XML, () if they have none."""
    text = page.parent.ome_metadata
    if not text:
        return ()
    pixels = ElementTree.fromstring(text.encode()).findall("{*}Image/{*}Pixels")[:1]
    channels = [each for image in pixels for each in image.findall("{*}Channel")]
    names = tuple(channel.get("Name", "") for channel in channels)
    return _unique(names) if len(names) == num_bands else ()


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names, () if some are missing or the same."""
    return names if all(names) and len(set(names)) == len(names) else ()


def _scaled(
    pixels: np.ndarray,
    slopes: np.ndarray,
    intercepts: np.ndarray,
    missing: np.ndarray | None,
    nodata: float | None,
) -> tuple[np.ndarray, float | None]:
    """Return slopes * pixels + intercepts, and the nodata value of the result.

    slopes, intercepts: float64 [c]; missing: bool [h, w] or None. float32 has NaN for
    pixels without a measurement where it is needed.
    """
    gaps = None if nodata is None else pixels == nodata
    if missing is None and np.ptp(slopes) == np.ptp(intercepts) == 0:
        slope, intercept = float(slopes[0]), float(intercepts[0])
        return rescale(pixels, slope, intercept, gaps, nodata)
    scaled = (pixels * slopes + intercepts).astype(np.float32)
    for where in (gaps, None if missing is None else missing[:, :, None]):
        if where is not None:
            scaled = np.where(where, np.float32(np.nan), scaled)
    return scaled, None


TIFF = Codec("TIFF", _SIGNATURES, decode_tiff)
