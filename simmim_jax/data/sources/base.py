"""What a data set is to the rest of the package: a sequence of labelled images."""

import dataclasses
from typing import Any, Protocol

import numpy as np

from simmim_jax.errors import UserError

NO_LABEL = -1


class Source(Protocol):
    """A sequence of examples, each a dict with "image" and "label".

    image: an encoded file (bytes) or raw pixels uint8[h w c]; label: int, -1 if there
    is none; path: the file it came from, only where there is one.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label, empty if unlabelled."""

    @property
    def labels(self) -> np.ndarray | None:
        """int[n], or None if unlabelled; never decodes an image."""


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images that fit in memory: images uint8[n h w c], labels int[n] or None."""

    images: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": self.images[index], "label": label}


@dataclasses.dataclass(frozen=True)
class SubsetSource:
    """Some examples of another source, in the order of `indices` int[n]."""

    source: Source
    indices: np.ndarray = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes of the whole source."""
        return self.source.class_names

    @property
    def labels(self) -> np.ndarray | None:
        """int[n] of the chosen examples."""
        labels = self.source.labels
        return None if labels is None else labels[self.indices]


def subset(source: Source, num_labels: int, seed: int) -> Source:
    """Choose `num_labels` labelled examples, as equally many a class as there are.

    With one seed a smaller choice is a part of every larger one.

    raises: ValueError if the source is unlabelled or has fewer examples.
    """
    labels = source.labels
    if labels is None:
        raise UserError(
            f"num_labels={num_labels} needs labels to choose from, but the source is "
            "unlabelled: sort its images into class folders."
        )
    if not 0 < num_labels <= len(labels):
        raise UserError(
            f"num_labels={num_labels} must be between 1 and {len(labels)}, the number "
            "of examples in the split."
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    # First one example of every class, then a second one, and so on: sort by the
    # rank within the class, ties in a random order of the classes.
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    class_order = rng.permutation(labels.max() + 1)
    order = np.lexsort((class_order[labels], rank))
    indices = np.sort(order[:num_labels])
    if isinstance(source, ArraySource):
        return ArraySource(source.images[indices], labels[indices], source.class_names)
    return SubsetSource(source, indices)
