"""What a data set has, found out from a list of its files and a sample of them."""

import collections
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from simmim_jax.data.codecs.audio import Segment, Sound, is_sound
from simmim_jax.data.codecs.base import BadImage, Raster
from simmim_jax.data.codecs.image import IMAGE, PHOTO_CHANNELS
from simmim_jax.data.codecs.registry import codec_of
from simmim_jax.data.codecs.tiff import TIFF, is_photograph, read_directories
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.endings import count_endings
from simmim_jax.data.sources.paths import TRAIN, VALIDATION
from simmim_jax.data.sources.registry import open_splits
from simmim_jax.data.survey.sample import Sampled, sample
from simmim_jax.data.survey.stats import valid

# Images that are decoded, unless the caller says otherwise.
IMAGES = 128
# Values of 9 to 12 bits in files of 16: what cameras and scanners measure.
_CAMERA_BITS = range(9, 13)
# Shorter side from which images suit the configs of ImageNet, and what other sizes are
# a multiple of [pixels].
_LARGE, _SIDE = 160, 16


@dataclasses.dataclass(frozen=True)
class BandRange:
    """Values of one band in a sample; min and max are None if no value is valid.

    nodata: share of the pixels without a measurement.
    """

    name: str
    min: float | None
    max: float | None
    nodata: float


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes of the first split; smallest and largest are (name, images) or None."""

    number: int
    smallest: tuple[str, int] | None
    largest: tuple[str, int] | None


@dataclasses.dataclass(frozen=True)
class Sounds:
    """Sounds of a sample.

    rates: number of them by sample rate [Hz]; seconds: length of the shortest, the
    median and the longest; texts: number of those with a transcript.
    """

    rates: dict[int, int]
    seconds: tuple[float, float, float]
    texts: int


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Images of a sample that cannot be used for one reason; message: of the first."""

    reason: str
    images: int
    first: str
    message: str


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a data set has; `simmim inspect --json` prints these fields.

    splits: number of images by split; files: number of them by ending, where images are
    files; sampled: number of images that the following is about;
    encodings, dtypes, bands: number of sampled images by encoding, by type and by
    number of bands (of sounds: channels); sizes: (height, width) of the smallest, the
    median and the largest image by area; sounds: None without any; values: of each
    band, among the images with the most frequent number of bands; classes: None if
    unlabelled; unlabelled: why, if that may be a mistake; unreadable: images that could
    not be decoded; oddities: sentences on what may surprise; command: pre-trains on the
    images, () if none can be read.
    """

    dataset: str
    splits: dict[str, int]
    files: dict[str, int]
    sampled: int
    encodings: dict[str, int]
    dtypes: dict[str, int]
    bands: dict[int, int]
    sizes: tuple[tuple[int, int], ...]
    sounds: Sounds | None
    values: tuple[BandRange, ...]
    classes: Classes | None
    unlabelled: str
    unreadable: tuple[Unreadable, ...]
    oddities: tuple[str, ...]
    command: tuple[str, ...]


def inspect(
    dataset: str,
    splits: Sequence[str] = (),
    *,
    data_dir: str = "",
    count: int = IMAGES,
) -> Inspection:
    """Inspect a data set.

    splits: the ones to look at; (): all that there are; count: images to
    decode, spread over the splits.
    raises: UserError if the data set or none of its splits can be opened.
    """
    sources = open_splits(dataset, splits, data_dir=data_dir)
    total = sum(map(len, sources.values()))
    seen: list[_Seen] = []
    bad: list[tuple[str, Sampled]] = []
    for split, source in sources.items():
        share = max(1, round(count * len(source) / total))
        for each in sample(source, share, strict=False):
            if isinstance(each.image, Raster):
                seen.append(_see(split, each, each.image))
            else:
                bad.append((split, each))
    first = next(iter(sources.values()))
    return Inspection(
        dataset=dataset,
        splits={split: len(source) for split, source in sources.items()},
        files=_endings(sources.values()),
        sampled=len(seen) + len(bad),
        encodings=_counts(each.encoding for each in seen),
        dtypes=_counts(each.dtype for each in seen),
        bands=_counts(each.shape[2] for each in seen),
        sizes=_sizes(seen),
        sounds=_sounds(seen),
        values=_values(seen),
        classes=_classes(first),
        unlabelled=getattr(first, "unlabelled", ""),
        unreadable=_unreadable(bad),
        oddities=tuple(_oddities(seen)),
        command=_command(dataset, tuple(sources), seen),
    )


def kind(source: Source, count: int) -> str:
    """Return encodings, bands and sizes in a few words, of a sample of `count` images.

    Such as "JPEG, 3 x uint8, 64x64 to 375x500"; "" if none of them can be read.
    """
    seen = [
        _see("", each, each.image)
        for each in sample(source, count, strict=False)
        if isinstance(each.image, Raster)
    ]
    return describe(
        _counts(each.encoding for each in seen),
        _counts(each.shape[2] for each in seen),
        _counts(each.dtype for each in seen),
        _sizes(seen),
    )


def describe(
    encodings: Mapping[str, int],
    bands: Mapping[int, int],
    dtypes: Mapping[str, int],
    sizes: Sequence[tuple[int, int]],
) -> str:
    """Return the words of `kind`."""
    if not sizes:
        return ""
    names = "/".join(name for name in encodings if name != "array")
    numbers, types = ("/".join(map(str, part)) for part in (bands, dtypes))
    values = f"{numbers} x {types}, {size_text(sizes[0])}"
    text = f"{names}, {values}" if names else values
    return text if sizes[0] == sizes[-1] else f"{text} to {size_text(sizes[-1])}"


def size_text(size: tuple[int, int]) -> str:
    """Return "480x640" of a height and a width."""
    return "x".join(map(str, size))


# ---- Sources -------------------------------------------------------------------------


def _endings(sources: Iterable[Source]) -> dict[str, int]:
    return count_endings(
        path for source in sources for path in getattr(source, "paths", ())
    )


def _classes(source: Source) -> Classes | None:
    names = source.class_names
    if getattr(source, "reads_labels", False):  # from every record
        return Classes(len(names), None, None) if names else None
    if source.labels is None:
        return None
    sizes = np.bincount(source.labels[source.labels >= 0], minlength=len(names))
    low, high = int(sizes.argmin()), int(sizes.argmax())
    return Classes(
        len(names), (names[low], int(sizes[low])), (names[high], int(sizes[high]))
    )


# ---- One image -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What is kept of a decoded image.

    name: of the image in messages; alpha: "" without one, "mask" or "smooth"; lows,
    highs, missing: per band; is_photo: whether channels 1 or 3 convert it; rate [Hz],
    seconds, has_text: of a sound.
    """

    name: str
    split: str
    encoding: str
    shape: tuple[int, int, int]
    dtype: str
    names: tuple[str, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    missing: tuple[float, ...]
    digest: bytes
    is_photo: bool
    is_turned: bool
    alpha: str
    rate: int = 0
    seconds: float = 0.0
    has_text: bool = False


def _see(split: str, each: Sampled, raster: Raster) -> _Seen:
    pixels = raster.pixels
    lows, highs, missing = [], [], []
    for band in np.moveaxis(pixels, 2, 0):
        values = band[valid(band, raster.nodata)]
        lows.append(float(values.min()) if values.size else np.nan)
        highs.append(float(values.max()) if values.size else np.nan)
        missing.append(1 - values.size / band.size)
    data = each.data
    rate, seconds = 0, 0.0
    if is_sound(data):
        with Sound(data) as sound:
            rate, seconds = sound.rate, sound.seconds
    is_photo = isinstance(data, bytes) and not rate and _is_photo(data)
    return _Seen(
        name=_name(split, each),
        split=split,
        encoding=each.encoding,
        shape=pixels.shape,
        dtype=str(pixels.dtype),
        names=raster.bands,
        lows=tuple(lows),
        highs=tuple(highs),
        missing=tuple(missing),
        digest=_digest(data),
        is_photo=is_photo,
        is_turned=is_photo and _is_turned(data),
        alpha=_alpha(pixels) if is_photo else "",
        rate=rate,
        seconds=seconds,
        has_text=bool(each.text),
    )


def _is_photo(data: bytes) -> bool:
    codec = codec_of(data)
    return codec is IMAGE or (codec is TIFF and is_photograph(read_directories(data)))


def _name(split: str, each: Sampled) -> str:
    return each.path or f"{split}[{each.index}]"


def _digest(data: Any) -> bytes:
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).tobytes()
    if isinstance(data, Segment):
        data = repr(data).encode()
    return hashlib.blake2b(data, digest_size=16).digest()


def _is_turned(data: Any) -> bool:
    """Whether the EXIF tag of a photograph says that it is not stored upright."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # Pillow's parsers raise exceptions of many types
        return False


def _alpha(pixels: np.ndarray) -> str:
    """Return "mask" if most of the last channel is all or nothing, else "smooth"."""
    if pixels.shape[2] in PHOTO_CHANNELS:
        return ""
    alpha = pixels[:, :, -1]
    clear = np.isin(alpha, (0, np.iinfo(alpha.dtype).max))
    return "mask" if 2 * np.count_nonzero(clear) >= alpha.size else "smooth"


# ---- All of them ---------------------------------------------------------------------


def _counts(values: Iterable[Any]) -> dict[Any, int]:
    return dict(collections.Counter(values).most_common())


def _sizes(seen: Sequence[_Seen]) -> tuple[tuple[int, int], ...]:
    shapes = (each.shape for each in seen if not each.rate)
    sizes = sorted((h * w, h, w) for h, w, _ in shapes)
    if not sizes:
        return ()
    chosen = sizes[0], sizes[len(sizes) // 2], sizes[-1]
    return tuple((height, width) for _, height, width in chosen)


def _sounds(seen: Sequence[_Seen]) -> Sounds | None:
    sounds = [each for each in seen if each.rate]
    if not sounds:
        return None
    seconds = sorted(each.seconds for each in sounds)
    return Sounds(
        rates=_counts(each.rate for each in sounds),
        seconds=(seconds[0], seconds[len(seconds) // 2], seconds[-1]),
        texts=sum(each.has_text for each in sounds),
    )


def _values(seen: Sequence[_Seen]) -> tuple[BandRange, ...]:
    if not seen:
        return ()
    bands = next(iter(_counts(each.shape[2] for each in seen)))
    alike = [each for each in seen if each.shape[2] == bands]
    names = alike[0].names or tuple(map(str, range(bands)))
    lows, highs = (
        np.array([getattr(each, end) for each in alike]) for end in ("lows", "highs")
    )
    pixels = np.array([each.shape[0] * each.shape[1] for each in alike])
    missing = np.average([each.missing for each in alike], axis=0, weights=pixels)
    ranges = []
    for band, name in enumerate(names):
        known = ~np.isnan(lows[:, band])
        low = float(lows[known, band].min()) if known.any() else None
        high = float(highs[known, band].max()) if known.any() else None
        ranges.append(BandRange(name, low, high, float(missing[band])))
    return tuple(ranges)


def _unreadable(bad: Sequence[tuple[str, Sampled]]) -> tuple[Unreadable, ...]:
    groups: dict[str, list[tuple[str, Sampled]]] = collections.defaultdict(list)
    for split, each in bad:
        groups[_reason(each.image)].append((split, each))
    return tuple(
        Unreadable(reason, len(group), _name(*group[0]), str(group[0][1].image))
        for reason, group in sorted(groups.items(), key=lambda item: -len(item[1]))
    )


def _reason(error: object) -> str:
    """Return a reason as in bad_images.tsv; "refused" for what would end a run."""
    if isinstance(error, BadImage):
        return error.reason
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "unreadable" if isinstance(error, OSError) else "refused"


def _oddities(seen: Sequence[_Seen]) -> Iterable[str]:
    """Yield sentences on what may surprise."""
    if not seen:
        return
    of = f"of {len(seen):,} sampled images"
    is_converted = all(each.is_photo and each.alpha != "smooth" for each in seen)
    for what, counts in (
        ("types", _counts(each.dtype for each in seen)),
        # Photographs become as many channels as the config says.
        ("numbers of bands", _counts(e.shape[2] for e in seen if not is_converted)),
        ("names of bands", _counts(", ".join(each.names) for each in seen)),
    ):
        if len(counts) > 1:
            listed = "; ".join(f"{kind or 'none'}: {n:,}" for kind, n in counts.items())
            yield f"mixed {what} {of}: {listed}"
    shapes = {each.shape[:2] for each in seen if not each.rate}
    if any(not each.is_photo for each in seen) and len(shapes) > 1:
        yield "sizes differ: crops are resized, which mixes neighbouring values"
    smooth = [each for each in seen if each.alpha == "smooth"]
    if smooth:
        yield (
            f"the last of {smooth[0].shape[2]} channels varies smoothly in "
            f"{len(smooth):,} {of}: it looks like a measurement, no transparency. "
            f"--config.data.channels={smooth[0].shape[2]} keeps it"
        )
    bits = _bits(seen)
    if bits in _CAMERA_BITS:
        yield (
            f"values of {bits} bits in files of 16: they are kept, or mapped to 8 "
            f"bits with --config.data.value_range=0,{2**bits - 1}"
        )
    for count, text in (
        (sum(each.is_turned for each in seen), "are turned upright by their EXIF tag"),
        (sum(_is_constant(each) for each in seen), "have one value per band"),
        (sum(np.isnan(each.lows).all() for each in seen), "have no valid value"),
    ):
        if count:
            yield f"{count:,} {of} {text}"
    yield from _copies(seen, of)


def _is_constant(seen: _Seen) -> bool:
    low = np.array(seen.lows)
    return not np.isnan(low).all() and bool(
        np.array_equal(low, seen.highs, equal_nan=True)
    )


def _bits(seen: Sequence[_Seen]) -> int:
    """Return the bits that the largest value needs; 0 unless all are uint16."""
    if {each.dtype for each in seen} != {"uint16"}:
        return 0
    highest = max((high for each in seen for high in each.highs), default=0)
    return int(np.nan_to_num(highest)).bit_length()


def _copies(seen: Sequence[_Seen], of: str) -> Iterable[str]:
    groups = collections.defaultdict(list)
    for each in seen:
        groups[each.digest].append(each)
    copies = [group for group in groups.values() if len(group) > 1]
    if copies:
        first = sorted(copies, key=lambda group: len({e.split for e in group}))[-1]
        count = sum(len(group) - 1 for group in copies)
        names = " and ".join(each.name for each in first[:2])
        splits = sorted({each.split for each in first})
        across = f", in {' and '.join(splits)}" if len(splits) > 1 else ""
        yield f"{count:,} {of} are copies of others, such as {names}{across}"


# ---- What to train with --------------------------------------------------------------


def _command(
    dataset: str, splits: Sequence[str], seen: Sequence[_Seen]
) -> tuple[str, ...]:
    """Return the command that pre-trains on the images; () if there are none.

    A run evaluates: by another split where there is no validation split, or by what is
    held out of the training folder.
    """
    if not seen:
        return ()
    train = os.path.join(dataset, TRAIN)
    if tuple(splits) == (TRAIN,) and os.path.isdir(train):
        dataset = train
    if seen[0].rate:
        config = "--config=speech:pretrain"
        return "simmim", "train", config, f"--config.data.dataset={dataset}"
    _, median, _ = _sizes(seen)
    side = max(1, round(min(median) / _SIDE)) * _SIDE
    config, usual = ("vit_base", side) if min(median) >= _LARGE else ("small", 64)
    fields: dict[str, Any] = {"dataset": dataset}
    if _channels(seen) != 3:
        fields["channels"] = _channels(seen)
    if side != usual:
        fields["image_size"] = f"{side},{side}"
    if TRAIN in splits and VALIDATION not in splits and len(splits) > 1:
        fields["eval_split"] = next(split for split in splits if split != TRAIN)
    flags = (f"--config.data.{name}={value}" for name, value in fields.items())
    return "simmim", "train", f"--config={config}", *flags


def _channels(seen: Sequence[_Seen]) -> int:
    """Return the number of channels to train with."""
    bands = _counts(each.shape[2] for each in seen)
    if not all(each.is_photo for each in seen):
        return next(iter(bands))
    if 2 * sum(each.alpha == "smooth" for each in seen) > len(seen):
        return max(bands)
    return 1 if set(bands) <= {1, 2} else 3
