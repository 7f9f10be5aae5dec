"""Sets as Hugging Face `datasets` stores them: Parquet files, `save_to_disk` folders.

Images are a column struct<bytes, path>, or of bytes; names of classes are in the
schema's metadata. pyarrow alone reads both. Images stay encoded: `datasets` would store
16-bit colours modulo 256.
"""

import collections
import dataclasses
import functools
import json
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources.base import (
    MAX_CLASSES,
    NO_LABEL,
    check_labels,
    known_labels,
    numbered_classes,
)
from simmim_jax.data.sources.folders import Files, list_files
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import (
    TRAIN,
    Classes,
    Paths,
    find_split,
    hashed_split,
    named_splits,
    nothing_to_learn_from,
)
from simmim_jax.data.sources.remote import MAX_BYTES, file_too_large, is_url, read_file
from simmim_jax.data.sources.stacks import has_files
from simmim_jax.errors import NotFoundError, UserError

_DICT = "dataset_dict.json"
_STATE = "state.json"
_INFO = "dataset_info.json"
_FILES = Files(
    lambda name: name.lower().endswith(b".parquet"), (".parquet",), "parquet 1"
)
_IMAGE_COLUMNS = ("image", "img")
_PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "image_path")
_LABEL_COLUMNS = ("label", "labels", "class")
# What a process keeps of Parquet files: `datasets` writes groups of 100 images.
_CACHED_BYTES = 256 * 2**20
_OPEN_FILES = 64


@dataclasses.dataclass(frozen=True)
class TableSource:
    """Images in a column of Parquet or Arrow files.

    group_files, groups int [g]: file and number of each group of rows (an Arrow file is
    one group); ends int64 [g]: number of rows in a group and those before it;
    indices int [n]: rows of the split; labels int32 [n] or None; unlabelled: why there
    are none, if that may be a mistake; max_bytes: of an image.
    """

    root: str
    files: Paths = dataclasses.field(repr=False)
    group_files: np.ndarray = dataclasses.field(repr=False)
    groups: np.ndarray = dataclasses.field(repr=False)
    ends: np.ndarray = dataclasses.field(repr=False)
    indices: np.ndarray = dataclasses.field(repr=False)
    column: str
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    unlabelled: str = ""
    max_bytes: int = MAX_BYTES

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        row = int(self.indices[index])
        group = int(np.searchsorted(self.ends, row, side="right"))
        within = row - (int(self.ends[group - 1]) if group else 0)
        file = int(self.group_files[group])
        path = os.path.join(self.root, self.files[file])
        before = int(np.searchsorted(self.group_files, file))  # the file's first group
        name = f"{path}:{row - (int(self.ends[before - 1]) if before else 0)}"
        try:
            values = _read_column(path, int(self.groups[group]), self.column)
            image = self._image(values[within].as_py(), os.path.dirname(path))
        except BadImage as error:
            error.filename = error.filename or name
            raise
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": image, "label": label, "path": name}

    def _image(self, value: Any, folder: str) -> bytes:
        """Return the bytes of an image; those that are files are read."""
        path = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if value is None and path:
            path = path if is_url(path) else os.path.join(folder, path)
            return read_file(path, self.max_bytes)
        if value is None:
            raise BadImage("empty", "A row has no image: expected its bytes or path.")
        if len(value) > self.max_bytes:
            raise file_too_large("An image of a table", self.max_bytes)
        return value


def _open_tables(
    place: str, chosen: list[str], others: list[str] | None, split: str, max_bytes: int
) -> TableSource:
    """Open Parquet or Arrow files, paths relative to `place`.

    others: files of other splits, which also name classes; None: `chosen` has all rows,
    which hashes divide.
    raises: UserError for files without exactly one column of images.
    """
    tables = [_Table(os.path.join(place, file)) for file in chosen]
    column = tables[0].image_column()
    for table in tables:
        if table.image_column() != column:
            raise UserError(
                f"{table.path!r} has its images in the column "
                f"{table.image_column()!r}, {tables[0].path!r} in {column!r}: expected "
                "the same. Name a folder of files that belong together."
            )
    sizes = [table.group_sizes for table in tables]
    counts = np.array([size for each in sizes for size in each], np.int64)
    total = int(counts.sum())
    if not total:
        raise NotFoundError(f"{place!r} has no rows: expected images. Write it again.")
    rest = [_Table(os.path.join(place, file)) for file in others or ()]
    labels, class_names, unlabelled = _classes(tables, rest, split, place)
    indices = np.arange(total)
    if others is None:
        names = [
            f"{file}:{row}".encode()
            for file, each in zip(chosen, sizes, strict=True)
            for row in range(sum(each))
        ]
        indices = hashed_split(names, split, place)
        labels = None if labels is None else known_labels(labels[indices])
    return TableSource(
        place,
        Paths(list(map(os.fsencode, chosen))),
        np.repeat(np.arange(len(tables), dtype=np.int32), list(map(len, sizes))),
        np.concatenate([np.arange(len(each)) for each in sizes]),
        np.cumsum(counts),
        indices,
        column,
        labels,
        class_names if labels is not None else (),
        unlabelled,
        max_bytes,
    )


# ---- One file ------------------------------------------------------------------------


class _Table:
    """Schema and labels of a Parquet or Arrow file."""

    def __init__(self, path: str):

        self.path = path
        try:
            if path.endswith(".arrow"):
                table = _arrow_table(path, _stamp(path))
                self.schema, self.group_sizes = table.schema, [table.num_rows]
            else:
                with _parquet(path) as file:
                    self.schema = file.schema_arrow
                    groups = range(file.num_row_groups)
                    self.group_sizes = [
                        file.metadata.row_group(g).num_rows for g in groups
                    ]
        except Exception as error:  # Arrow raises exceptions of many types
            raise self._damaged(error) from error

    @functools.cached_property
    def features(self) -> dict[str, Any]:
        """What `datasets` says of the columns, {} if it did not write the file."""
        text = (self.schema.metadata or {}).get(b"huggingface", b"{}")
        try:
            features = json.loads(text)["info"]["features"]
            return {k: v for k, v in features.items() if isinstance(v, dict)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def image_column(self) -> str:
        """Return the column of images: "image" or "img", or the only one."""
        names = [field.name for field in self.schema if self.has_images(field)]
        named = [name for name in _IMAGE_COLUMNS if name in names]
        if named or len(names) == 1:
            return (named or names)[0]
        columns = ", ".join(f"{field.name} {field.type}" for field in self.schema)
        arrays = [n for n in self.schema.names if _is_list(self.schema.field(n).type)]
        hint = (
            "Save arrays as a file: np.save('images.npy', "
            f"dataset.with_format('numpy')[:][{arrays[0]!r}]), then name images.npy."
            if arrays and not names
            else "Rename the one that you want to image."
        )
        raise UserError(
            f"{self.path!r} has the columns {columns}: expected images, "
            "struct<bytes: binary, path: string> or binary, in one column, or in one "
            f"named image. {hint}"
        )

    def has_images(self, field: Any) -> bool:
        """Whether a column has encoded images."""
        import pyarrow

        types, kind = pyarrow.types, field.type
        said = self.features.get(field.name, {}).get("_type", "Image")
        if types.is_struct(kind):
            return said == "Image" and {f.name for f in kind} >= {"bytes", "path"}
        is_bytes = types.is_binary(kind) or types.is_large_binary(kind)
        return is_bytes and said in ("Image", "Value")

    def label_column(self) -> tuple[str, tuple[str, ...]]:
        """Return the column of labels, and the names in the schema; "", () if none."""
        classes = {
            name: tuple(map(str, each.get("names") or ()))
            for name, each in self.features.items()
            if each.get("_type") == "ClassLabel" and name in self.schema.names
        }
        named = next((n for n in _LABEL_COLUMNS if n in self.schema.names), "")
        if named not in classes and len(classes) == 1:
            (named,) = classes
        return named, classes.get(named, ())

    def values(self, column: str) -> list[Any]:
        """Return a column of labels; raises UserError for damage."""
        try:
            if self.path.endswith(".arrow"):
                return _arrow_column(self.path, _stamp(self.path), column).to_pylist()
            with _parquet(self.path) as file:
                table = file.read(columns=[column], use_threads=False)
                return table[column].to_pylist()
        except Exception as error:  # as above
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path!r} cannot be read by pyarrow ({error!s:.200}): expected a "
            "complete file. Copy or download it again."
        )


def _is_list(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    return (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or isinstance(kind, pyarrow.BaseExtensionType)  # Array2D, Array3D
    )


def _classes(
    tables: list[_Table], others: list[_Table], split: str, place: str
) -> Classes:
    """Return the classes of a split's tables; `others` also name classes."""
    column, names = tables[0].label_column()
    if not column:
        return Classes()
    mine = [value for table in tables for value in table.values(column)]
    if all(value is None for value in mine):
        return Classes()
    where = f"Column {column!r} of {tables[0].path!r}"
    if any(isinstance(value, list | dict) for value in mine):
        raise UserError(
            f"{where} has {tables[0].schema.field(column).type}: expected the number "
            "or the name of one class. Rename the column to train without labels."
        )
    with_labels = [table for table in others if column in table.schema.names]
    every = {*mine, *(value for table in with_labels for value in table.values(column))}
    every -= {None}
    lacking = every - {*mine, NO_LABEL}
    if lacking and split == TRAIN:
        named = dict(enumerate(names))
        listed = sorted(str(named.get(value, value)) for value in lacking)
        return Classes(unlabelled=nothing_to_learn_from(listed, place, "rows"))
    if not names and all(isinstance(value, str) for value in every):
        names = tuple(sorted(every))
        number_of = {name: number for number, name in enumerate(names)}
        found = [number_of.get(value, NO_LABEL) for value in mine]
        return Classes(np.array(found, np.int32), names)
    numbers = [NO_LABEL if value is None else value for value in mine]
    labels = check_labels(numbers, len(numbers), where, lowest=NO_LABEL)
    if names and labels.max() >= len(names):
        raise UserError(
            f"{where} has the label {labels.max()}: expected less than "
            f"{len(names)}, the number of names in its schema. Write it again."
        )
    if not names and max(every) >= MAX_CLASSES:
        raise UserError(f"{where} has the label {max(every)}: expected classes.")
    names = names or numbered_classes(np.array(list(every)))
    return Classes(known_labels(labels), names)


# ---- Reading -------------------------------------------------------------------------


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _parquet(path: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path)


@functools.lru_cache(_OPEN_FILES)
def _arrow_table(path: str, stamp: tuple[int, int]) -> Any:
    """Return an Arrow stream as a memory-mapped table."""
    import pyarrow

    del stamp  # a file that was replaced is opened again
    with pyarrow.memory_map(path) as mapped:
        return pyarrow.ipc.open_stream(mapped).read_all()


@functools.lru_cache(_OPEN_FILES)
def _arrow_column(path: str, stamp: tuple[int, int], column: str) -> Any:
    """Return a column of an Arrow stream; raises ArrowInvalid where it is damaged.

    pyarrow follows offsets to anywhere unless it is asked to check them.
    """
    found = _arrow_table(path, stamp)[column]
    found.validate(full=True)
    return found


class _Cache:
    """Columns of groups of rows that were read last, of `_CACHED_BYTES` at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._columns: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        self.__dict__.update(_lock=threading.Lock(), _columns=collections.OrderedDict())

    def get(self, key: Any, read: Callable[[], Any]) -> Any:
        """Return what is kept under `key`, read if there is none."""
        with self._lock:
            if key in self._columns:
                self._columns.move_to_end(key)
                return self._columns[key]
            self._columns[key] = column = read()
            while len(self._columns) > 1 and (
                sum(each.nbytes for each in self._columns.values()) > _CACHED_BYTES
            ):
                self._columns.popitem(last=False)
            return column


_cache = _Cache()


def _read_column(path: str, group: int, column: str) -> Any:
    """Return a column of a group of rows; raises OSError, and BadImage for damage."""

    def read() -> Any:
        with _parquet(path) as file:
            return file.read_row_group(group, [column], use_threads=False)[column]

    stamp = _stamp(path)
    try:
        if path.endswith(".arrow"):
            return _arrow_column(path, stamp, column)
        return _cache.get((path, stamp, group, column), read)
    except Exception as error:  # Arrow raises exceptions of many types
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadImage(
            "corrupt",
            f"Rows of {path!r} cannot be read by pyarrow ({error!s:.200}): expected "
            "Parquet or Arrow.",
        ) from error


# ---- Formats -------------------------------------------------------------------------


def is_parquet_of_images(place: str) -> bool:
    """Whether a place is a local Parquet file of images, not of their paths."""
    if not (place.lower().endswith(".parquet") and os.path.isfile(place)):
        return False
    try:
        table = _Table(place)
    except (UserError, OSError):
        return False
    import pyarrow

    types = pyarrow.types
    if any(types.is_string(f.type) and f.name in _PATH_COLUMNS for f in table.schema):
        # A list, which may have bytes of something else.
        return any(types.is_struct(f.type) for f in table.schema if table.has_images(f))
    return any(
        table.has_images(field)
        or (field.name in _IMAGE_COLUMNS and _is_list(field.type))
        for field in table.schema
    )


def open_parquet(place: str, split: str, *, max_bytes: int) -> TableSource:
    """Open one split of a Parquet file of images."""
    find_split(split, place, lambda name: False)  # the name of a single file is none
    folder, file = os.path.split(os.path.abspath(place))
    return _open_tables(folder, [file], None, split, max_bytes)


def _open_parquet_folder(place: str, split: str, *, max_bytes: int) -> TableSource:
    files = _parquet_files(place)
    splits = named_splits(files)
    name = find_split(split, place, splits.__contains__, list(splits))
    if name is None:
        return _open_tables(place, files, None, split, max_bytes)
    others = [file for file in files if file not in set(splits[name])]
    return _open_tables(place, splits[name], others, name, max_bytes)


def _check_parquet_folder(place: str, split: str) -> None:
    splits = named_splits(_parquet_files(place))
    find_split(split, place, splits.__contains__, list(splits))


def _parquet_files(place: str) -> list[str]:
    return list(map(os.fsdecode, list_files(place, _FILES)))


def _is_saved(place: str) -> bool:
    """Whether `save_to_disk` wrote a folder."""

    def has(name: str) -> bool:
        return os.path.isfile(os.path.join(place, name))

    return has(_DICT) or (has(_STATE) and has(_INFO))


def _open_saved(place: str, split: str, *, max_bytes: int) -> TableSource:
    splits = _saved_splits(place)
    name = find_split(split, place, splits.__contains__, splits)
    if name is None:
        return _open_tables(place, _saved_files(place), None, split, max_bytes)
    files = {
        each: [os.path.join(each, f) for f in _saved_files(os.path.join(place, each))]
        for each in splits
    }
    others = [file for each in splits if each != name for file in files[each]]
    return _open_tables(place, files[name], others, name, max_bytes)


def _check_saved(place: str, split: str) -> None:
    splits = _saved_splits(place)
    find_split(split, place, splits.__contains__, splits)


def _saved_files(folder: str) -> list[str]:
    """Return the names of the files of a split, in their order."""
    path = os.path.join(folder, _STATE)
    try:
        files = [str(entry["filename"]) for entry in _read_json(path, "_data_files")]
    except (KeyError, TypeError) as error:
        raise _damaged(path) from error
    if not files or any(os.path.basename(file) != file for file in files):
        raise _damaged(path)
    return files


def _saved_splits(place: str) -> list[str]:
    """Return the names of the splits, [] of a set without."""
    path = os.path.join(place, _DICT)
    splits = _read_json(path, "splits") if os.path.exists(path) else []
    for split in splits:
        is_name = isinstance(split, str) and os.path.basename(split) == split
        if not is_name or not os.path.isdir(os.path.join(place, split)):
            raise _damaged(path)
    return splits


def _read_json(path: str, key: str) -> list[Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(found, list):
        raise _damaged(path)
    return found


def _damaged(path: str) -> UserError:
    return UserError(
        f"{path!r} is damaged: expected what dataset.save_to_disk writes. Save the set "
        "again."
    )


PARQUET_FOLDER = Format(
    "a folder of .parquet files of images",
    lambda place: has_files(place, _FILES),
    _check_parquet_folder,
    _open_parquet_folder,
    takes_max_bytes=True,
)
SAVED = Format(
    "a folder of dataset.save_to_disk",
    _is_saved,
    _check_saved,
    _open_saved,
    takes_max_bytes=True,
)
