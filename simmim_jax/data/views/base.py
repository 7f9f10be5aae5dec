"""What a view is: the arrays that one example contributes to a batch."""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np


class Spec(NamedTuple):
    """Shape and dtype of an array, without the batch axis."""

    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class View(abc.ABC):
    """Turns an example into one row of each array of a batch.

    Batches, shared memory, workers and the transfer to devices follow `spec`: a new
    modality is a new view. Workers receive it pickled, and threads call it at once.

    nodata: value of the first array where an example has no data, such as padding.
    """

    nodata: ClassVar[float | None] = None

    @property
    @abc.abstractmethod
    def spec(self) -> dict[str, Spec]:
        """Arrays of a row by name; the first one is what the model sees."""

    @abc.abstractmethod
    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return the arrays of `spec` for an example of a source.

        rng: the only source of randomness; it depends on the seed and on the place in
        the stream. Evaluation views do not use it.
        raises: BadImage or OSError for an example that cannot be used; it is replaced
        and counted. Any other error ends the run.
        """

    def is_identity(self, images: np.ndarray) -> bool:
        """Whether a row of "image" is an example of this array [n h w c], unchanged."""
        del images
        return False
