"""Several sources as one, with weights."""

import ast
import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from simmim_jax.data.sources.base import NO_LABEL, Source, known_labels
from simmim_jax.errors import UserError

# Longest epoch, in examples of all sources.
_MAX_REPEATS = 100
Names = str | Sequence[str | tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class MixedSource:
    """Sources one after another, each as often as its weight says.

    counts int64 [k]: examples of each source in an epoch, at least its length; where
    there are more, it is repeated. Classes are merged by name.
    """

    sources: tuple[Source, ...]
    counts: np.ndarray = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        index = range(len(self))[index]
        ends = np.cumsum(self.counts)
        number = int(np.searchsorted(ends, index, side="right"))
        source = self.sources[number]
        within = index - int(ends[number] - self.counts[number])
        example = source[within % len(source)]
        label = int(self._new_labels[number][example["label"]])
        return {**example, "label": label}

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of all sources."""
        given = [s.class_names for s in self.sources if s.class_names]
        if len(set(given)) == 1:
            return given[0]
        names = {name for names in given for name in names}
        are_numbers = all(name.isascii() and name.isdigit() for name in names)
        return tuple(sorted(names, key=int if are_numbers else None))

    @functools.cached_property
    def _new_labels(self) -> list[np.ndarray]:
        """The merged label by each source's own; the last one is that of -1."""
        number_of = {name: number for number, name in enumerate(self.class_names)}
        return [
            np.array([*map(number_of.__getitem__, s.class_names), NO_LABEL], np.int32)
            for s in self.sources
        ]

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int32 [n], -1 for examples of unlabelled sources; None if all are."""
        parts = []
        for source, count, new in zip(
            self.sources, self.counts, self._new_labels, strict=True
        ):
            own = source.labels
            merged = (
                np.full(len(source), NO_LABEL, np.int32) if own is None else new[own]
            )
            parts.append(np.resize(merged, count))
        return known_labels(np.concatenate(parts))

    @property
    def reads_labels(self) -> bool:
        """Whether `labels` reads records, only to find that all have one."""
        others = [s for s in self.sources if not getattr(s, "reads_labels", False)]
        return len(others) < len(self.sources) and all(
            source.labels is not None and NO_LABEL not in source.labels
            for source in others
        )

    @property
    def unlabelled(self) -> str:
        """Why there are no labels, if that may be a mistake."""
        return " ".join(
            filter(None, (getattr(source, "unlabelled", "") for source in self.sources))
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes need no labels of all examples.
        return MixedSource, (self.sources, self.counts)


def mix(sources: Sequence[Source], weights: Sequence[float] = ()) -> Source:
    """Return sources as one; weights: share of each in an epoch, () is by its length.

    Which examples there are is fixed, and their order is the loader's. An epoch has
    every example of every source at least once: it is as long as that takes for the
    source that is given the least weight for its length, and the others are repeated.
    raises: UserError for weights that are not positive, and for empty sources.
    """
    lengths = np.array([len(source) for source in sources], np.int64)
    if not len(sources) or (lengths == 0).any():
        raise UserError(
            f"Sources of {lengths.tolist()} examples: expected one or more of each."
        )
    counts = lengths
    if weights:
        shares = np.array(weights, np.float64)
        if (
            len(shares) != len(sources)
            or not ((shares > 0) & np.isfinite(shares)).all()
        ):
            raise UserError(
                f"weights={list(weights)}: expected a positive number for each of "
                f"{len(sources)} sources. Leave out those without weight."
            )
        shares /= shares.sum()
        length = (lengths / shares).max()
        if length > _MAX_REPEATS * lengths.sum():
            raise UserError(
                f"weights={list(weights)} of sources of {lengths.tolist()} examples "
                f"make an epoch of {length:,.0f}: expected at most {_MAX_REPEATS} "
                "times as many as there are. Raise the smallest weight."
            )
        counts = np.maximum(np.rint(shares * length).astype(np.int64), lengths)
    return MixedSource(tuple(sources), counts)


def parse_names(dataset: Names) -> tuple[list[str], list[float]] | None:
    """Return names and weights of several sources, None for the name of one.

    dataset: a sequence, or its text as in a config: "['/a', '/b']" by their lengths,
    "[('/a', 0.7), ('/b', 0.3)]" with weights.
    raises: UserError for anything else.
    """
    given: Any = dataset
    if isinstance(dataset, str):
        if not dataset.startswith(("[", "(")) or os.path.exists(dataset):
            return None
        try:
            given = ast.literal_eval(dataset)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise _no_list(dataset) from None
    if not isinstance(given, list | tuple) or not given:
        raise _no_list(dataset)
    if all(isinstance(each, str) for each in given):
        return list(given), []
    names, weights = [], []
    for each in given:
        match each:
            case [str(name), int() | float() as weight] if math.isfinite(weight):
                names.append(name)
                weights.append(float(weight))
            case _:
                raise _no_list(dataset)
    return names, weights


def _no_list(dataset: Names) -> UserError:
    return UserError(
        f"dataset={dataset!r}: expected the name of a data set, a list of names, or a "
        "list of (name, weight), such as \"[('/data/a', 0.7), ('/data/b', 0.3)]\"."
    )
