"""Sizes of compressed images, which other files contain, by their headers."""

import struct


def encoded_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in the header of a JPEG, JPEG-LS or JPEG 2000 image."""
    at = data[:4096].find(b"\xff\x4f\xff\x51")
    if at >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
        return right - left, bottom - top
    at = 2
    while data[at : at + 1] == b"\xff" and len(data) >= at + 9:
        marker, length, _, height, width = struct.unpack_from(">xBHBHH", data, at)
        is_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame or marker == 0xF7:  # the latter in JPEG-LS
            return width, height
        at += 2 + length
    return None
