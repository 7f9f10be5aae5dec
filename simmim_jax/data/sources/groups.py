"""Named arrays of one file: which of them are the images, and which the labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simmim_jax.data.sources.base import check_labels, numbered_classes
from simmim_jax.data.sources.paths import (
    SPLIT_FOLDERS,
    TRAIN,
    Classes,
    find_split,
    nothing_to_learn_from,
)
from simmim_jax.data.sources.planes import Selection
from simmim_jax.data.sources.targets import Wanted, numbered
from simmim_jax.errors import UserError, did_you_mean

_LABELS = ("labels", "label")
_MOST_LISTED = 12
# zarr 3.1.6 takes 0.3 ms for each.
_MAX_CHUNKS = 2**14


def choose_split(
    arrays: Mapping[str, Any], split: str, place: str
) -> tuple[str, dict[str, Any]]:
    """Return the group of a split and "/", "" without such groups, and its arrays.

    arrays: by their path in the file.
    raises: as `find_split`.
    """
    tops = {name.partition("/")[0] for name in arrays if "/" in name}
    found = find_split(split, place, tops.__contains__)
    prefix = f"{found}/" if found else ""
    within = {n: a for n, a in sorted(arrays.items()) if n.startswith(prefix)}
    return prefix, {n.removeprefix(prefix): a for n, a in within.items()}


def choose_images(
    arrays: Mapping[str, Any], selection: Selection, place: str, axes: Mapping[int, str]
) -> str:
    """Return the name of the images: the selected one, or the only one.

    axes: by their number, a letter for each axis that images may have.
    raises: UserError otherwise.
    """
    listed = ", ".join(
        f"{name} {list(array.shape)} {array.dtype}"
        for name, array in list(arrays.items())[:_MOST_LISTED]
    )
    has = f"it has {listed or 'no arrays'}."
    if len(selection.names) > 1:
        raise UserError(
            f"dataset={place!r} names {len(selection.names)} arrays: expected one."
        )
    if selection.names:
        (name,) = selection.names
        if name not in arrays:
            raise UserError(
                f"dataset={place!r} names {name!r}, but {has}"
                + did_you_mean(name, arrays)
            )
        if len(arrays[name].shape) not in axes:
            raise UserError(
                f"{name!r} of {selection.path!r} has shape "
                f"{list(arrays[name].shape)}: expected {_expected(axes)}."
            )
        return name
    fitting = [
        name
        for name, array in arrays.items()
        if len(array.shape) in axes and np.dtype(array.dtype).kind in "biuf"
    ]
    if len(fitting) != 1:
        raise UserError(
            f"dataset={place!r} has {len(fitting)} arrays of images, {_expected(axes)}:"
            f" expected one. Name it behind the path, as in PATH:NAME; {has}"
        )
    return fitting[0]


def labels_of(
    arrays: Mapping[str, Any], name: str, count: int, place: str
) -> np.ndarray | None:
    """Return NAME_labels, or labels beside the images, as int32 [n]; None if there are
    none.
    """
    folder = name.rpartition("/")[0]
    beside = [f"{folder}/{label}" if folder else label for label in _LABELS]
    for candidate in (f"{name}_labels", *beside):
        if candidate in arrays:
            array, where = arrays[candidate], f"{candidate!r} of {place!r}"
            if tuple(array.shape) not in ((count,), (count, 1)):
                raise UserError(
                    f"{where} has shape {list(array.shape)}: expected [{count}], a "
                    "label for each image. Write it so, or rename it."
                )
            check_chunks(array, array.shape, where)
            return check_labels(np.asarray(array[...]).reshape(-1), count, where)
    return None


def classes_of(
    arrays: Mapping[str, Any], prefix: str, name: str, axes: str, place: str
) -> Classes:
    """Return the classes of a split's images, numbered over all splits.

    arrays: of the whole file; prefix: of the split, as `choose_split` returns it; axes:
    of the images, as in `ArrayPlanes`.
    """
    groups = [f"{split}/" for split in SPLIT_FOLDERS] if prefix else [""]
    labels = {}
    for group in groups:
        if (path := group + name) in arrays:
            sizes = zip(axes, arrays[path].shape, strict=False)
            count = math.prod(size for axis, size in sizes if axis not in "yxc")
            labels[group] = labels_of(arrays, path, count, place)
    if (mine := labels[prefix]) is None:
        return Classes()
    every = np.concatenate([each for each in labels.values() if each is not None])
    lacking = np.setdiff1d(every, mine)
    if len(lacking) and prefix == f"{TRAIN}/":
        listed = list(map(str, lacking))
        return Classes(unlabelled=nothing_to_learn_from(listed, place))
    return Classes(mine, numbered_classes(every))


def targets_of(
    arrays: Mapping[str, Any], prefix: str, name: str, wanted: Wanted, place: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the targets of a split's images, float32 [n, m], and their names.

    arrays, prefix: as in `classes_of`.
    raises: UserError for arrays that are not there, or not numbers of each image.
    """
    count = len(arrays[prefix + name])
    names = [*wanted.columns] or [
        each for each in (f"{name}_labels", *_LABELS) if prefix + each in arrays
    ][:1]
    tables = []
    for each in names:
        if prefix + each not in arrays:
            raise UserError(
                f"config.targets.columns={wanted.columns}: {place!r} has no array "
                f"{each!r}, but {', '.join(arrays)}."
            )
        array = arrays[prefix + each]
        where = f"{prefix + each!r} of {place!r}"
        shape, kind = tuple(array.shape), np.dtype(array.dtype).kind
        is_table = len(shape) == 2 and not wanted.columns
        if shape[:1] != (count,) or not (len(shape) == 1 or is_table):
            expected = f"[{count}]" if wanted.columns else f"[{count}] or [{count}, m]"
            raise UserError(
                f"{where} has shape {list(shape)}: expected {expected}, numbers for "
                "each image."
            )
        if kind not in "biuf":
            raise UserError(f"{where} is {array.dtype}: expected numbers.")
        check_chunks(array, shape, where)
        tables.append(np.asarray(array[...], np.float32).reshape(count, -1))
    if not tables:
        raise UserError(
            f"dataset={place!r} has no labels: expected an array {name}_labels or "
            "labels, or those that config.targets.columns names."
        )
    table = np.concatenate(tables, axis=1)
    return table, wanted.columns or numbered(table)


def check_chunks(array: Any, shape: Sequence[int], where: str) -> None:
    """Raise UserError if a part of an array has too many chunks to be read at once.

    shape: of the part; where: the array, for messages.
    """
    sizes = zip(shape, array.chunks or array.shape, strict=True)
    chunks = math.prod(-(-size // max(chunk, 1)) for size, chunk in sizes)
    if chunks > _MAX_CHUNKS:
        raise UserError(
            f"{where} has {chunks:,} chunks of {list(array.chunks)} to read at once: "
            f"expected at most {_MAX_CHUNKS:,}. Write it with larger ones."
        )


def _expected(axes: Mapping[int, str]) -> str:
    names = str.maketrans({"y": "h", "x": "w"})
    return " or ".join(
        f"[{', '.join(letters.translate(names))}]" for letters in axes.values()
    )
