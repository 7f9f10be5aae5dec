"""Seeded damage to files: of bytes, and of the structure that a file's name announces.

Half of the damage goes below checksums and compression, which would otherwise hide
most of a reader: PNG chunks, zip members and tar headers are damaged and sealed again.
"""

import copy
import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

# Where readers go wrong: signs, limits of types, powers of two and their neighbours.
INTEGERS = (
    *(0, 1, 2, 3, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31)),
)
# No address of a network among them: a case stays on the machine.
TEXTS = (
    *("", " ", "0", "-1", "nan", "é", "a" * 300, "\0", "\\", '"', "../x", "/", "."),
    *("file:///x", "memory://x/y.png", "unknown://x", "zip::file:///x", "%s{}"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0.5, -1.5, 1e308, float("nan"), float("inf")),
    *([], [None], [[]], [1, 2], ["a"], {}, {"a": None}, {"a": {"b": []}}),
    *INTEGERS,
    *TEXTS,
)
LINES = (b"", b",", b"\t", b'"', b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"a,b,c", b"\0")
# Most damage hits headers: the rest of an image is pixels.
_HEADER = 96


def mutate(rng: random.Random, data: bytes, name: str, other: bytes) -> bytes:
    """Return a damaged copy of a file; other: a valid file to take pieces from."""
    inside = _INSIDE.get(name.rpartition(".")[2])
    if inside and rng.random() < 0.5:
        return inside(rng, data, other)
    return damage(rng, data, other)


def damage(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """Return the bytes with one to four edits."""
    edited = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(_EDITS)(rng, edited, other)
    return bytes(edited)


# ---- Bytes ---------------------------------------------------------------------------


def _place(rng: random.Random, data: bytearray) -> int:
    """Return a position, half of the time within the header."""
    end = len(data) if rng.random() < 0.5 else min(len(data), _HEADER)
    return rng.randrange(end) if end else 0


def _flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[_place(rng, data)] = rng.choice(
            (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))
        )


def _number(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Write a length or count, of 2 to 8 bytes, in either order."""
    size = rng.choice((2, 4, 4, 8))
    value = rng.choice(INTEGERS) % 256**size
    start = _place(rng, data)
    order = rng.choice(("little", "big"))
    data[start : start + size] = value.to_bytes(size, order)


def _digits(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Replace a number that is written out, as in headers of .npy and .ppm."""
    found = list(re.finditer(rb"\d+", data[:4096]))
    if found:
        start, stop = rng.choice(found).span()
        data[start:stop] = str(rng.choice(INTEGERS)).encode()


def _cut(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[_place(rng, data) :]


def _remove(rng: random.Random, data: bytearray, other: bytes) -> None:
    start = _place(rng, data)
    del data[start : start + rng.randrange(1, 64)]


def _repeat(rng: random.Random, data: bytearray, other: bytes) -> None:
    start = _place(rng, data)
    data[start:start] = data[start : start + rng.randrange(1, 256)]


def _insert(rng: random.Random, data: bytearray, other: bytes) -> None:
    start = _place(rng, data)
    data[start:start] = rng.randbytes(rng.randrange(1, 32))


def _erase(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, size = _place(rng, data), rng.randrange(1, 64)
    data[start : start + size] = rng.choice((b"\0", b"\xff")) * size


def _swap(rng: random.Random, data: bytearray, other: bytes) -> None:
    size = rng.randrange(1, 64)
    a, b = sorted((_place(rng, data), _place(rng, data)))
    if a + size <= b:
        first = data[a : a + size]
        data[a : a + size] = data[b : b + size]
        data[b : b + size] = first


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    start = rng.randrange(len(other) + 1)
    piece = other[start : start + rng.randrange(1, 256)]
    place = _place(rng, data)
    data[place : place + rng.choice((0, len(piece)))] = piece


_EDITS = (
    *(_flip, _flip, _set, _set, _number, _number, _digits),
    *(_cut, _remove, _repeat, _insert, _erase, _swap, _splice),
)


# ---- Structures ----------------------------------------------------------------------


def _lines(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Damage a table: its lines, its fields, or one value."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        i = rng.randrange(len(lines))
        fields = re.split(rb"([,\t ])", lines[i])
        j = rng.randrange(len(fields))
        match rng.randrange(6):
            case 0:
                lines.insert(i, lines[rng.randrange(len(lines))])
            case 1 if len(lines) > 1:
                del lines[i]
            case 2:
                lines.insert(i, rng.choice(LINES))
            case 3:
                fields[j] = str(rng.choice(VALUES)).encode()
                lines[i] = b"".join(fields)
            case 4:
                del fields[j]
                lines[i] = b"".join(fields)
            case _:
                fields.insert(j, rng.choice(LINES))
                lines[i] = b"".join(fields)
    return b"\n".join(lines)


def _json(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Damage a JSON text, and leave JSON."""
    try:
        tree = [json.loads(data)]
    except ValueError:
        return damage(rng, data, other)
    for _ in range(rng.choice((1, 1, 2, 3))):
        nodes = list(_nodes(tree))
        parent, key = rng.choice(nodes)
        value = parent[key]
        match rng.randrange(6):
            case 0 if parent is not tree:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(TEXTS)] = parent.pop(key)
            case 2 if isinstance(parent, list) and parent is not tree:
                parent.insert(key, value)
            case 3:
                parent[key] = [value]
            case 4 if isinstance(value, int | float):
                parent[key] = rng.choice((-value, value + 1, value * 2**20, str(value)))
            case _:
                parent[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(tree[0]).encode("utf-8", "surrogatepass")


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _nodes(value)


def _json_lines(rng: random.Random, data: bytes, other: bytes) -> bytes:
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    lines[i] = _json(rng, lines[i], other)
    return b"\n".join(lines)


def _png(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Damage chunks, and correct their lengths and checksums."""
    signature, chunks = data[:8], []
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append(
            [data[place + 4 : place + 8], data[place + 8 : place + 8 + length]]
        )
        place += 12 + length
    for chunk in rng.sample(chunks, rng.choice((1, 1, 2))):
        if chunk[0] == b"IDAT" and rng.random() < 0.5:
            pixels = zlib.decompress(chunk[1])
            chunk[1] = zlib.compress(damage(rng, pixels))
        else:
            chunk[1] = damage(rng, chunk[1])
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    return signature + b"".join(
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )  # fmt: skip


def _gzip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return gzip.compress(damage(rng, gzip.decompress(data), other), 1)


def _zip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Damage a member, its name or their number, and write the archive again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [[info, archive.read(info)] for info in archive.infolist()]
    i = rng.randrange(len(members))
    match rng.randrange(5):
        case 0:
            del members[i]
        case 1:
            members.append(members[i])
        case 2:
            members[i][0].filename = rng.choice(TEXTS) or "x"
        case _:
            info, content = members[i]
            members[i][1] = mutate(rng, content, info.filename, other)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in members:
            written = zipfile.ZipInfo(info.filename)
            written.compress_type = info.compress_type
            archive.writestr(written, content)
    return file.getvalue()


def _tar(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Damage headers, and correct their checksums."""
    edited = bytearray(data)
    headers = [
        start
        for start in range(0, len(edited) - 511, 512)
        if edited[start + 257 : start + 262] == b"ustar"
    ]
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = rng.choice(headers)
        header = bytearray(damage(rng, bytes(edited[start : start + 512]), other))
        header = header[:512].ljust(512, b"\0")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        edited[start : start + 512] = header
    return bytes(edited)


def _safetensors(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Damage the JSON header, and correct its length."""
    (length,) = struct.unpack_from("<Q", data)
    header = _json(rng, data[8 : 8 + length], other)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


_INSIDE: dict[str, Callable[[random.Random, bytes, bytes], bytes]] = {
    **dict.fromkeys(("csv", "tsv", "txt"), _lines),
    **dict.fromkeys(("zip", "npz", "pth"), _zip),
    # Orbax writes JSON into files of these two names.
    **dict.fromkeys(("json", "metadata", "metrics"), _json),
    **{"jsonl": _json_lines, "png": _png, "gz": _gzip, "tar": _tar},
    "safetensors": _safetensors,
}
