"""Examples of a source as a model sees them, a batch at a time."""

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from simmim_jax.data.loader.workers import num_cpus
from simmim_jax.data.sources.base import Source
from simmim_jax.data.views.base import View
from simmim_jax.errors import UserError

BATCH = 64  # most images that a model sees at once
# Of a batch on a CPU, whose caches then hold the activations [pixels].
_CPU_PIXELS = 8 * 224 * 224


class Examples(NamedTuple):
    """Some examples of a source, in order, and those that are no images.

    indices: int64 [n]; paths: of files, or lines of text, "" where a source has none;
    labels: int32 [n], -1 for none; images: [n h w c]; bad: (index, path, error).
    """

    indices: np.ndarray
    paths: list[str]
    labels: np.ndarray
    images: np.ndarray
    bad: list[tuple[int, str, UserError | OSError]]


def batch_size(image_size: tuple[int, int]) -> int:
    """Return how many images of this height and width [pixels] a model sees at once."""
    if jax.default_backend() != "cpu":
        return BATCH
    return max(1, min(BATCH, _CPU_PIXELS // math.prod(image_size)))


def read(source: Source, indices: range, view: View, batch: int) -> Iterator[Examples]:
    """Yield these examples of a source, prepared by the view of evaluation.

    batch: examples at once. Threads decode the next ones meanwhile.
    """
    starts = range(indices.start, indices.stop, batch)
    spans = [range(i, min(i + batch, indices.stop)) for i in starts]
    with ThreadPoolExecutor(num_cpus()) as pool:

        def submit(span: range) -> list[Future]:
            return [pool.submit(_read, source, index, view) for index in span]

        waiting = submit(spans[0]) if spans else []
        for span, following in zip(spans, [*spans[1:], range(0)], strict=True):
            found = [future.result() for future in waiting]
            waiting = submit(following)
            yield _joined(span, found, view)


def _read(source: Source, index: int, view: View) -> tuple[str, Any]:
    """Return path and prepared example, or path and error of a bad image."""
    path = ""
    try:
        example = source[index]
        content = example["image"]
        is_line = isinstance(content, str)
        path = content.strip() if is_line else example.get("path", "")
        return path, view(example, np.random.default_rng(0))
    except (OSError, UserError) as error:
        return path or str(getattr(error, "filename", None) or ""), error


def _joined(span: range, found: list[tuple[str, Any]], view: View) -> Examples:
    good: list[tuple[int, str, dict[str, Any]]] = []
    bad: list[tuple[int, str, UserError | OSError]] = []
    for index, (path, result) in zip(span, found, strict=True):
        if isinstance(result, UserError | OSError):
            bad.append((index, path, result))
        else:
            good.append((index, path, result))
    spec = view.spec["image"]
    images = np.empty((len(good), *spec.shape), spec.dtype)
    for place, (_, _, example) in enumerate(good):
        images[place] = example["image"]
    return Examples(
        np.array([index for index, _, _ in good], np.int64),
        [path for _, path, _ in good],
        np.array([example["label"] for _, _, example in good], np.int32),
        images,
        bad,
    )
