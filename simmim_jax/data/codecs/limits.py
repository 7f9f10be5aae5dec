"""Images that are too large to decode, by their headers.

Decoders run in C and cannot be stopped, so that time and memory are limited before they
start. Both follow from the file alone: with a clock, an image could be good on one
machine and bad on another, and a run would not be reproducible.
"""

import struct
from typing import NamedTuple

from PIL import Image, ImageFile

from simmim_jax.data.codecs.base import too_large


class Share(NamedTuple):
    """What an encoding may have of `max_pixels`: pixels, and bytes of the file."""

    pixels: float
    num_bytes: float


# By Pillow's name of the format or the decoder. They hold the most expensive valid
# files to less than 1 GB and 5 s at MAX_PIXELS: docs/measurements/input.md.
_SHARES = {
    "jpeg": Share(1, 1),
    "libtiff": Share(1, 1),  # compressed TIFF
    "WEBP": Share(1 / 2, 1),
    "AVIF": Share(1 / 2, 1 / 4),
    "jpeg2k": Share(1 / 2, 1 / 4),
}
_OTHER_SHARE = Share(1, 4)
# Pillow's decoders of text PPM and run-length BMP, for example.
_PYTHON_SHARE = Share(1 / 32, 1 / 4)
# A JPEG of `max_pixels` may have this many scans; progressive ones have 10 to 18.
_MAX_SCANS = 20
_SCAN_BYTES = 10  # of the smallest scan
_TIFF_TILE_SIDES = 322, 323  # tags


def check_jpeg_size(data: bytes, height: int, width: int, max_pixels: int) -> None:
    """Raise BadImage if a JPEG is too large, or has too many scans."""
    _check("JPEG", _SHARES["jpeg"], (width, height), len(data), max_pixels)
    # Each scan goes over all pixels, even if it has only a few bytes.
    allowed = _MAX_SCANS * max_pixels // max(1, height * width)
    if len(data) < _SCAN_BYTES * allowed or not _may_have_scans(data):
        return
    scans = data.count(b"\xff\xda")
    if scans > allowed:
        raise too_large(
            f"A JPEG of {width:,} x {height:,} pixels has {scans:,} scans",
            f"{allowed:,}",
            max_pixels,
        )


def check_file_size(file: ImageFile.ImageFile, data: bytes, max_pixels: int) -> None:
    """Raise BadImage if an image that Pillow has opened is too large to decode."""
    kind, share = file.format or "", share_of(file)
    _check(kind, share, file.size, len(data), max_pixels)
    if kind == "TIFF":
        # A tile may be larger than the image.
        width, height = (file.tag_v2.get(tag, 0) for tag in _TIFF_TILE_SIDES)  # type: ignore[attr-defined]
        _check("tiles of a TIFF", share, (width, height), len(data), max_pixels)
    if _decoder(file) == "jpeg":
        check_jpeg_size(data, file.height, file.width, max_pixels)


def share_of(file: ImageFile.ImageFile) -> Share:
    """Return what an image that Pillow has opened may have of `max_pixels`."""
    decoder = _decoder(file)
    if decoder in Image.DECODERS:  # in Python
        return _PYTHON_SHARE
    return _SHARES.get(file.format or "", _SHARES.get(decoder, _OTHER_SHARE))


def _decoder(file: ImageFile.ImageFile) -> str:
    return file.tile[0].codec_name if file.tile else ""


def _check(
    kind: str, share: Share, size: tuple[int, int], num_bytes: int, max_pixels: int
) -> None:
    """Raise BadImage if an image has more pixels or bytes than its share allows."""
    width, height = size
    pixels, most = int(share.pixels * max_pixels), int(share.num_bytes * max_pixels)
    if width * height > pixels or num_bytes > most:
        raise too_large(
            f"{kind}: an image has {width:,} x {height:,} pixels in {num_bytes:,} "
            "bytes",
            f"{pixels:,} pixels in {most:,} bytes",
            max_pixels,
        )


def _may_have_scans(data: bytes) -> bool:
    """Whether a JPEG may have several scans: the first one lacks a component."""
    start, components = 2, 0
    while data[start : start + 1] == b"\xff" and len(data) > start + 9:
        marker, length = struct.unpack_from(">BH", data, start + 1)
        if marker in (0xC0, 0xC1):  # not progressive
            components = data[start + 9]
        if marker == 0xDA:
            return data[start + 4] != components
        start += 2 + length
    return True
