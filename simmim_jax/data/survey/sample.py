"""A fixed sample of a data set, decoded as its files are."""

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from simmim_jax.data.codecs.base import BadImage, Decoding, Raster
from simmim_jax.data.codecs.image import IMAGE
from simmim_jax.data.codecs.registry import codec_of, read
from simmim_jax.data.sources.base import Source
from simmim_jax.errors import UserError

# Examples decoded at once, which bounds memory.
_THREADS = 8
# What an example's values are; raises as `registry.read`.
Values = Callable[[Mapping[str, Any]], Raster]


def decoded_by(decoding: Decoding) -> Values:
    """Return what decodes the image of an example."""
    return lambda example: read(example["image"], decoding)


# All channels, with the file's own values.
AS_STORED = decoded_by(Decoding())


@dataclasses.dataclass(frozen=True)
class Sampled:
    """One example of a sample.

    index: in the source; image: what was decoded, or why it cannot be; encoding: name
    of the file's format, such as "JPEG", or "array"; data: the encoded file, or the
    array; path: the file, "" if the source names none; label: -1 if there is none.
    """

    index: int
    image: Raster | UserError | OSError
    encoding: str = ""
    data: bytes | np.ndarray | None = dataclasses.field(default=None, repr=False)
    path: str = ""
    label: int = -1


def sample(
    source: Source, count: int, values: Values = AS_STORED, *, strict: bool = True
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
        if strict and not isinstance(found.image, Raster | BadImage):
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


def encoding_of(data: bytes | np.ndarray) -> str:
    """Return the name of an encoding: "JPEG", ".npy" …, "array" or "unknown"."""
    if isinstance(data, np.ndarray):
        return "array"
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
    image: Raster | UserError
    try:
        image = values(example)
    except UserError as error:
        image = error
    return Sampled(
        index,
        image,
        encoding_of(data),
        data,
        str(example.get("path", "")),
        int(example.get("label", -1)),
    )
