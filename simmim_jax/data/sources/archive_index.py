"""Index of the images in a tar or zip file, kept between runs."""

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

    offsets, sizes int [n]: of the stored bytes; deflated bool [n]; labels int [n]: from
    .cls files, -1 without one.
    """

    paths: list[bytes]
    offsets: np.ndarray
    sizes: np.ndarray
    deflated: np.ndarray
    labels: np.ndarray


def index_archive(file: str) -> ArchiveIndex:
    """Index one archive, or load its index if the file has not changed."""
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
    """Read one file of an archive; raises OSError if the archive changed.

    The archive is opened for every read (10 us): threads and workers then share no file
    position, and a thousand shards need no open files.
    """
    with open(file, "rb", buffering=0) as opened:
        data = os.pread(opened.fileno(), size, offset)
    if len(data) != size:
        raise OSError(
            f"{file!r} is truncated: {len(data)} bytes at {offset}, expected {size}"
        )
    if not deflated:
        return data
    try:
        return zlib.decompress(data, wbits=-zlib.MAX_WBITS)
    except zlib.error as error:
        raise OSError(f"{file!r} is corrupt at byte {offset}: {error}") from error


# Path, offset, size, is deflated.
_Member = tuple[bytes, int, int, bool]


def _labelled_members(file: str) -> Iterator[tuple[bytes, int, int, bool, int]]:
    """Yield the images of an archive with the labels from their .cls files."""
    find = _zip_members if file.lower().endswith(".zip") else tar_members
    with open(file, "rb") as opened:
        members = list(find(opened, file))
    labels = {}
    for path, offset, size, deflated in members:
        if path.endswith(b".cls"):
            text = read_member(file, offset, size, deflated)
            if not text.strip().isdigit():
                raise UserError(
                    f"{os.fsdecode(path)!r} in {file!r} contains "
                    f"{text[:40]!r}: expected the number of the class, 0 or more."
                )
            labels[_key(path)] = int(text)
    for path, offset, size, deflated in members:
        if is_image(path):
            yield path, offset, size, deflated, labels.get(_key(path), NO_LABEL)


def _key(path: bytes) -> bytes:
    """Return what files of one example share: the path up to the name's first dot."""
    folder, slash, name = path.rpartition(b"/")
    return folder + slash + name.partition(b".")[0]


def _is_wanted(path: bytes) -> bool:
    return (is_image(path) or path.endswith(b".cls")) and not any(
        map(is_hidden, path.split(b"/"))
    )


def tar_members(
    opened: IO[bytes], file: str, folder: bytes = b"", start: int = 0
) -> Iterator[_Member]:
    """Yield images and .cls files; a tar inside counts as a folder of its name."""
    places: dict[bytes, tuple[int, int]] = {}
    try:
        tar = tarfile.TarFile(fileobj=opened)
        while member := tar.next():
            # tarfile would keep all members, 1 GB for a million.
            tar.members = []  # type: ignore[attr-defined]
            path = folder + os.fsencode(member.name).removeprefix(b"./")
            if member.islnk():  # a hard link to an earlier file
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
        # tarfile stops at a corrupt header; the true end is a block of zeros.
        opened.seek(tar.offset)
        if opened.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"bad header at byte {start + tar.offset}")
    except tarfile.ReadError as error:
        raise broken(file, f"is not a tar file, or is corrupt ({error})") from error


def _zip_members(opened: IO[bytes], file: str) -> Iterator[_Member]:
    """Yield images and .cls files."""
    try:
        members = zipfile.ZipFile(opened).infolist()
    except zipfile.BadZipFile as error:
        raise broken(file, f"is not a zip file, or is corrupt ({error})") from error
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
        # The local header may have other lengths of name and extra fields.
        header = os.pread(opened.fileno(), 30, member.header_offset)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise broken(file, f"has no {member.filename!r} at the listed offset")
        start = member.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))
        is_deflated = member.compress_type == deflated
        yield path, start, member.compress_size, is_deflated


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
