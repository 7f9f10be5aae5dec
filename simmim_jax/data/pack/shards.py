"""Pack images, and write and verify one shard in a process of `simmim pack`."""

import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import threading
from typing import Any

import numpy as np
from PIL import Image

from simmim_jax.data.codecs.base import (
    MAX_PIXELS,
    BadImage,
    BandArray,
    Codec,
    Decoding,
    Raster,
)
from simmim_jax.data.codecs.image import (
    IMAGE,
    PHOTO_CHANNELS,
    decode_jpeg,
    read_jpeg_header,
)
from simmim_jax.data.codecs.registry import codec_of, read, register_codec
from simmim_jax.data.loader.bad_examples import reason_of
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.packed import (
    UNFINISHED,
    WHAT_TO_DO,
    from_record,
    open_shard,
    to_record,
)
from simmim_jax.data.sources.remote import MAX_BYTES
from simmim_jax.data.views.crop import resize_center_crop
from simmim_jax.errors import UserError

FORMATS = ("jpeg", "raw")
SKIPPED = (OSError, BadImage)  # errors of a single image
# One record per chunk: otherwise a read also loads its neighbours. No compression:
# JPEGs would not shrink, and raw pixels are stored for fast reads.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_MAX_JPEG_SIDE = 65_500  # limit of libjpeg
_READ_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are packed; see `pack_image`."""

    short_side: int = 256
    format: str = "jpeg"
    quality: int = 90
    channels: int = 3
    value_range: tuple[float, float] | None = None
    level: int = 0
    max_image_pixels: int = MAX_PIXELS
    max_file_mb: int = MAX_BYTES // 10**6

    @property
    def decoding(self) -> Decoding:
        """How images are decoded."""
        return Decoding(
            channels=self.channels,
            value_range=self.value_range,
            level=self.level,
            max_pixels=self.max_image_pixels,
        )


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file with the examples start to stop - 1 of a split."""

    split: str
    file: str
    start: int
    stop: int


def pack_image(image: bytes | np.ndarray, options: Options) -> bytes | np.ndarray:
    """Decode an image, shrink its short side to `short_side`, and encode it.

    format "jpeg" returns a JPEG file; with short_side=0, the file as it was given.
    format "raw" returns a BandArray [h, w, c] of the values, with the names and the
    nodata value of the file; with short_side=0, of the original size. So do arrays with
    "jpeg" and short_side=0.
    raises: the errors of `decode`; BadImage for values or sizes, UserError for channels
    and names of bands that no JPEG can store.
    """
    raster, (height, width) = _decode(image, options)
    pixels, nodata = raster.pixels, raster.nodata
    short, long = sorted((height, width))
    if 0 < options.short_side < short:
        long = int(options.short_side * long / short)  # like torchvision's Resize
        short = options.short_side
        size = (short, long) if height <= width else (long, short)
        pixels = resize_center_crop(pixels, size, 1.0, "bicubic", nodata=nodata)
    if options.format == "raw" or not options.short_side:
        is_kept = options.format == "jpeg" and not options.value_range
        if isinstance(image, bytes) and is_kept:
            return image
        return BandArray.of(Raster(pixels, raster.bands, nodata))
    if pixels.shape[2] not in PHOTO_CHANNELS:
        raise UserError(
            f"--format=jpeg cannot store {pixels.dtype} images of {pixels.shape[2]} "
            "channels: expected uint8 and 1 or 3 channels. Use --format=raw, which "
            "stores arrays losslessly."
        )
    if raster.bands:
        raise UserError(
            f"--format=jpeg would lose the names of bands {', '.join(raster.bands)}: "
            "use --format=raw, which keeps them."
        )
    if pixels.dtype != np.uint8:
        raise BadImage(
            "other values",
            f"--format=jpeg stores 8 bits, but an image has {pixels.dtype} values: map "
            "them with --value_range=LOW HIGH, or use --format=raw.",
        )
    if nodata is not None and (pixels == nodata).any():
        raise BadImage(
            "other values",
            f"--format=jpeg would mix pixels without data, {nodata:g}, with others: "
            "use --format=raw.",
        )
    if long > _MAX_JPEG_SIDE:
        raise BadImage(
            "too large",
            f"The image has {width} x {height} pixels, a JPEG at most {_MAX_JPEG_SIDE} "
            "per side: --format=raw has no limit.",
        )
    file = io.BytesIO()
    is_gray = options.channels == 1
    Image.fromarray(pixels[:, :, 0] if is_gray else pixels).save(
        file, "JPEG", quality=options.quality
    )
    return file.getvalue()


def _decode(
    image: bytes | np.ndarray, options: Options
) -> tuple[Raster, tuple[int, int]]:
    """Return the decoded image, and its height and width before any reduction.

    A JPEG that shrinks to less than half is reduced while it is decoded, to at least
    twice the short side.
    """
    is_photo = options.channels in PHOTO_CHANNELS and not options.value_range
    if isinstance(image, bytes) and options.short_side and is_photo:
        limit = options.max_image_pixels
        jpeg = read_jpeg_header(image, limit) if codec_of(image) is IMAGE else None
        room = min(jpeg.shape) / (2 * options.short_side) if jpeg else 1
        reduction = next(n for n in (8, 4, 2, 1) if n <= room or n == 1)
        if jpeg and reduction > 1:
            # For damaged files, `decode` raises a better error.
            with contextlib.suppress(ValueError):
                pixels = decode_jpeg(image, jpeg, options.channels, reduction)
                return Raster(pixels), jpeg.shape
    raster = read(image, options.decoding)
    height, width, _ = raster.pixels.shape
    return raster, (height, width)


def num_bytes(image: bytes | np.ndarray) -> int:
    """Return the size of an encoded file or of an array [bytes]."""
    return image.nbytes if isinstance(image, np.ndarray) else len(image)


# ---- Processes -----------------------------------------------------------------------


@dataclasses.dataclass
class _Process:
    """State of a process, set when it starts."""

    out: str
    root: str
    sources: dict[str, Source]
    options: Options
    progress: Any
    stop: Any


_process: _Process


def start_process(
    out: str,
    root: str,
    sources: dict[str, Source],
    options: Options,
    codecs: tuple[Codec, ...],
    progress: Any,
    stop: Any,
) -> None:
    """Set the state that all shards share.

    out: folder of the packed data set; root: folder that stored paths are relative to;
    codecs: those that a user registered; progress: shared int [2], examples done and
    skipped; stop: event that ends the work early.
    """
    global _process
    for codec in reversed(codecs):
        register_codec(codec)
    _process = _Process(out, root, sources, options, progress, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process sets `stop`
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A killed parent cannot set `stop`.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def report_path(out: str, shard_file: str) -> str:
    """Return the path of the report of `write_shard`, deleted in the end."""
    return os.path.join(out, UNFINISHED, f"{shard_file}.json")


def write_shard(shard: Shard) -> None:
    """Write a shard and its report; the shard gets its name when it is complete.

    raises: OSError if it cannot be written, InterruptedError if `stop` is set.
    """
    report: dict[str, Any] = {"num_examples": 0, "source_bytes": 0, "skipped": []}
    temporary = os.path.join(_process.out, UNFINISHED, shard.file)
    try:
        report["blake2b"] = _write_records(shard, temporary, report)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
    except RuntimeError as error:  # from ArrayRecord, with the message of the system
        raise OSError(
            f"{shard.file} cannot be written: {error}. Make room, then run the same "
            "command again: complete shards are kept."
        ) from error
    report["bytes"] = os.path.getsize(temporary)
    write_atomically(report_path(_process.out, shard.file), json.dumps(report))
    os.replace(temporary, os.path.join(_process.out, shard.file))


def _write_records(shard: Shard, path: str, report: dict[str, Any]) -> str:
    """Write the records, fill the report, and return the checksum of all records."""
    from array_record.python import array_record_module

    source = _process.sources[shard.split]
    digest = hashlib.blake2b(digest_size=16)
    writer = array_record_module.ArrayRecordWriter(path, _WRITER_OPTIONS)
    for index in range(shard.start, shard.stop):
        if _process.stop.is_set():
            raise InterruptedError("stopped")
        image_path = ""
        try:
            example = source[index]
            image_path = relative(example.get("path", ""), _process.root)
            image = pack_image(example["image"], _process.options)
        except SKIPPED as error:
            name = relative(getattr(error, "filename", None) or "", _process.root)
            image_path = image_path or name or f"example {index}"
            # Without addresses of objects, which differ between runs.
            message = re.sub(r" at 0x[0-9a-f]+", "", str(error))
            report["skipped"].append([image_path, reason_of(error), message])
            with _process.progress.get_lock():
                _process.progress[1] += 1
        else:
            record = to_record(image, example["label"], image_path)
            writer.write(record)
            digest.update(record)
            report["num_examples"] += 1
            report["source_bytes"] += num_bytes(example["image"])
        with _process.progress.get_lock():
            _process.progress[0] += 1
    writer.close()
    return digest.hexdigest()


def relative(path: str, root: str) -> str:
    """Return a path relative to `root` if it is inside, otherwise unchanged."""
    absolute = os.path.abspath(path)
    within = os.path.join(root, "")
    inside = path and absolute.startswith(within)
    return absolute.removeprefix(within) if inside else path


def write_atomically(path: str, text: str) -> None:
    """Write a file so that it is either complete or absent."""
    with open(f"{path}.tmp", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)


def verify_shard(shard: dict[str, Any]) -> np.ndarray:
    """Read all records of a shard of dataset.json; return their labels int32 [n].

    raises: UserError or OSError if the records have changed.
    """
    path = os.path.join(_process.out, shard["file"])
    reader = open_shard(path)
    expected, found = shard["num_examples"], reader.num_records()
    if found != expected:
        raise UserError(
            f"{path!r} has {found} records: expected {expected}. {WHAT_TO_DO}"
        )
    digest = hashlib.blake2b(digest_size=16)
    labels = []
    try:
        for start in range(0, found, _READ_AT_ONCE):
            if _process.stop.is_set():
                raise InterruptedError("stopped")
            for record in reader.read(start, min(start + _READ_AT_ONCE, found)):
                digest.update(record)
                labels.append(from_record(record)["label"])
    except RuntimeError as error:
        raise OSError(f"{path!r} is corrupt: {error}. {WHAT_TO_DO}") from error
    if digest.hexdigest() != shard["blake2b"]:
        raise UserError(
            f"{path!r} has changed: its checksum is {digest.hexdigest()}, expected "
            f"{shard['blake2b']}. {WHAT_TO_DO}"
        )
    with _process.progress.get_lock():
        _process.progress[0] += found
    return np.array(labels, np.int32)
