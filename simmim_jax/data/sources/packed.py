"""Packed data sets: the folders that `simmim pack` writes.

    dataset.json                        index of splits and shards; written last
    train-labels.npy                    int32 [n], -1 without a label; if some have one
    train-00000-of-00012.array_record   shards, in the order of the split
    skipped.tsv                         images that could not be packed, with reasons

A record is a little-endian header of 15 bytes, the path, and the image:

    int32   label, -1 if there is none
    uint32  height    \\
    uint32  width      } of raw pixels; all 0 for an encoded file
    uint8   channels  /
    uint16  length of the path [bytes]
    bytes   path of the image in the source, UTF-8; may be empty
    bytes   an encoded file (.npy unless uint8), or pixels uint8 [h, w, c]

Since version 2 of the format, an array with names of bands or a nodata value has
channels 0, and its height is the length of a description [bytes] in front of its .npy
file: a JSON object of "bands", a list of names, and "nodata", a number or null.

ArrayRecord stores a checksum with every record and verifies it on every read.
"""

import bisect
import dataclasses
import errno
import functools
import json
import operator
import os
import struct
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import BadImage, BandArray, Raster
from simmim_jax.data.codecs.npy import decode_array, encode_npy
from simmim_jax.data.sources.base import NO_LABEL, check_labels
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import NAME_A_SPLIT
from simmim_jax.errors import NotFoundError, UserError

INDEX = "dataset.json"
FORMAT_ID = "simmim_jax packed images"
FORMAT_VERSION = 2
# Folder that exists until dataset.json is written, and the plan in it.
UNFINISHED = ".pack-unfinished"
PLAN = "plan.json"
# Shards of a split: a process may have all of them open, and is often limited to 1,024
# open files.
MAX_SHARDS = 512
WHAT_TO_DO = (
    "Copy it again from where it was packed, or pack the data set again into another "
    "folder."
)
_MAX_SIZE = 2**48  # of a shard, in bytes or examples
_MAX_CHANNELS = 255  # of raw pixels, in one byte

_HEADER = struct.Struct("<iIIBH")


def to_record(image: bytes | np.ndarray, label: int, path: str) -> bytes:
    """Return the record of an encoded file, or of an array [h, w, c]."""
    height = width = channels = 0
    about = description(image)
    if isinstance(image, bytes):
        data = image
    elif _is_pixels(image) and not about:
        height, width, channels = image.shape
        data = image.tobytes()
    else:
        height, data = len(about), about + encode_npy(image)
    name = path.encode("utf-8", "surrogateescape")
    header = _HEADER.pack(label, height, width, channels, len(name))
    return b"".join((header, name, data))


def description(image: bytes | np.ndarray) -> bytes:
    """Return what a file says of an array as JSON; b"" if it says nothing."""
    if not isinstance(image, BandArray) or (image.bands, image.nodata) == ((), None):
        return b""
    return json.dumps({"bands": image.bands, "nodata": image.nodata}).encode()


def _is_pixels(image: np.ndarray) -> bool:
    """Whether the header can describe an array."""
    is_small = image.ndim == 3 and image.shape[2] <= _MAX_CHANNELS
    return image.dtype == np.uint8 and is_small


def from_record(record: bytes) -> dict[str, Any]:
    """Return the example of a record; raises UserError if it is damaged."""
    if len(record) < _HEADER.size:
        raise UserError(
            f"A record has {len(record)} bytes: expected at least {_HEADER.size}."
        )
    label, height, width, channels, path_bytes = _HEADER.unpack_from(record)
    start = _HEADER.size + path_bytes
    image: bytes | np.ndarray
    if not channels and height:
        image = _described(record[start : start + height], record[start + height :])
    elif not channels:
        image = record[start:]
    elif len(record) - start == height * width * channels:
        pixels = np.frombuffer(record, np.uint8, offset=start)
        image = pixels.reshape(height, width, channels)
    else:
        raise UserError(
            f"A record has {len(record) - start} bytes of pixels: expected "
            f"{height} x {width} x {channels}."
        )
    if not len(image):
        raise UserError(f"A record of {len(record)} bytes has no image.")
    example = {"image": image, "label": label}
    if path_bytes:
        path = record[_HEADER.size : start].decode("utf-8", "surrogateescape")
        example["path"] = path
    return example


def _described(about: bytes, file: bytes) -> BandArray:
    """Return the array of a .npy file with its description."""
    try:
        fields = json.loads(about)
        bands, nodata = tuple(fields["bands"]), fields["nodata"]
        pixels = decode_array(file, "A record")
        raster = Raster(pixels, bands, None if nodata is None else float(nodata))
        if not all(isinstance(band, str) for band in bands):
            raise TypeError("bands are not strings")
    except (BadImage, LookupError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"The array of a record cannot be read: {error}") from error
    return BandArray.of(raster)


def open_shard(path: str) -> Any:
    """Open a shard for random access by several threads.

    raises: OSError if it is not a complete shard, RuntimeError if it does not exist.
    """
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(
        path,
        options="readahead_buffer_size:0,max_parallelism:0",
        file_reader_buffer_size=32768,
    )
    if not reader.ok():  # The first read would raise a RuntimeError with the reason.
        raise OSError(errno.EIO, "not a complete shard", path)
    return reader


@dataclasses.dataclass(frozen=True)
class PackedSource:
    """One split; shard s has the examples starts[s] to starts[s + 1] - 1."""

    folder: str
    shards: tuple[str, ...] = dataclasses.field(repr=False)
    starts: tuple[int, ...] = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    labels_file: str | None = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Example {index} of {len(self)} does not exist.")
        shard = bisect.bisect_right(self.starts, index) - 1
        path = os.path.join(self.folder, self.shards[shard])
        place = int(index) - self.starts[shard]
        try:
            return from_record(self._open_shard(path).read([place])[0])
        except (RuntimeError, ValueError) as error:
            raise OSError(errno.EIO, f"record {place}: {error}", path) from error

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int32 [n], from a separate file; -1 for images without a label."""
        if self.labels_file is None:
            return None
        path = os.path.join(self.folder, self.labels_file)
        try:
            labels = np.load(path, allow_pickle=False)
        except Exception as error:  # NumPy's readers raise exceptions of many types
            raise UserError(
                f"{path!r} cannot be read ({error!s:.100}): expected int32 "
                f"[{len(self)}]. "
                f"{WHAT_TO_DO}"
            ) from error
        labels = check_labels(labels, len(self), repr(path), lowest=NO_LABEL)
        if labels.max(initial=0) >= len(self.class_names):
            raise UserError(
                f"{path!r} has the label {labels.max()}, but {INDEX} has "
                f"{len(self.class_names)} classes. {WHAT_TO_DO}"
            )
        return labels

    @functools.cached_property
    def _open_shard(self) -> Any:
        return functools.lru_cache(MAX_SHARDS)(open_shard)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes need no labels, and open the shards themselves.
        fields = dataclasses.fields(self)
        return PackedSource, tuple(getattr(self, field.name) for field in fields)


def is_packed(folder: str) -> bool:
    """Whether a folder is a packed data set, complete or not."""
    try:
        with open(os.path.join(folder, INDEX), "rb") as file:
            return FORMAT_ID.encode() in file.read(64)
    except FileNotFoundError:
        return os.path.isfile(os.path.join(folder, UNFINISHED, PLAN))


def read_index(folder: str) -> dict[str, Any]:
    """Read dataset.json.

    raises: NotFoundError if the data set is not complete, UserError if the file is
    damaged or a later version of the format wrote it.
    """
    path = os.path.join(folder, INDEX)
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        version = operator.index(index["format_version"])
        if version <= FORMAT_VERSION:
            _check_index(index)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{folder!r} has no {INDEX}: it is no packed set, or packing was "
            "interrupted. Run the same `simmim pack DATASET OUT` again to resume."
        ) from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(
            f"{path!r} is damaged ({type(error).__name__}: {error}): expected the "
            f"index of a packed data set. {WHAT_TO_DO}"
        ) from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"{folder!r} has format_version={version}: expected {FORMAT_VERSION} at "
            "most. Install a newer simmim_jax."
        )
    return index


def _check_index(index: dict[str, Any]) -> None:
    """Raise what reading dataset.json would raise if it is not complete."""
    if not isinstance(index["plan"], dict):
        raise TypeError("the plan is not an object")
    for name, split in index["splits"].items():
        if not split["shards"] or split["num_examples"] < 1:
            raise ValueError(f"split {name!r} is empty")
        for shard in split["shards"]:
            _check_name(shard["file"])
            sizes = [operator.index(shard[key]) for key in ("num_examples", "bytes")]
            if min(sizes) < 0 or max(sizes) > _MAX_SIZE:
                raise ValueError(f"shard {shard['file']!r} has impossible sizes")
            if not isinstance(shard["blake2b"], str):
                raise TypeError(f"shard {shard['file']!r} has no checksum")
        if split["labels"] is not None:
            _check_name(split["labels"])
        if not all(isinstance(each, str) for each in split["class_names"]):
            raise TypeError("class_names are not strings")


def _check_name(file: Any) -> None:
    if not isinstance(file, str) or os.path.basename(file) != file or "\0" in file:
        raise ValueError(f"{file!r} is not the name of a file beside {INDEX}")


def open_packed(folder: str, split: str) -> PackedSource:
    """Open one split of a packed data set; "val" and "validation" are the same.

    raises: UserError for a split that does not exist, NotFoundError for a data set or
    shard that is not complete.
    """
    index = read_index(folder)
    found = index["splits"]
    names = ("validation", "val") if split in ("validation", "val") else (split,)
    name = next((name for name in names if name in found), None)
    if name is None:
        raise UserError(
            f"split={split!r} of {folder!r} does not exist: expected one of "
            f"{', '.join(found)}. {NAME_A_SPLIT}"
        )
    shards = found[name]["shards"]
    for shard in shards:
        check_size(folder, shard)
    starts = np.cumsum([0, *(shard["num_examples"] for shard in shards)])
    return PackedSource(
        folder,
        tuple(shard["file"] for shard in shards),
        tuple(starts.tolist()),
        tuple(found[name]["class_names"]),
        found[name]["labels"],
    )


def check_size(folder: str, shard: dict[str, Any]) -> None:
    """Raise NotFoundError unless a shard of dataset.json exists and is complete."""
    path = os.path.join(folder, shard["file"])
    size = os.path.getsize(path) if os.path.exists(path) else 0
    if size != shard["bytes"]:
        raise NotFoundError(
            f"{path!r} has {size:,} bytes: expected {shard['bytes']:,}. {WHAT_TO_DO}"
        )


def _is_packed_folder(place: str) -> bool:
    return os.path.isdir(place) and is_packed(place)


def _check_packed(folder: str, split: str) -> None:
    open_packed(folder, split)


FORMAT = Format("a packed data set", _is_packed_folder, _check_packed, open_packed)
