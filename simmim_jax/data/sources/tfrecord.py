"""TFRecord files of tf.train.Example, read at random through an index.

A record is its length (uint64), the masked CRC-32C of these 8 bytes (uint32), the data,
and the masked CRC-32C of the data; all little-endian.
"""

import dataclasses
import mmap
import os
import re
import struct
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources import cache, tf_example
from simmim_jax.data.sources.base import (
    MAX_CLASSES,
    NO_LABEL,
    known_labels,
    numbered_classes,
)
from simmim_jax.data.sources.folders import Files, list_files
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import (
    TRAIN,
    Classes,
    Paths,
    find_split,
    hashed_split,
    named_splits,
    nothing_to_learn_from,
    pack,
    unpack,
)
from simmim_jax.data.sources.remote import MAX_BYTES, file_too_large
from simmim_jax.data.sources.stacks import has_files
from simmim_jax.errors import MissingPackageError, NotFoundError, UserError

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_GZIP = b"\x1f\x8b"
# data.tfrecord, data.tfrecord-00000-of-00010, and train-00000-of-01024 of ImageNet.
_NAME = re.compile(
    rb"(.*/)?(.+\.tfrecords?(-\d{5}-of-\d{5})?(\.gz)?|\w+-\d{5}-of-\d{5})",
    re.IGNORECASE,
)
_FILES = Files(
    lambda name: _NAME.fullmatch(name) is not None,
    (".tfrecord", ".tfrecords"),
    "tfrecord 1",
)
_IMAGES = ("image/encoded", "image", "image_raw", "img", "encoded")
_LABELS = ("image/class/label", "label", "labels", "class")
_NAMES = ("image/class/text", "label_text", "class_name")
_SIZES = (("image/height", "image/width"), ("height", "width"))
_ENCODED = (
    b"\xff\xd8",
    b"\x89PNG",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II",
    b"MM",
    b"\x93NUMPY",
)
_COLUMNS = ("offsets", "sizes", "numbers", "names", "stamp")


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """Images in records of TFRecord files.

    file int [n]: position in `files`, relative to root; offsets, sizes int64 [n]: of
    the data of records; labels int32 [n] or None; image_key: of the feature;
    unlabelled: why there are no labels, if that may be a mistake; max_bytes: of a
    record.
    """

    root: str
    files: Paths = dataclasses.field(repr=False)
    file: np.ndarray = dataclasses.field(repr=False)
    offsets: np.ndarray = dataclasses.field(repr=False)
    sizes: np.ndarray = dataclasses.field(repr=False)
    image_key: str
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    unlabelled: str = ""
    max_bytes: int = MAX_BYTES

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        path = os.path.join(self.root, self.files[int(self.file[index])])
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        name = f"{path}:{offset}"
        try:
            record = _read_record(path, offset, size, self.max_bytes)
            image = _image(record, self.image_key)
        except BadImage as error:
            error.filename = name
            raise
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": image, "label": label, "path": name}


def masked_crc32c(data: bytes) -> int:
    """Return the checksum that TFRecord files store."""
    try:
        import google_crc32c
    except ImportError as error:
        raise MissingPackageError(
            "TFRecord files need the package google-crc32c: "
            "pip install 'simmim_jax[arrays]'."
        ) from error
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_record(path: str, offset: int, size: int, max_bytes: int) -> bytes:
    """Return the data of a record; raises BadImage if it has changed."""
    if size > max_bytes:
        raise file_too_large("A record", max_bytes)
    # Opened for every read (10 us): threads and workers then share no position.
    with open(path, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), size + _CRC.size, offset)
    if len(data) != size + _CRC.size:
        raise BadImage("truncated", f"{path!r} ends within the record at {offset}.")
    record = data[:size]
    if masked_crc32c(record) != _CRC.unpack_from(data, size)[0]:
        raise BadImage(
            "corrupt",
            f"The record at byte {offset} of {path!r} does not match its CRC-32C.",
        )
    return record


def _image(record: bytes, key: str) -> bytes:
    try:
        for name, feature in tf_example.features(memoryview(record)):
            found = tf_example.values(feature) if name == key else []
            if found and isinstance(found[0], bytes):
                return found[0]
    except ValueError as error:
        raise BadImage(
            "corrupt", f"A record is no tf.train.Example: {error}."
        ) from error
    raise BadImage("empty", f"A record has no bytes in its feature {key!r}.")


# ---- The index -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Index:
    """All records of one file.

    offsets, sizes int64 [n]; numbers int64 [n]: labels, -1 without one; names: of
    classes in the records, b"" without one.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    numbers: np.ndarray
    names: list[bytes]


def _index_file(path: str) -> _Index:
    """Index one file, or load its index if the file has not changed."""
    status = os.stat(path)
    stamp = np.array([status.st_size, status.st_mtime_ns])
    key = f"tfrecord 1 {os.path.realpath(path)}"
    arrays = cache.load(key, _COLUMNS)
    if arrays is None or not np.array_equal(arrays.pop("stamp"), stamp):
        records = _scan(path) if status.st_size else []
        table = np.array([record[:3] for record in records], np.int64).reshape(-1, 3)
        arrays = {
            "offsets": table[:, 0],
            "sizes": table[:, 1],
            "numbers": table[:, 2],
            "names": pack([name for *_, name in records]),
        }
        cache.save(key, len(records), {**arrays, "stamp": stamp})
    names = arrays.pop("names")
    return _Index(**arrays, names=unpack(names) if len(arrays["sizes"]) else [])


def _scan(path: str) -> list[tuple[int, int, int, bytes]]:
    """Return offset, size, label and name of the class of each record.

    Of images, which are most of a file, nothing is read. raises: UserError where
    lengths do not match their checksums.
    """
    found = []
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
    ):
        at = 0
        while at < len(whole):
            header = bytes(whole[at : at + _HEADER.size])
            at += _HEADER.size
            size, crc = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
            if masked_crc32c(header[:8]) != crc or at + size + _CRC.size > len(whole):
                raise _damaged(path, at - _HEADER.size, header)
            with whole[at : at + size] as record:
                found.append((at, size, *_label(record)))
            at += size + _CRC.size
    return found


def _label(record: memoryview) -> tuple[int, bytes]:
    """Return the number and the name of a record's class, -1 and b"" without."""
    number, name = NO_LABEL, b""
    try:
        for key, feature in tf_example.features(record):
            value = None
            if key in _LABELS or key in _NAMES:
                value = next(iter(tf_example.values(feature)), None)
            if isinstance(value, int):
                number = value
            elif isinstance(value, bytes) and b"\0" not in value:
                name = value
    except ValueError:
        pass  # a bad image when it is read
    return number, name


def _damaged(path: str, at: int, header: bytes) -> UserError:
    if at == 0 and header.startswith(_GZIP):
        return _compressed(path)
    return UserError(
        f"{path!r} is truncated or damaged at byte {at:,}: expected a record of a "
        "TFRecord file, whose length matches its CRC-32C. Copy or write it again."
    )


def _compressed(path: str) -> UserError:
    return UserError(
        f"{path!r} is compressed, which prevents random access: expected records "
        "without compression, encoded images hardly grow. Decompress it: "
        f"mv {path} x.gz; gunzip x.gz."
    )


# ---- Opening -------------------------------------------------------------------------


def _open_records(
    place: str, chosen: list[str], others: list[str] | None, split: str, max_bytes: int
) -> RecordSource:
    """Open files, paths relative to `place`.

    others: files of other splits, which also name classes; None: `chosen` has all
    records, which hashes divide.
    """
    parts = [_index_file(os.path.join(place, file)) for file in chosen]
    counts = [len(part.offsets) for part in parts]
    if not sum(counts):
        raise NotFoundError(
            f"{place!r} has no records: expected images. Write it again."
        )
    file = np.repeat(np.arange(len(chosen), dtype=np.int32), counts)
    offsets = np.concatenate([part.offsets for part in parts])
    sizes = np.concatenate([part.sizes for part in parts])
    first = os.path.join(place, chosen[int(file[0])])
    key = _image_key(first, int(offsets[0]), int(sizes[0]))
    rest = [_index_file(os.path.join(place, other)) for other in others or ()]
    labels, class_names, unlabelled = _classes(parts, rest, split, place)
    indices = np.arange(len(file))
    if others is None:
        names = [
            f"{name}:{number}".encode()
            for name, count in zip(chosen, counts, strict=True)
            for number in range(count)
        ]
        indices = hashed_split(names, split, place)
        labels = None if labels is None else known_labels(labels[indices])
    return RecordSource(
        place,
        Paths(list(map(os.fsencode, chosen))),
        file[indices],
        offsets[indices],
        sizes[indices],
        key,
        labels,
        class_names if labels is not None else (),
        unlabelled,
        max_bytes,
    )


def _image_key(path: str, offset: int, size: int) -> str:
    """Return the feature with the image; raises UserError unless a record has one."""
    try:
        record = _read_record(path, offset, size, size)
        found = dict(tf_example.features(memoryview(record)))
        lists = {name: tf_example.values(feature) for name, feature in found.items()}
    except (BadImage, ValueError) as error:
        raise UserError(
            f"The first record of {path!r} is no tf.train.Example ({error}): expected "
            "one with a feature image/encoded or image. Write the file again."
        ) from error
    texts = [
        name for name, each in lists.items() if each and isinstance(each[0], bytes)
    ]
    key = next((name for name in _IMAGES if name in texts), None)
    if key is None:
        raise UserError(
            f"{path!r} has the features {', '.join(sorted(lists)) or '(none)'}: "
            "expected "
            f"bytes of an encoded image in {', '.join(_IMAGES[:-1])} or {_IMAGES[-1]}. "
            "Write the images so, or as files."
        )
    image = lists[key][0]
    assert isinstance(image, bytes)
    for height, width in _SIZES:
        try:
            area = int(lists[height][0]) * int(lists[width][0])
        except (KeyError, IndexError, ValueError):
            continue
        if area > 0 and len(image) % area == 0 and not image.startswith(_ENCODED):
            raise UserError(
                f"{path!r} has raw pixels in its feature {key!r}, whose type and order "
                "are not recorded: expected encoded images. Write them with "
                "tf.io.encode_png, or as one array [n, h, w, c] with np.save."
            )
    return key


def _classes(
    parts: list[_Index], others: list[_Index], split: str, place: str
) -> Classes:
    """Return the classes of a split's files; `others` also name classes."""
    every = [*parts, *others]
    numbers = np.concatenate([part.numbers for part in parts])
    all_numbers = np.concatenate([part.numbers for part in every])
    names = [name for part in every for name in part.names]
    if (all_numbers != NO_LABEL).any():
        low, high = int(all_numbers.min()), int(all_numbers.max())
        if low < NO_LABEL or high >= MAX_CLASSES:
            raise UserError(
                f"{place!r} has labels from {low} to {high}: expected classes, counted "
                f"from 0 and fewer than {MAX_CLASSES:,}. Number the classes anew."
            )
        class_names = list(numbered_classes(all_numbers))
        for number, name in zip(all_numbers.tolist(), names, strict=True):
            if number >= 0 and name:
                class_names[number] = os.fsdecode(name)
    else:
        known = sorted(set(names) - {b""})
        number_of = {name: number for number, name in enumerate(known)}
        all_numbers = np.array([number_of.get(name, NO_LABEL) for name in names])
        numbers = all_numbers[: len(numbers)]
        class_names = list(map(os.fsdecode, known))
    lacking = np.setdiff1d(all_numbers, np.append(numbers, NO_LABEL))
    if len(lacking) and split == TRAIN:
        listed = [class_names[number] for number in lacking]
        return Classes(unlabelled=nothing_to_learn_from(listed, place, "records"))
    return Classes(known_labels(numbers.astype(np.int32)), tuple(class_names))


# ---- Formats -------------------------------------------------------------------------


def _is_file(place: str) -> bool:
    name = os.fsencode(os.path.basename(place))
    return _NAME.fullmatch(name) is not None and os.path.isfile(place)


def _check_file(place: str, split: str) -> None:
    find_split(split, place, lambda name: False)
    if place.lower().endswith(".gz"):
        raise _compressed(place)


def _open_file(place: str, split: str, *, max_bytes: int) -> RecordSource:
    _check_file(place, split)
    folder, file = os.path.split(os.path.abspath(place))
    return _open_records(folder, [file], None, split, max_bytes)


def _check_folder(place: str, split: str) -> None:
    _find(place, split)


def _open_folder(place: str, split: str, *, max_bytes: int) -> RecordSource:
    return _open_records(place, *_find(place, split), split, max_bytes)


def _find(place: str, split: str) -> tuple[list[str], list[str] | None]:
    """Return the files of a split and those of others; all and None without splits."""
    files = list(map(os.fsdecode, list_files(place, _FILES)))
    for file in files:
        if file.lower().endswith(".gz"):
            raise _compressed(os.path.join(place, file))
    splits = named_splits(files)
    name = find_split(split, place, splits.__contains__, list(splits))
    if name is None:
        return files, None
    others = [file for file in files if file not in set(splits[name])]
    return splits[name], others


FILE = Format(
    "a .tfrecord file", _is_file, _check_file, _open_file, takes_max_bytes=True
)
FOLDER = Format(
    "a folder of .tfrecord files",
    lambda place: has_files(place, _FILES),
    _check_folder,
    _open_folder,
    takes_max_bytes=True,
)
