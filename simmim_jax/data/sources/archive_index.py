"""Index of the images, or else the sounds, in a tar or zip file, kept between runs."""

import collections
import dataclasses
import importlib.util
import itertools
import os
import pathlib
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources import cache
from simmim_jax.data.sources.base import MAX_CLASSES, NO_LABEL
from simmim_jax.data.sources.paths import is_audio, is_hidden, is_image, pack, unpack
from simmim_jax.data.sources.remote import MAX_BYTES, file_too_large
from simmim_jax.errors import UserError

_IMAGENET_VALIDATION = "ILSVRC2012_img_val.tar"
_MAX_LABEL_BYTES = 1000
# Files that are counted for the error of an archive without images.
_MAX_NAMES = 10_000
_MAX_OFFSET = 2**62
_COLUMNS = ("paths", "offsets", "sizes", "unpacked", "labels", "stamp")


@dataclasses.dataclass
class ArchiveIndex:
    """All images of one archive, in its order.

    offsets, sizes int [n]: of the stored bytes; unpacked int [n]: bytes after
    decompression, -1 for stored files; labels int [n]: from .cls files, -1 without one.
    """

    paths: list[bytes]
    offsets: np.ndarray
    sizes: np.ndarray
    unpacked: np.ndarray
    labels: np.ndarray


def index_archive(file: str) -> ArchiveIndex:
    """Index one archive, or load its index if the file has not changed."""
    status = os.stat(file)
    stamp = np.array([status.st_size, status.st_mtime_ns])
    key = f"archive 6 {os.path.realpath(file)}"
    arrays = cache.load(key, _COLUMNS)
    if arrays is None or not np.array_equal(arrays.pop("stamp"), stamp):
        members = list(_labelled_members(file))
        table = np.array([place for _, *place in members], np.int64).reshape(-1, 4)
        arrays = {
            "paths": pack([path for path, *_ in members]),
            "offsets": table[:, 0],
            "sizes": table[:, 1],
            "unpacked": table[:, 2],
            "labels": table[:, 3].astype(np.int32),
        }
        cache.save(key, len(members), {**arrays, "stamp": stamp})
    block = arrays.pop("paths")
    paths = unpack(block) if len(block) else []
    if os.path.basename(file) == _IMAGENET_VALIDATION:
        paths = _imagenet_validation(paths)
    return ArchiveIndex(paths, **arrays)


def read_member(
    file: str, offset: int, size: int, unpacked: int, max_bytes: int = MAX_BYTES
) -> bytes:
    """Read one file of an archive.

    The archive is opened for every read (10 us): threads and workers then share no file
    position, and a thousand shards need no open files.

    size: of the stored bytes; unpacked: bytes after decompression as the archive says,
    -1 for a stored file.
    raises: OSError if the archive changed, BadImage for more than `max_bytes`.
    """
    if max(size, unpacked) > max_bytes:
        raise file_too_large("A file of an archive", max_bytes)
    with open(file, "rb", buffering=0) as opened:
        data = os.pread(opened.fileno(), size, offset)
    if len(data) != size:
        raise OSError(
            f"{file!r} is truncated: {len(data)} bytes at {offset}, expected {size}"
        )
    if unpacked < 0:
        return data
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # The archive may say less than there is: 400 MB fit into 400 kB.
        content = inflate.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise OSError(f"{file!r} is corrupt at byte {offset}: {error}") from error
    if len(content) > max_bytes:
        raise file_too_large("A file of an archive", max_bytes)
    if not inflate.eof:
        raise OSError(f"{file!r} is corrupt at byte {offset}: incomplete data")
    return content


# Path, offset, size, unpacked size.
_Member = tuple[bytes, int, int, int]


def _labelled_members(file: str) -> Iterator[tuple[bytes, int, int, int, int]]:
    """Yield the images of an archive with the labels from their .cls files.

    Sounds take their place in an archive without images.
    """
    members = list(archive_members(file))
    images = [member for member in members if is_image(member[0])]
    images = images or [member for member in members if is_audio(member[0])]
    numbers = [member for member in members if _is_number(member[0])]
    number_of = _match_numbers(
        [path for path, *_ in images], [path for path, *_ in numbers], file
    )
    labels = {}
    for path, offset, size, unpacked in numbers:
        text = _read_label(file, offset, size, unpacked)
        if not text.isdigit() or int(text) >= MAX_CLASSES:
            raise UserError(
                f"{os.fsdecode(path)!r} in {file!r} contains {text[:40]!r}: "
                "expected the number of the class, from 0 and less than "
                f"{MAX_CLASSES:,}. Write the archive again, or leave out all .cls "
                "files and use class folders."
            )
        labels[path] = int(text)
    for path, offset, size, unpacked in images:
        number = number_of.get(path)
        label = NO_LABEL if number is None else labels[number]
        yield path, offset, size, unpacked, label


def _match_numbers(
    images: Sequence[bytes], numbers: Sequence[bytes], file: str
) -> dict[bytes, bytes]:
    """Return the .cls file of each image that has one.

    It has the image's name without the ending: img_1.0m.cls of img_1.0m.jpg. Without
    such a file, it is the one that WebDataset puts into the same example, since names
    are equal up to the first dot: 0.cls of 0.left.jpg.
    raises: UserError for an image that several .cls files match.
    """
    by_stem: dict[bytes, set[bytes]] = collections.defaultdict(set)
    by_key: dict[bytes, set[bytes]] = collections.defaultdict(set)
    stems = set(map(_stem, images))
    for number in numbers:
        stem, key = _stem(number), _key(number)
        by_stem[stem].add(number)
        # 0.cls belongs to all of 0.left.jpg and 0.jpg, 0.left.cls to the former alone.
        if stem == key or stem not in stems:
            by_key[key].add(number)
    found = {}
    for image in images:
        matches = by_stem.get(_stem(image)) or by_key.get(_key(image)) or ()
        if len(matches) > 1:
            names = ", ".join(repr(os.fsdecode(name)) for name in sorted(matches))
            raise UserError(
                f"{os.fsdecode(image)!r} in {file!r} has the .cls files {names}: "
                "expected one, with the name of the image. Rename or remove the others."
            )
        if matches:
            (found[image],) = matches
    return found


def _read_label(file: str, offset: int, size: int, unpacked: int) -> bytes:
    """Return the text of a .cls file, b"" if it is longer than any number."""
    try:
        return read_member(file, offset, size, unpacked, _MAX_LABEL_BYTES).strip()
    except BadImage:
        return b""
    except OSError as error:
        raise broken(file, f"cannot be read ({error})") from error


def _is_number(path: bytes) -> bool:
    """Whether a file has the number of a class."""
    return path.lower().endswith(b".cls")


def _stem(path: bytes) -> bytes:
    """Return a path without its ending."""
    return path.rpartition(b".")[0]


def _key(path: bytes) -> bytes:
    """Return the path up to the name's first dot, WebDataset's key of an example."""
    folder, slash, name = path.rpartition(b"/")
    return folder + slash + name.partition(b".")[0]


def _is_wanted(path: bytes) -> bool:
    is_known = is_image(path) or is_audio(path) or _is_number(path)
    return is_known and not any(map(is_hidden, path.split(b"/")))


def archive_members(file: str) -> Iterator[_Member]:
    """Yield images, sounds and .cls files of an archive; a tar in a tar is a folder.

    raises: UserError if it is damaged.
    """
    is_zip = file.lower().endswith(".zip")
    with open(file, "rb") as opened:
        try:
            found = _zip_members(opened, file) if is_zip else _tar_members(opened)
            for member in found:
                path, *place = member
                if b"\0" in path or not all(-1 <= at < _MAX_OFFSET for at in place):
                    raise ValueError(f"{path[:80]!r} has an impossible name or size")
                yield member
        except UserError:
            raise
        except Exception as error:  # tarfile and zipfile raise exceptions of many types
            kind = "zip" if is_zip else "tar"
            what = f"is not a {kind} file, or is corrupt ({error})"
            raise broken(file, what) from error


def file_names(file: str) -> list[bytes]:
    """Return names of files in an archive that can be read, at most `_MAX_NAMES`."""
    if file.lower().endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()[:_MAX_NAMES]
            return [os.fsencode(i.filename) for i in infos if not i.is_dir()]
    with tarfile.TarFile(file) as tar:
        members = itertools.islice(tar, _MAX_NAMES)
        return [os.fsencode(m.name) for m in members if m.isreg()]


def check_zip(file: str) -> None:
    """Raise UserError if a file does not end like a zip file."""
    with open(file, "rb") as opened:
        if not zipfile.is_zipfile(opened):
            raise broken(file, "is not a zip file")


def _tar_members(
    opened: IO[bytes], folder: bytes = b"", start: int = 0
) -> Iterator[_Member]:
    places: dict[bytes, tuple[int, int]] = {}
    tar = tarfile.TarFile(fileobj=opened)
    while member := tar.next():
        # tarfile would keep all members, 1 GB for a million.
        tar.members = []  # type: ignore[attr-defined]
        path = folder + os.fsencode(member.name).removeprefix(b"./")
        if member.islnk():  # a hard link to an earlier file
            target = folder + os.fsencode(member.linkname).removeprefix(b"./")
            if _is_wanted(path) and target in places:
                yield path, *places[target], -1
            continue
        if not member.isreg():
            continue
        if path.endswith(b".tar") and not folder:
            inner = tar.extractfile(member)
            assert inner is not None  # a regular file
            yield from _tar_members(
                inner, path.removesuffix(b".tar") + b"/", member.offset_data
            )
        elif _is_wanted(path):
            places[path] = start + member.offset_data, member.size
            yield path, *places[path], -1
    # tarfile stops at a corrupt header; the true end is a block of zeros.
    opened.seek(tar.offset)
    if opened.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"bad header at byte {start + tar.offset}")


def _zip_members(opened: IO[bytes], file: str) -> Iterator[_Member]:
    for member in zipfile.ZipFile(opened).infolist():
        path = os.fsencode(member.filename).removeprefix(b"./")
        if not _is_wanted(path):
            continue
        stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
        if member.flag_bits & 1 or member.compress_type not in (stored, deflated):
            raise UserError(
                f"{member.filename!r} in {file!r} is encrypted or compressed by method "
                f"{member.compress_type}: expected stored or deflated files. Make the "
                "file again with zip -0."
            )
        # The local header may have other lengths of name and extra fields.
        header = os.pread(opened.fileno(), 30, member.header_offset)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise zipfile.BadZipFile(f"{member.filename!r} is not where it is listed")
        start = member.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))
        unpacked = member.file_size if member.compress_type == deflated else -1
        yield path, start, member.compress_size, unpacked


def broken(file: str, what: str) -> UserError:
    """Return the error for a file that is not an archive, or not a complete one."""
    return UserError(
        f"{file!r} {what}: expected a complete, uncompressed .tar, or a .zip. Copy or "
        "download it again; decompress a compressed .tar first."
    )


def _imagenet_validation(paths: list[bytes]) -> list[bytes]:
    """Put ImageNet's validation images, whose tar has no labels, into class folders.

    tensorflow_datasets contains the labels, ordered by the number of the image.
    """
    spec = importlib.util.find_spec("tensorflow_datasets")
    assert spec is not None  # a dependency
    assert spec.origin is not None
    package = pathlib.Path(spec.origin).parent
    labels = package / "datasets" / "imagenet2012" / "validation_labels.txt"
    synsets = labels.read_bytes().split()

    def labelled(path: bytes) -> bytes:
        number = re.fullmatch(rb"ILSVRC2012_val_(\d{8})\.JPEG", path)
        return synsets[int(number[1]) - 1] + b"/" + path if number else path

    return list(map(labelled, paths))
