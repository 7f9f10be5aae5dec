"""Windows that cover an image of any size, each responsible for its own pixels.

Neighbours overlap by a third of their side at least, and a pixel belongs to the window
whose middle is nearest: every prediction has seen what is around it.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.masks import decode_pair
from simmim_jax.data.sources.base import Source

# Distance of neighbours at most [side of a window].
STRIDE = 2 / 3
Size = tuple[int, int]  # height and width


class Window(NamedTuple):
    """A window's place in an image, and the pixels that it is responsible for."""

    top: int
    left: int
    rows: slice
    columns: slice

    def cut(self, image: np.ndarray, size: Size, fill: Sequence[float]) -> np.ndarray:
        """Return the window of an image [h w c], padded to `size` with `fill` [c]."""
        height, width = size
        cut = image[self.top : self.top + height, self.left : self.left + width]
        padded = np.full((*size, image.shape[2]), np.asarray(fill, image.dtype))
        padded[: cut.shape[0], : cut.shape[1]] = cut
        return padded

    def own(self) -> tuple[slice, slice]:
        """Return its own pixels as rows and columns of the window."""
        return (
            slice(self.rows.start - self.top, self.rows.stop - self.top),
            slice(self.columns.start - self.left, self.columns.stop - self.left),
        )


def tile(shape: Size, size: Size) -> list[Window]:
    """Return the windows of `size` that cover an image of `shape`, row by row."""
    rows, columns = (_along(n, side) for n, side in zip(shape, size, strict=True))
    return [
        Window(top, left, own_rows, own_columns)
        for top, own_rows in rows
        for left, own_columns in columns
    ]


def _along(length: int, side: int) -> list[tuple[int, slice]]:
    """Return start and own part of each window along an axis."""
    excess = max(length - side, 0)
    steps = -(-excess // max(int(side * STRIDE), 1))
    starts = [excess * i // max(steps, 1) for i in range(steps + 1)]
    middles = [
        (first + second + side) // 2 for first, second in itertools.pairwise(starts)
    ]
    ends = [0, *middles, length]
    return [(start, slice(*ends[i : i + 2])) for i, start in enumerate(starts)]


@dataclasses.dataclass(frozen=True)
class WindowSource:
    """The windows of masked images, as arrays; other windows' pixels do not count.

    windows: number of an image in `source`, and a window of it; fill: pixel that pads
    images, one value a channel; decoding, num_classes, ignore_index: see `decode_pair`.
    """

    source: Source = dataclasses.field(repr=False)
    windows: Sequence[tuple[int, Window]] = dataclasses.field(repr=False)
    size: Size
    decoding: Decoding
    fill: Sequence[float]
    num_classes: int
    ignore_index: int

    class_names: tuple[str, ...] = ()
    labels: None = None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        number, window = self.windows[index]
        example = self.source[number]
        try:
            image, mask = decode_pair(
                example,
                self.decoding,
                num_classes=self.num_classes,
                ignore_index=self.ignore_index,
            )
        except BadImage as error:
            error.filename = example.get("path", "")
            raise
        own = np.full(self.size, self.ignore_index, np.uint16)
        own[window.own()] = mask[window.rows, window.columns, 0]
        return example | {
            "image": window.cut(image, self.size, self.fill),
            "mask": own,
        }
