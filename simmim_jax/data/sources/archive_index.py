"""Where the images in a tar or zip file are: an index, kept between runs."""

import dataclasses
import importlib.util
import os
import pathlib
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from simmim_jax.data.sources import cache
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.paths import is_hidden, is_image, pack, unpack
from simmim_jax.errors import UserError

_IMAGENET_VALIDATION = "ILSVRC2012_img_val.tar"


@dataclasses.dataclass
class ArchiveIndex:
    """All images of one archive, in its order.

    offsets, sizes int[n]: bytes, as stored; deflated bool[n]; labels int[n]: numbers
    in .cls files, -1 where there is none.
    """

    paths: list[bytes]
    offsets: np.ndarray
    sizes: np.ndarray
    deflated: np.ndarray
    labels: np.ndarray


def index_archive(file: str) -> ArchiveIndex:
    """Index one archive, or take the index that was kept if the file is the same."""
    status = os.stat(file)
    stamp = np.array([status.st_size, status.st_mtime_ns])
    key = f"archive 2 {os.path.realpath(file)}"
    arrays = cache.load(key)
    if arrays is None or (arrays.pop("stamp") != stamp).any():
        members = list(_labelled_members(file))
        table = np.array([place for _, *place in members], np.int64).reshape(-1, 4)
        arrays = {
            "paths": pack([path for path, *_ in members]),
            "offsets": table[:, 0],
            "sizes": table[:, 1],
            "deflated": table[:, 2].astype(bool),
            "labels": table[:, 3].astype(np.int32),
        }
        cache.save(key, len(members), {**arrays, "stamp": stamp})
    block = arrays.pop("paths")
    paths = unpack(block) if len(block) else []
    if os.path.basename(file) == _IMAGENET_VALIDATION:
        paths = _imagenet_validation(paths)
    return ArchiveIndex(paths, **arrays)


def read_member(file: str, offset: int, size: int, deflated: bool) -> bytes:
    """Read one file of an archive; raises OSError if it is not there any more.

    The archive is opened for each: that takes 10 us, and threads, workers and a
    thousand shards share no position and keep no files open.
    """
    with open(file, "rb", buffering=0) as opened:
        data = os.pread(opened.fileno(), size, offset)
    if len(data) != size:
        raise OSError(f"{file!r} is cut off: {len(data)} bytes at {offset}, not {size}")
    if not deflated:
        return data
    try:
        return zlib.decompress(data, wbits=-zlib.MAX_WBITS)
    except zlib.error as error:
        raise OSError(f"{file!r} is broken at byte {offset}: {error}") from error


# Path, offset, size and whether it is deflated.
_Member = tuple[bytes, int, int, bool]


def _labelled_members(file: str) -> Iterator[tuple[bytes, int, int, bool, int]]:
    """Yield the images of an archive, each with the number in its .cls file."""
    find = _zip_members if file.lower().endswith(".zip") else tar_members
    with open(file, "rb") as opened:
        members = list(find(opened, file))
    labels = {}
    for path, offset, size, deflated in members:
        if path.endswith(b".cls"):
            text = read_member(file, offset, size, deflated)
            if not text.strip().isdigit():
                raise UserError(
                    f"{os.fsdecode(path)!r} in {file!r} has {text[:40]!r}: "
                    "expected the number of the class, 0 or more."
                )
            labels[_key(path)] = int(text)
    for path, offset, size, deflated in members:
        if is_image(path):
            yield path, offset, size, deflated, labels.get(_key(path), NO_LABEL)


def _key(path: bytes) -> bytes:
    """What files of one example have in common: all up to the name's first dot."""
    folder, slash, name = path.rpartition(b"/")
    return folder + slash + name.partition(b".")[0]


def _is_wanted(path: bytes) -> bool:
    return (is_image(path) or path.endswith(b".cls")) and not any(
        map(is_hidden, path.split(b"/"))
    )


def tar_members(
    opened: IO[bytes], file: str, folder: bytes = b"", start: int = 0
) -> Iterator[_Member]:
    """Yield images and .cls files; a tar within is a folder of its name."""
    places: dict[bytes, tuple[int, int]] = {}
    try:
        tar = tarfile.TarFile(fileobj=opened)
        while member := tar.next():
            # It would keep them all, a gigabyte for a million.
            tar.members = []  # type: ignore[attr-defined]
            path = folder + os.fsencode(member.name).removeprefix(b"./")
            if member.islnk():  # a hard link, to a file before it
                target = folder + os.fsencode(member.linkname).removeprefix(b"./")
                if _is_wanted(path) and target in places:
                    yield path, *places[target], False
                continue
            if not member.isreg():
                continue
            if path.endswith(b".tar") and not folder:
                inner = tar.extractfile(member)
                assert inner is not None  # a regular file
                yield from tar_members(
                    inner, file, path.removesuffix(b".tar") + b"/", member.offset_data
                )
            elif _is_wanted(path):
                places[path] = start + member.offset_data, member.size
                yield path, *places[path], False
        # tarfile takes a broken header for the end, which is a block of zeros.
        opened.seek(tar.offset)
        if opened.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"bad header at byte {start + tar.offset}")
    except tarfile.ReadError as error:
        raise broken(file, f"is no tar file, or a broken one ({error})") from error


def _zip_members(opened: IO[bytes], file: str) -> Iterator[_Member]:
    """Yield images and .cls files."""
    try:
        members = zipfile.ZipFile(opened).infolist()
    except zipfile.BadZipFile as error:
        raise broken(file, f"is no zip file, or a broken one ({error})") from error
    for member in members:
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
        # The header beside the data has a name and extra fields of its own length.
        header = os.pread(opened.fileno(), 30, member.header_offset)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise broken(file, f"has no {member.filename!r} where its list says")
        start = member.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))
        is_deflated = member.compress_type == deflated
        yield path, start, member.compress_size, is_deflated


def broken(file: str, what: str) -> ValueError:
    """Return the error for a file that is no archive or not a whole one."""
    return ValueError(
        f"{file!r} {what}: expected a whole .tar that is not compressed, or a .zip. "
        "Copy or download it again; of a compressed one make a .tar first."
    )


def _imagenet_validation(paths: list[bytes]) -> list[bytes]:
    """Put ImageNet's validation images, whose tar has no labels, into class folders.

    tensorflow_datasets comes with the labels, in the order of the images' numbers.
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
