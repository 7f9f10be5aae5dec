"""What a data set is to the rest of the package: a sequence of labelled images."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from simmim_jax.data.codecs.base import native
from simmim_jax.errors import UserError

NO_LABEL = -1
# A larger label is an identifier in the wrong place, rather than a class.
MAX_CLASSES = 1_000_000


class Source(Protocol):
    """A sequence of examples, each a dict with "image" and "label".

    image: an encoded file (bytes), a `Segment` of one, an array [h, w, c] of one of
    `DTYPES`, or a line of text (str);
    label: int, -1 if there is none; path: the file it came from, if there is one;
    text: what is said in a sound, if that is known; mask: the classes of
    pixels, where they have any, a file or an array [h, w] of indices.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label, empty if unlabelled."""

    @property
    def labels(self) -> np.ndarray | None:
        """int [n], -1 for examples without a label; None if none has one."""


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory: [n, h, w, c] of numbers, labels int [n] or None."""

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
    """Some examples of another source, in the order of `indices` int [n]."""

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
        """int [n] of the chosen examples."""
        labels = self.source.labels
        return None if labels is None else labels[self.indices]


def labelled(source: Source) -> Source:
    """Return the examples that have a label; an unlabelled source stays as it is.

    So do TFDS sets, whose records would all have to be read: they have labels or none.
    """
    if getattr(source, "reads_labels", False) or source.labels is None:
        return source
    indices = np.flatnonzero(source.labels != NO_LABEL)
    return source if len(indices) == len(source) else _choose(source, indices)


def known_labels(labels: np.ndarray) -> np.ndarray | None:
    """Return labels, None if all are missing."""
    return labels if (labels != NO_LABEL).any() else None


def subset(source: Source, num_labels: int, seed: int) -> Source:
    """Choose `num_labels` labelled examples, balanced over the classes if possible.

    With the same seed, a smaller choice is part of every larger one.

    raises: UserError if the source is unlabelled or has fewer labelled examples.
    """
    source = labelled(source)
    labels = source.labels
    if labels is None:
        raise UserError(
            f"num_labels={num_labels} needs labels to choose from, but the source is "
            "unlabelled: sort its images into class folders, or name a list of images "
            "with a column label."
        )
    if not 0 < num_labels <= len(labels):
        raise UserError(
            f"num_labels={num_labels} must be between 1 and {len(labels)}, the number "
            "of labelled examples in the split; --config.data.num_labels=0 trains on "
            "all."
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    # Take one example of every class, then a second one, and so on: sort by the rank
    # within the class, ties in a random order of the classes.
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    class_order = rng.permutation(labels.max() + 1)
    order = np.lexsort((class_order[labels], rank))
    return _choose(source, np.sort(order[:num_labels]))


def _choose(source: Source, indices: np.ndarray) -> Source:
    """Return some examples of a labelled source; an `ArraySource` stays one."""
    if isinstance(source, ArraySource) and source.labels is not None:
        chosen = source.labels[indices]
        return ArraySource(source.images[indices], chosen, source.class_names)
    return SubsetSource(source, indices)


def absent_classes(source: Source) -> tuple[str, ...]:
    """Return the names of the classes without an example; () if unlabelled.

    TFDS sets have labels in their records, which would all have to be read: () as well.
    """
    if getattr(source, "reads_labels", False) or source.labels is None:
        return ()
    present = set(np.unique(source.labels).tolist())
    return tuple(n for i, n in enumerate(source.class_names) if i not in present)


# ---- Data from Python ----------------------------------------------------------------


def as_source(
    data: Any,
    labels: Sequence[int] | np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> Source:
    """Return an array, or any random-access data source, as a `Source`.

    data: an array [n, h, w, c] of numbers (float16 and float64 are converted to
    float32, 64-bit integers to 32 bits); a `Source`; or an object with __len__ and
    __getitem__, such as a Grain data source, whose elements are dicts with "image" and
    optionally "label", pairs (image, label), or images. An image is an array [h, w, c]
    or [h, w], the bytes of an encoded file, or a line of text (str). Worker processes
    receive the object pickled.
    labels: int [n], in place of those of the elements; class_names: by label.
    raises: UserError for anything else.
    """
    names = tuple(class_names)
    if labels is None and not names and _is_source(data):
        return data
    if isinstance(data, Mapping | str | bytes) or not (
        hasattr(data, "__len__") and hasattr(data, "__getitem__")
    ):
        raise UserError(
            f"data is of type {type(data).__name__}: expected an array [n, h, w, c], "
            "or an object with __len__ and __getitem__ whose elements are dicts with "
            "'image', pairs (image, label), or images. Use `open_source` for paths and "
            "names of data sets, and pass the arrays of a dict as data and labels."
        )
    checked = None if labels is None else check_labels(labels, len(data), "labels")
    source: Source
    if isinstance(data, np.ndarray):
        source = ArraySource(_check_images(data), checked, _names(checked, names))
    else:
        source = SequenceSource(data, checked, names)
    # Reading one example also finds elements of the wrong type before a run starts.
    is_labelled = len(source) > 0 and source[0]["label"] != NO_LABEL
    if names and not is_labelled:
        raise UserError(f"class_names={names} without labels: pass labels as well.")
    return source


@dataclasses.dataclass(frozen=True)
class SequenceSource:
    """Elements of any random-access object; see `as_source`.

    given_labels, given_names: in place of those of the elements; None or ().
    """

    data: Any = dataclasses.field(repr=False)
    given_labels: np.ndarray | None = dataclasses.field(repr=False)
    given_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        where = f"Example {index} of {type(self.data).__name__}"
        example = _example(self.data[int(index)], where)
        if self.given_labels is not None:
            example["label"] = int(self.given_labels[index])
        return example

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int32 [n], or None if an element has none; the first time, reads them all."""
        if self.given_labels is not None:
            return self.given_labels
        labels = []
        for index in range(len(self)):
            labels.append(self[index]["label"])
            if labels[-1] == NO_LABEL:
                return None
        return check_labels(labels, len(self), "label")

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """The given names, or numbers if the elements have labels."""
        return _names(self.labels, self.given_names)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes need no cached labels.
        return SequenceSource, (self.data, self.given_labels, self.given_names)


def check_labels(
    labels: Any, num_examples: int, where: str, *, lowest: int = 0
) -> np.ndarray:
    """Return labels as int32 [n]; raises UserError unless they are classes 0, 1, …

    lowest: NO_LABEL where labels may be missing.
    """
    array = np.asarray(labels)
    if array.shape != (num_examples,) or array.dtype.kind not in "iu":
        raise UserError(
            f"{where} is {array.dtype} {list(array.shape)}: expected integers "
            f"[{num_examples}], one for each image. Write or pass them so."
        )
    if num_examples and not (array.min() >= lowest and array.max() < MAX_CLASSES):
        raise UserError(
            f"{where} is from {array.min()} to {array.max()}: expected classes, "
            f"counted from 0 and fewer than {MAX_CLASSES:,}. Number the classes anew."
        )
    return array.astype(np.int32)


def numbered_classes(labels: np.ndarray) -> tuple[str, ...]:
    """Return names for labels that have none: "0", "1", …"""
    return tuple(map(str, range(int(labels.max(initial=NO_LABEL)) + 1)))


def _is_source(data: Any) -> bool:
    parts = ("__len__", "__getitem__", "labels", "class_names")
    return all(hasattr(data, part) for part in parts)


def _check_images(images: np.ndarray) -> np.ndarray:
    if images.ndim != 4:
        raise UserError(
            f"data is an array {list(images.shape)}: expected [n, h, w, c]. Add the "
            "missing axis: images[..., None] for gray images, image[None] for one."
        )
    return native(images, "data")


def _names(labels: np.ndarray | None, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the classes, () if unlabelled."""
    if labels is None:
        return ()
    numbered = numbered_classes(labels)
    if given and len(given) < len(numbered):
        raise UserError(
            f"class_names has {len(given)} names, but the largest label is "
            f"{len(numbered) - 1}: expected at least {len(numbered)} names. Pass one "
            "for each label."
        )
    return given or numbered


def _example(element: Any, where: str) -> dict[str, Any]:
    """Return an element of a random-access object as an example."""
    label, path = NO_LABEL, ""
    if isinstance(element, Mapping):
        if "image" not in element:
            raise UserError(
                f"{where} has the keys {', '.join(map(str, element))}: expected 'image'"
                " and, if there is one, 'label'."
            )
        image, path = element["image"], element.get("path", "")
        label = element.get("label", NO_LABEL)
    elif isinstance(element, tuple):
        if len(element) != 2:
            raise UserError(
                f"{where} is a tuple of {len(element)}: expected (image, label)."
            )
        image, label = element
    else:
        image = element
    try:
        number = operator.index(label)
    except TypeError as error:
        raise UserError(
            f"{where} has the label {label!r}: expected an integer, -1 for none."
        ) from error
    example = {"image": _image(image, where), "label": number}
    if isinstance(element, Mapping) and "mask" in element:
        example["mask"] = _image(element["mask"], where)
    return example | {"path": path} if path else example


def _image(image: Any, where: str) -> bytes | str | np.ndarray:
    if isinstance(image, str):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    return native(np.asarray(image), where)
