"""A fixed sample of a data set, decoded as its files are."""

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from simmim_jax.data.codecs.audio import Segment, Sound, is_sound
from simmim_jax.data.codecs.base import BadImage, Decoding, Raster
from simmim_jax.data.codecs.image import IMAGE
from simmim_jax.data.codecs.registry import codec_of, read
from simmim_jax.data.sources.base import Source
from simmim_jax.errors import UserError

# Examples decoded at once, which bounds memory.
_THREADS = 8
# Beginning of a sound that is decoded [seconds].
_SECONDS = 60.0
# What an example's values are; raises as `registry.read`.
Values = Callable[[Mapping[str, Any]], Raster]


def decoded_by(decoding: Decoding) -> Values:
    """Return what decodes the image of an example."""
    return lambda example: read(example["image"], decoding)


def as_stored(example: Mapping[str, Any]) -> Raster:
    """Return all channels with the file's own values; of a sound, [1 samples c]."""
    data = example["image"]
    if not is_sound(data):
        return read(data, Decoding())
    with Sound(data) as sound:
        return Raster(sound.stored(_SECONDS)[None])


def holds_sounds(source: Source) -> bool:
    """Whether some of the first examples are sounds."""
    for index in range(min(_THREADS, len(source))):
        try:
            if is_sound(source[index]["image"]):
                return True
        except (OSError, UserError):
            continue
    return False


@dataclasses.dataclass(frozen=True)
class Sampled:
    """One example of a sample.

    index: in the source; image: what was decoded, or why it cannot be; encoding: name
    of the file's format, such as "JPEG", "array" or "text"; data: the encoded file,
    the array or the line; path: the file, "" if the source names none; label: -1 if
    there is none; text: what is said in a sound, "" if the source does not know.
    """

    index: int
    image: Raster | UserError | OSError
    encoding: str = ""
    data: bytes | str | Segment | np.ndarray | None = dataclasses.field(
        default=None, repr=False
    )
    path: str = ""
    label: int = -1
    text: str = ""


def sample(
    source: Source, count: int, values: Values = as_stored, *, strict: bool = True
) -> Iterator[Sampled]:
    """Yield evenly spaced examples of a source in order, the same ones every time.

    count: number of examples; all of them if there are fewer. values: by default,
    arrays as the files store them.
    raises: UserError for images that can never be decoded so; without `strict`, it is
    yielded like that of a bad image.
    """

    def one(index: int) -> Sampled:
        try:
            example = source[index]
        except BadImage as error:
            return Sampled(index, error, path=error.filename)
        except OSError as error:
            return Sampled(index, error, path=str(error.filename or ""))
        except UserError as error:
            if strict:
                raise
            return Sampled(index, error)
        found = _decoded(index, example, values)
        if strict and not isinstance(found.image, Raster | BadImage | OSError):
            found.image.add_note(f"Example {index}: {found.path or source}")
            raise found.image
        return found

    places = indices(len(source), count)
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(places), _THREADS):
            yield from pool.map(one, places[first : first + _THREADS])


def indices(num_examples: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices, first and last included."""
    count = min(count, num_examples)
    return [i * (num_examples - 1) // max(count - 1, 1) for i in range(count)]


def encoding_of(data: bytes | str | Segment | np.ndarray) -> str:
    """Return the name of an encoding: "JPEG", "WAV" …, "array", "text", "unknown"."""
    if isinstance(data, np.ndarray | str):
        return "text" if isinstance(data, str) else "array"
    if is_sound(data):
        try:
            with Sound(data) as sound:
                return sound.encoding
        except (UserError, OSError):
            return "unknown"
    assert isinstance(data, bytes)
    codec = codec_of(data)
    if codec is not IMAGE:
        return codec.name
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.format or "unknown"
    except Exception:  # Pillow's parsers raise exceptions of many types
        return "unknown"


def _decoded(index: int, example: dict[str, Any], values: Values) -> Sampled:
    data = example["image"]
    image: Raster | UserError | OSError
    try:
        image = values(example)
    except (UserError, OSError) as error:  # OSError: of a segment's file
        image = error
    return Sampled(
        index,
        image,
        encoding_of(data),
        data,
        str(example.get("path", "")),
        int(example.get("label", -1)),
        example.get("text", ""),
    )
