"""Prepared TFDS data sets, found with os alone; opening one imports TFDS."""

import contextlib
import dataclasses
import errno
import functools
import json
import operator
import os
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from simmim_jax.data.codecs.base import native
from simmim_jax.data.sources import cache
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.folders import subfolders
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.paths import NAME_A_SPLIT
from simmim_jax.data.sources.remote import is_url
from simmim_jax.errors import NotFoundError, UserError

_PREFIX = "tfds:"
# Where TFDS keeps its kinds of features, and both of Protobuf's spellings of the field
# that names them; older sets have "type" beside "content".
_OWN_CLASS = re.compile(r"tensorflow_datasets\.core\.features(\.[A-Za-z]\w*)+")
_CLASS_KEYS = ("pythonClassName", "python_class_name")
_INFO = "dataset_info.json"
_DESCRIPTIONS = (_INFO, "features.json")


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A prepared TFDS data set.

    records: its data source, with images encoded or as arrays;
    image_key, label_key: their keys in a nested record.
    """

    records: Any = dataclasses.field(repr=False)
    folder: str
    split: str
    image_key: tuple[str, ...]
    label_key: tuple[str, ...] | None
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    reads_labels: ClassVar = True  # in `labels`, from every record

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        try:
            record = self.records[index]
            image = _get(record, self.image_key)
            label = NO_LABEL if self.label_key is None else _get(record, self.label_key)
            if image is None:  # TFDS reads past the end of a file as empty records.
                raise UserError("empty record")
            if isinstance(image, np.ndarray):
                image = native(image, "/".join(self.image_key))
            return {"image": image, "label": int(label)}
        except Exception as error:  # from ArrayRecord, Protobuf or TFDS
            what = f"{self.split}: example {index}: {error}"
            raise OSError(errno.EIO, what, self.folder) from error

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int [n]; None if there are none, as in the test split of ImageNet.

        The first time, this reads every record (0.1 ms each) without decoding images;
        large results are cached like the indexes of folders. Raises UserError for
        damaged records.
        """
        if self.label_key is None:
            return None
        key = f"tfds 1 {os.path.realpath(self.folder)} {self.split} {self.label_key}"
        info = os.stat(os.path.join(self.folder, "dataset_info.json"))
        kept = cache.load(key, ("labels", "stamp"))
        if kept is None or kept["stamp"] != info.st_mtime_ns:
            try:
                labels = np.array([self[i]["label"] for i in range(len(self))])
            except OSError as error:
                raise self._damaged(str(error)) from error
            labels = labels.astype(np.int32)
            if len(labels) and labels.max() >= len(self.class_names):
                raise self._damaged(f"label {labels.max()} has no class")
            kept = {"labels": labels, "stamp": np.array(info.st_mtime_ns)}
            cache.save(key, len(labels), kept)
        return None if (kept["labels"] == NO_LABEL).any() else kept["labels"]

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self.folder!r} has damaged records ({what}): expected those of a "
            "prepared TFDS set. Copy or prepare it again."
        )


def open_tfds(name: str, split: str, data_dir: str) -> TfdsSource:
    """Open one split of a prepared data set "NAME[/CONFIG][:VERSION]".

    The image is the feature "image", or else the only image, or else the only tensor
    [h, w, c]; the label is the ClassLabel "label", or the only ClassLabel. Features may
    be nested.
    raises: UserError if that leaves no image, or several.
    """
    folder = find_prepared(name, split, data_dir)
    import tensorflow_datasets as tfds  # takes seconds: after the errors above

    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # from TFDS, Protobuf or etils
        raise _damaged(folder, error) from error
    features = dict(_leaves(builder.info.features, tfds.features.FeaturesDict))
    encoded = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    # Segmentation masks are images as well.
    photos = [
        k for k in encoded if not isinstance(features[k], tfds.features.LabeledImage)
    ]
    arrays = [
        k
        for k, f in features.items()
        if type(f) is tfds.features.Tensor
        and len(f.shape) == 3
        and np.dtype(f.np_dtype).kind in "biuf"
    ]
    named = [k for k in arrays if "/".join(k) == "image"]
    image_key = _choose("image", photos + named or arrays)
    if image_key is None:
        names = sorted(map("/".join, features))
        raise UserError(
            f"{folder!r} has the features {', '.join(names)}: "
            "expected one image or tensor [h, w, c], named 'image' if there are "
            "several. Save the ones that you want as files in a folder."
        )
    dtype = features[image_key].np_dtype
    if image_key not in arrays and not np.issubdtype(dtype, np.integer):
        raise UserError(
            f"{folder!r} has {dtype} images: expected an "
            "integer dtype. Save the images as .npy files instead."
        )
    decoders: dict[str, Any] = {}
    for *outer, last in encoded:
        inner = decoders
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = tfds.decode.SkipDecoding()
    try:
        records = builder.as_data_source(split, decoders=decoders)
    except Exception as error:  # from TFDS or ArrayRecord
        raise UserError(
            f"split={split!r} of {folder!r} cannot be opened ({error}): expected a "
            f"split, or a slice such as 'train[:10%]'. Where files are missing, copy "
            "or prepare the set again."
        ) from error
    label_key = _choose(
        "label",
        [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)],
    )
    class_names = () if label_key is None else tuple(features[label_key].names)
    return TfdsSource(records, folder, split, image_key, label_key, class_names)


def _leaves(
    features: Any, nest: type, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the innermost features with their keys."""
    for key, feature in features.items():
        if isinstance(feature, nest):
            yield from _leaves(feature, nest, (*above, key))
        else:
            yield (*above, key), feature


def _choose(name: str, keys: list[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the key `name`, or else the only key, or else None."""
    if (name,) in keys:
        return (name,)
    return keys[0] if len(keys) == 1 else None


def _get(record: Any, key: tuple[str, ...]) -> Any:
    return functools.reduce(operator.getitem, key, record)


def find_prepared(name: str, split: str, data_dir: str) -> str:
    """Return the folder of a prepared data set, found with os alone.

    TFDS would spend minutes on an attempt to download a missing data set.
    """
    name, _, version = name.partition(":")
    data_dir = data_dir or os.path.expanduser(
        os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    folder = os.path.join(data_dir, name)
    versions = _versions(folder)
    if not versions and "/" not in name:  # A single config need not be named.
        configs = [c for c in subfolders(folder) if _versions(os.path.join(folder, c))]
        if len(configs) > 1:
            raise UserError(
                f"dataset='tfds:{name}' has several configs: name one of "
                f"{', '.join(f'tfds:{name}/{config}' for config in sorted(configs))}."
            )
        if configs:
            folder = os.path.join(folder, configs[0])
            versions = _versions(folder)
    if version:
        versions = [v for v in versions if v == version]
    if not versions:
        raise NotFoundError(_how_to_prepare(name, version, data_dir))
    folder = os.path.join(folder, versions[-1])
    if not any(".array_record" in file for file in os.listdir(folder)):
        raise NotFoundError(
            f"{folder!r} is not in the array_record format. "
            + _how_to_prepare(name, version, data_dir)
        )
    splits = _read_description(folder)
    for part in split.split("+"):
        if part.partition("[")[0] not in splits:
            raise UserError(
                f"split={split!r} of 'tfds:{name}' does not exist: expected one of "
                f"{', '.join(splits)}, or a slice of one such as '{splits[0]}[:10%]'. "
                f"{NAME_A_SPLIT}"
            )
    return folder


def _read_description(folder: str) -> list[str]:
    """Return the names of the splits of a prepared data set.

    raises: UserError if its description is damaged, or names a class that is not TFDS's
    own: TFDS imports whatever module the description names.
    """
    splits = []
    for name in _DESCRIPTIONS:
        path = os.path.join(folder, name)
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            classes = list(_class_names(content))
            if name == _INFO:
                splits = [str(split["name"]) for split in content["splits"]]
                if not splits:
                    raise ValueError("it has no splits")
        except FileNotFoundError:  # TFDS has a better message
            continue
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(path, error) from error
        for each in classes:
            if not _OWN_CLASS.fullmatch(each):
                raise UserError(
                    f"{path!r} names the class {each[:80]!r}, which TFDS would import: "
                    "expected one of TFDS's own, tensorflow_datasets.core.features. "
                    "Prepare the set again with those, or save its images as files."
                )
    return splits


def _class_names(description: Any) -> Iterator[str]:
    """Yield the names of classes in a description, also in JSON that it quotes."""
    if isinstance(description, dict):
        legacy = [description.get("type")] if "content" in description else []
        for name in (*map(description.get, _CLASS_KEYS), *legacy):
            if isinstance(name, str):
                yield name
        for value in description.values():
            yield from _class_names(value)
    elif isinstance(description, list):
        for value in description:
            yield from _class_names(value)
    elif isinstance(description, str) and "{" in description:
        with contextlib.suppress(ValueError):
            yield from _class_names(json.loads(description))


def _damaged(path: str, error: Exception) -> UserError:
    return UserError(
        f"{path!r} is damaged ({type(error).__name__}: {error}): expected the "
        "description of a prepared TFDS set. Copy or prepare it again."
    )


def _versions(folder: str) -> list[str]:
    """Return the versions that are prepared in a folder, oldest first."""
    versions = [
        name
        for name in subfolders(folder)
        if os.path.exists(os.path.join(folder, name, "dataset_info.json"))
        and all(part.isdecimal() for part in name.split("."))
    ]
    return sorted(versions, key=lambda name: [int(part) for part in name.split(".")])


def _how_to_prepare(name: str, version: str, data_dir: str) -> str:
    full_name = f"{name}:{version}" if version else name
    return (
        f"dataset='tfds:{full_name}' is not prepared under {data_dir!r}. Prepare it "
        "once, on any machine (this needs TensorFlow, reading does not):\n"
        "  pip install tensorflow tensorflow-datasets\n"
        '  python -c "import tensorflow_datasets as tfds; tfds.builder('
        f"'{full_name}', data_dir='{data_dir}', file_format='array_record')"
        '.download_and_prepare()"\n'
        "Files that TFDS does not download, such as ImageNet's, go to "
        f"{os.path.join(data_dir, 'downloads', 'manual')} first."
    )


def _find(place: str, split: str, data_dir: str) -> tuple[str, str, str]:
    """Return name, split and data_dir; raises UserError if data_dir is a URL."""
    if is_url(data_dir):
        raise UserError(
            f"data_dir={data_dir!r} is not a local path: expected a folder, since "
            "ArrayRecord reads through the file system. Mount the bucket (Cloud "
            "Storage: gcsfuse) and name its folder."
        )
    return place.removeprefix(_PREFIX), split, os.path.expanduser(data_dir)


def _check_tfds(place: str, split: str, *, data_dir: str) -> None:
    find_prepared(*_find(place, split, data_dir))


def _open_tfds(place: str, split: str, *, data_dir: str) -> TfdsSource:
    return open_tfds(*_find(place, split, data_dir))


FORMAT = Format(
    f"'{_PREFIX}NAME'",
    lambda place: place.startswith(_PREFIX) and place != _PREFIX,
    _check_tfds,
    _open_tfds,
    prefix="tfds",
    takes_data_dir=True,
)
