"""tf.train.Example messages in the wire format of Protobuf, without TensorFlow.

Example   1: Features
Features  1: map of features, each an entry with 1: key and 2: Feature
Feature   1: BytesList, 2: FloatList, 3: Int64List, each with 1: values
"""

import struct
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10


def features(example: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield keys and Feature messages of an Example; raises ValueError for damage."""
    for number, field in fields(example):
        if number == 1:
            for inner, entry in fields(_message(field)):
                if inner == 1:
                    parts = dict(fields(_message(entry)))
                    key = bytes(_message(parts.get(1, _EMPTY))).decode()
                    yield key, _message(parts.get(2, _EMPTY))


def values(feature: memoryview) -> list[bytes] | list[float] | list[int]:
    """Return the values of a Feature message; raises ValueError for damage."""
    found: list = []
    for kind, message in fields(feature):
        for number, value in fields(_message(message)):
            if number != 1:
                continue
            if kind == 1:
                found.append(bytes(_message(value)))
            elif kind == 2:
                floats = _message(value)
                found += struct.unpack(f"<{len(floats) // 4}f", floats)
            elif kind == 3:
                found += _int64s(value)
    return found


_EMPTY = memoryview(b"")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in place of a message")
    return value


def _int64s(value: int | memoryview) -> Iterator[int]:
    """Yield packed numbers, or one that is not."""
    if isinstance(value, int):
        yield _signed(value)
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield _signed(number)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield numbers and values of the fields of a message; ValueError for damage."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, at = _varint(message, at)
        elif wire_type in _FIXED:
            size = _FIXED[wire_type]
        else:
            raise ValueError(f"wire type {wire_type}")
        if at + size > len(message):
            raise ValueError(f"a field of {size} bytes in {len(message) - at}")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    number = 0
    for shift, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number & (2**64 - 1), at + shift + 1
    raise ValueError("a number that does not end")
