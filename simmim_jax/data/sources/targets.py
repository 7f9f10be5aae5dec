"""Targets that are not one class an image: any number of classes, or numbers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simmim_jax.data.sources import base
from simmim_jax.data.sources.base import NO_LABEL, Source, SubsetSource
from simmim_jax.errors import UserError, did_you_mean

CLASSES, VALUES = "classes", "values"
# Between the classes of an image, in a list.
SEPARATOR = ";"
# Columns of a list that are taken where none is named.
DEFAULTS = {
    CLASSES: ("labels", "classes", "label", "class"),
    VALUES: ("value", "target", "label"),
}
_TRUTH = {"true": 1.0, "false": 0.0}


class Wanted(NamedTuple):
    """Which targets a data set is opened for.

    kind: CLASSES or VALUES; columns: of a list, or arrays of a file; (): one of
    `DEFAULTS`, in which the classes of an image are separated by `SEPARATOR`.
    """

    kind: str
    columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TargetSource:
    """Examples of another source, each with a "target".

    targets: float32 [n, m], NaN where one is not known; class_names: of the m targets.
    """

    source: Source
    targets: np.ndarray = dataclasses.field(repr=False)
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        target = self.targets[index]
        label = NO_LABEL if np.isnan(target).all() else 0
        return {**self.source[index], "label": label, "target": target}

    @property
    def labels(self) -> np.ndarray:
        """int32 [n], 0 where a target is known and -1 elsewhere."""
        return np.where(np.isnan(self.targets).all(1), NO_LABEL, 0).astype(np.int32)


def targets_of(source: Source) -> np.ndarray | None:
    """Return the targets of a source, or of its choice of another one; None: none."""
    if isinstance(source, SubsetSource):
        inner = targets_of(source.source)
        return None if inner is None else inner[source.indices]
    return source.targets if isinstance(source, TargetSource) else None


def as_source(data: Any, labels: Any) -> Source:
    """Return data from Python with labels as a source; see `base.as_source`.

    labels: int [n] are classes; float [n], and [n, m] of any numbers, are targets.
    """
    array = np.asarray(labels)
    is_number = array.dtype.kind in "biuf" and array.ndim in (1, 2)
    if not is_number or (array.ndim == 1 and array.dtype.kind != "f"):
        return base.as_source(data, labels)
    source = base.as_source(data)
    if len(array) != len(source):
        raise UserError(
            f"labels are of {len(array):,} images, data has {len(source):,}: expected "
            "as many."
        )
    table = array.reshape(len(array), -1).astype(np.float32)
    return TargetSource(source, table, numbered(table))


def numbered(targets: np.ndarray) -> tuple[str, ...]:
    """Return names for targets [n, m] that have none."""
    return tuple(map(str, range(targets.shape[1])))


# ---- Texts of a list -----------------------------------------------------------------


def places_of(wanted: Wanted, header: Sequence[str], file: str) -> list[int]:
    """Return the places of the wanted columns in the header of a list.

    raises: UserError for a column that is not there.
    """
    lower = [name.strip().lower() for name in header]
    if not wanted.columns:
        names = (name for name in DEFAULTS[wanted.kind] if name in lower)
        found = [lower.index(name) for name in names][:1]
        if not found:
            raise UserError(
                f"{file!r} has the columns {', '.join(header)}: expected one of "
                f"{', '.join(DEFAULTS[wanted.kind])}, or those that "
                "config.targets.columns names."
            )
        return found
    for name in wanted.columns:
        if name.lower() not in lower:
            raise UserError(
                f"config.targets.columns={wanted.columns}: {file!r} has no column "
                f"{name!r}, but {', '.join(header)}.{did_you_mean(name, header)}"
            )
    return [lower.index(name.lower()) for name in wanted.columns]


def parse(
    texts: Sequence[Sequence[str]], lines: Sequence[int], wanted: Wanted, file: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return targets float32 [n, m] and their names, of the cells of each row.

    lines: of the rows in the file, for messages.
    raises: UserError for what is no number, or no truth of a class.
    """
    if wanted.kind == CLASSES and not wanted.columns:
        return _several([cells[0] for cells in texts])
    table = np.array(
        [
            [_number(text, line, wanted, file) for text in cells]
            for cells, line in zip(texts, lines, strict=True)
        ],
        np.float32,
    )
    return table, wanted.columns or ("value",)


def _several(texts: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return which classes each text names, and all of their names."""
    rows = [{name.strip() for name in text.split(SEPARATOR)} - {""} for text in texts]
    every = set().union(*rows)
    are_numbers = all(name.isascii() and name.isdigit() for name in every)
    names = sorted(every, key=_by_value if are_numbers else None)
    number_of = {name: number for number, name in enumerate(names)}
    table = np.zeros((len(rows), len(names)), np.float32)
    for row, classes in zip(table, rows, strict=True):
        row[[number_of[name] for name in classes]] = 1
    return table, tuple(names)


def _by_value(digits: str) -> tuple[int, str, str]:
    """Return what sorts 2, 10; Python converts no thousands of digits, and 01 is 1."""
    value = digits.lstrip("0")
    return len(value), value, digits


def _number(text: str, line: int, wanted: Wanted, file: str) -> float:
    is_class = wanted.kind == CLASSES
    if not text:
        return math.nan
    try:
        value = _TRUTH[text.lower()] if text.lower() in _TRUTH else float(text)
    except ValueError:
        value = math.inf
    if (is_class and value in (0, 1)) or (not is_class and not math.isinf(value)):
        return value
    expected = "1 or 0, or nothing" if is_class else "a number, or nothing"
    raise UserError(
        f"{file!r}, line {line}: {text[:40]!r} in a column of targets. Expected "
        f"{expected} where it is not known. Mend the row."
    )


def fractions(labels: Sequence[str]) -> str:
    """Return the first label with a fraction if all are numbers, else ""."""
    try:
        values = {text: float(text) for text in labels}
    except ValueError:
        return ""
    fractional = (t for t, v in values.items() if math.isfinite(v) and v % 1)
    return next(fractional, "")
