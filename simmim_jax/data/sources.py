"""Where examples come from: bundled sets, TFDS sets, folders of images.

A source only finds and reads: its images are still encoded bytes, or raw arrays
where that is how they are stored. This module imports TFDS when a TFDS set is
opened and not before, so that `check_source` answers in milliseconds.
"""

import dataclasses
import difflib
import functools
import gzip
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

_BUNDLED_DIR = pathlib.Path(__file__).parent / "bundled"
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SPLIT_FOLDERS = ("train", "validation", "val", "test")
# Of a folder without split folders, one image in 20 is for validation.
_VALIDATION_SHARE = 20
_NO_LABEL = -1


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
        label = _NO_LABEL if self.labels is None else int(self.labels[index])
        return {"image": self.images[index], "label": label}


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files under `root`: paths are relative to it, labels int[n] or None."""

    root: str
    paths: tuple[str, ...] = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        path = os.path.join(self.root, self.paths[index])
        label = _NO_LABEL if self.labels is None else int(self.labels[index])
        with open(path, "rb") as file:
            return {"image": file.read(), "label": label, "path": path}


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A prepared TFDS set; `records` is its data source, images left encoded."""

    records: Any = dataclasses.field(repr=False)
    image_key: str
    label_key: str | None
    class_names: tuple[str, ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        record = self.records[index]
        label = _NO_LABEL if self.label_key is None else int(record[self.label_key])
        return {"image": record[self.image_key], "label": label}

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int[n]; reads every record once (about 0.1 ms each), decodes no image."""
        if self.label_key is None:
            return None
        return np.array([self[i]["label"] for i in range(len(self))], np.int32)


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


def open_source(dataset: str, split: str, *, data_dir: str = "") -> Source:
    """Open one split of a data set.

    dataset: "bundled:NAME", "tfds:NAME[/CONFIG][:VERSION]" or a directory:

    - of split folders, train/, validation/ or val/, test/: the one asked for is read;
    - of four MNIST-like files such as train-images-idx3-ubyte.gz: "train" reads
      train-*, "validation" and "test" both read t10k-*;
    - of images otherwise: those whose path hashes into one part in 20 are
      "validation" (and the one with the smallest hash, so that there is always one),
      the rest is "train". Adding images moves none of those that were there.

    Images in folders are labelled by the first folder, in sorted order; images beside
    no folder make the set unlabelled. Hidden files and folders are passed over.

    split: for TFDS any slice such as "train[:10%]"; data_dir: where TFDS sets are, by
    default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    raises: ValueError for a name or split that does not exist, FileNotFoundError for
    data that is not there.
    """
    kind, name = _parse(dataset)
    if kind == "bundled":
        _check_bundled(name, split)
        return _BUNDLED[name].load(split)
    if kind == "tfds":
        return _open_tfds(_find_prepared(name, split, data_dir), split)
    if _is_idx_folder(name):
        images, labels = _idx_paths(name, split)
        return _open_idx(images, labels)
    return _open_folder(name, split)


def check_source(dataset: str, split: str, *, data_dir: str = "") -> None:
    """Raise what `open_source` would raise if the data is not there, in milliseconds.

    Looks for the first image of a folder and the description of a TFDS set, reads
    neither.
    """
    kind, name = _parse(dataset)
    if kind == "bundled":
        _check_bundled(name, split)
    elif kind == "tfds":
        _find_prepared(name, split, data_dir)
    elif _is_idx_folder(name):
        _idx_paths(name, split)
    else:
        root, _ = _split_folder(name, split)
        if not any(True for _ in _walk_images(root)):
            raise _no_images(root)


def subset(source: Source, num_labels: int, seed: int) -> Source:
    """Choose `num_labels` labelled examples, as equally many a class as there are.

    With one seed a smaller choice is a part of every larger one.

    raises: ValueError if the source is unlabelled or has fewer examples.
    """
    labels = source.labels
    if labels is None:
        raise ValueError(
            f"num_labels={num_labels} needs labels to choose from, but the source is "
            "unlabelled: sort its images into class folders."
        )
    if not 0 < num_labels <= len(labels):
        raise ValueError(
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


def _parse(dataset: str) -> tuple[str, str]:
    """Split into ("bundled" | "tfds" | "folder", the rest)."""
    _check_local("dataset", dataset)
    prefix, colon, name = dataset.partition(":")
    if colon and prefix in ("bundled", "tfds") and name:
        return prefix, name
    if os.path.isdir(dataset):
        return "folder", dataset
    expected = "expected a directory, 'tfds:NAME' or 'bundled:NAME'"
    close = difflib.get_close_matches(prefix, ("bundled", "tfds"), n=1)
    if colon and os.sep not in prefix:
        meant = f" Did you mean '{close[0]}:{name or 'NAME'}'?" if close else ""
        raise ValueError(f"dataset={dataset!r} is unknown: {expected}.{meant}")
    raise FileNotFoundError(
        f"dataset={dataset!r} is not a directory: {expected}. Bundled are "
        f"{', '.join(_BUNDLED)}."
    )


def _check_local(field: str, path: str) -> None:
    if "://" in path:
        raise ValueError(
            f"{field}={path!r} is not a local path: data is read through the file "
            "system. Mount the bucket (Cloud Storage: gcsfuse) and name its folder."
        )


# ---- Bundled -------------------------------------------------------------------------

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_TRAIN = 8_000  # The first of the 10,000; the rest is for validation.
_CLIMATE_PATCH = 64


@dataclasses.dataclass(frozen=True)
class _Bundled:
    splits: tuple[str, ...]
    load: Callable[[str], ArraySource]


def _load_fashion_mnist_10k(split: str) -> ArraySource:
    images, labels = _idx_paths(str(_BUNDLED_DIR), "test")
    whole = _open_idx(images, labels)
    part = slice(_FASHION_TRAIN) if split == "train" else slice(_FASHION_TRAIN, None)
    assert whole.labels is not None
    return ArraySource(whole.images[part], whole.labels[part], _FASHION_CLASSES)


def _load_climate(split: str) -> ArraySource:
    """Cut patches out of one map at the corners scripts/build_climate.py chose."""
    from simmim_jax.data.decode import decode  # Pillow takes its time to import.

    world = decode((_BUNDLED_DIR / "climate-map.jpg").read_bytes(), channels=3)
    with np.load(_BUNDLED_DIR / "climate-patches.npz", allow_pickle=False) as patches:
        y, x = patches[f"{split}_corners"].T
        window = (_CLIMATE_PATCH, _CLIMATE_PATCH)
        # windows: uint8[h w c 64 64], a view; indexing copies the chosen ones.
        windows = np.lib.stride_tricks.sliding_window_view(world, window, axis=(0, 1))
        images = np.ascontiguousarray(windows[y, x].transpose(0, 2, 3, 1))
        if split == "unlabelled":
            return ArraySource(images, None, ())
        labels = patches[f"{split}_labels"].astype(np.int32)
        return ArraySource(images, labels, tuple(patches["class_names"].tolist()))


_BUNDLED = {
    "climate": _Bundled(("train", "validation", "unlabelled"), _load_climate),
    "fashion_mnist_10k": _Bundled(("train", "validation"), _load_fashion_mnist_10k),
}


def _check_bundled(name: str, split: str) -> None:
    if name not in _BUNDLED:
        raise ValueError(
            f"dataset='bundled:{name}' does not exist: expected one of "
            f"{', '.join(f'bundled:{known}' for known in _BUNDLED)}."
        )
    if split not in _BUNDLED[name].splits:
        raise ValueError(
            f"split={split!r} of 'bundled:{name}' does not exist: expected one of "
            f"{', '.join(_BUNDLED[name].splits)}."
        )


# ---- MNIST-like idx files ------------------------------------------------------------


def _is_idx_folder(folder: str) -> bool:
    return any(
        os.path.exists(os.path.join(folder, f"{part}-images-idx3-ubyte{gz}"))
        for part in ("train", "t10k")
        for gz in (".gz", "")
    )


def _idx_paths(folder: str, split: str) -> tuple[str, str]:
    """Return the paths of the images and the labels of a split."""
    part = {"train": "train", "validation": "t10k", "test": "t10k"}.get(split)
    if part is None:
        raise ValueError(
            f"split={split!r} of the idx files in {folder!r} does not exist: expected "
            "train (train-*) or validation or test (both t10k-*)."
        )
    paths = []
    for content in ("images-idx3", "labels-idx1"):
        path = os.path.join(folder, f"{part}-{content}-ubyte")
        existing = [p for p in (f"{path}.gz", path) if os.path.exists(p)]
        if not existing:
            raise FileNotFoundError(
                f"{path}.gz does not exist: split={split!r} needs it. Copy it there."
            )
        paths.append(existing[0])
    return paths[0], paths[1]


def _open_idx(images_path: str, labels_path: str) -> ArraySource:
    images = _read_idx(images_path)[..., None]
    labels = _read_idx(labels_path).astype(np.int32)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path!r} has {len(images)} images but {labels_path!r} has "
            f"{len(labels)} labels: expected equally many. Download both again."
        )
    return ArraySource(images, labels, tuple(map(str, range(labels.max() + 1))))


def _read_idx(path: str) -> np.ndarray:
    """Read uint8[...] (format: http://yann.lecun.com/exdb/mnist, at the end)."""
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
        data = file.read()
    # Two zero bytes, 8 = uint8, the number of axes, then their sizes in big-endian.
    if data[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path!r} starts with {data[:4]!r}: expected an idx file of uint8, "
            "00 00 08 and the number of axes. Download it again."
        )
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


# ---- Folders of images ---------------------------------------------------------------


def _walk_images(root: str) -> Iterator[str]:
    """Yield the paths of all images under root, relative to it, in the disk's order."""
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(_EXTENSIONS) and not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root)


def _no_images(root: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{root!r} has no images: expected {'/'.join(_EXTENSIONS)} files in it or in "
        "class folders."
    )


def _split_folder(root: str, split: str) -> tuple[str, bool]:
    """Return the folder to read, and whether it has to be divided by rule."""
    names = ("validation", "val") if split in ("validation", "val") else (split,)
    for name in names:
        if os.path.isdir(os.path.join(root, name)):
            return os.path.join(root, name), False
    present = [n for n in _SPLIT_FOLDERS if os.path.isdir(os.path.join(root, n))]
    if present:
        raise FileNotFoundError(
            f"split={split!r} of {root!r} has no folder: found "
            f"{', '.join(f'{name}/' for name in present)}. Make the folder "
            f"{names[0]}/, or give a folder without split folders to have one image "
            f"in {_VALIDATION_SHARE} set aside for validation."
        )
    if split not in ("train", "validation", "val"):
        raise ValueError(
            f"split={split!r} of {root!r} does not exist: expected train or validation "
            f"for a folder without split folders. Make a folder {split}/ in it for "
            "another one; slices such as train[:10%] are for TFDS sets."
        )
    return root, True


def _open_folder(root: str, split: str) -> FolderSource:
    folder, by_rule = _split_folder(root, split)
    paths = sorted(_walk_images(folder))
    if not paths:
        raise _no_images(folder)
    labelled = all(os.sep in path for path in paths)
    if labelled:
        # The classes of all splits together, lest a class that is missing in
        # one of them shifts its labels.
        siblings = (
            [folder] if by_rule else [os.path.join(root, s) for s in _SPLIT_FOLDERS]
        )
        class_names = sorted({name for path in siblings for name in _subfolders(path)})
    else:
        class_names = []
    if by_rule:
        held_out = _held_out(paths)
        wanted = held_out if split != "train" else ~held_out
        paths = [path for path, chosen in zip(paths, wanted, strict=True) if chosen]
        if not paths:
            raise FileNotFoundError(
                f"{root!r} has a single image, which is in the validation split: "
                "expected at least two."
            )
    labels = None
    if labelled:
        index = {name: i for i, name in enumerate(class_names)}
        labels = np.array([index[p.split(os.sep, 1)[0]] for p in paths], np.int32)
    return FolderSource(folder, tuple(paths), labels, tuple(class_names))


def _subfolders(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]


def _held_out(paths: list[str]) -> np.ndarray:
    """bool[n]: which images of a folder without split folders are for validation."""
    hashes = np.array(
        [
            int.from_bytes(hashlib.blake2b(p.encode(), digest_size=8).digest(), "big")
            for p in (path.replace(os.sep, "/") for path in paths)
        ],
        np.uint64,
    )
    return (hashes < 2**64 // _VALIDATION_SHARE) | (hashes == hashes.min())


# ---- TFDS ----------------------------------------------------------------------------


def _find_prepared(name: str, split: str, data_dir: str) -> str:
    """Return the folder of a prepared set, looked for with os alone.

    TFDS itself would try to download what is missing, for minutes.
    """
    _check_local("data_dir", data_dir)
    name, _, version = name.partition(":")
    data_dir = os.path.expanduser(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    folder = os.path.join(data_dir, name)
    versions = _versions(folder)
    if not versions and "/" not in name:  # A set with a single config needs no name.
        configs = [c for c in _subfolders(folder) if _versions(os.path.join(folder, c))]
        if len(configs) > 1:
            raise ValueError(
                f"dataset='tfds:{name}' has several configs: name one of "
                f"{', '.join(f'tfds:{name}/{config}' for config in sorted(configs))}."
            )
        if configs:
            folder = os.path.join(folder, configs[0])
            versions = _versions(folder)
    if version:
        versions = [v for v in versions if v == version]
    if not versions:
        raise FileNotFoundError(_how_to_prepare(name, version, data_dir))
    folder = os.path.join(folder, versions[-1])
    if not any(".array_record" in file for file in os.listdir(folder)):
        raise FileNotFoundError(
            f"{folder!r} is not in the array_record format. "
            + _how_to_prepare(name, version, data_dir)
        )
    with open(os.path.join(folder, "dataset_info.json")) as file:
        splits = [entry["name"] for entry in json.load(file)["splits"]]
    for part in split.split("+"):
        if part.partition("[")[0] not in splits:
            raise ValueError(
                f"split={split!r} of 'tfds:{name}' does not exist: expected one of "
                f"{', '.join(splits)}, or a slice of one such as '{splits[0]}[:10%]'."
            )
    return folder


def _versions(folder: str) -> list[str]:
    """Versions that are prepared in a folder, oldest first."""
    versions = [
        name
        for name in _subfolders(folder)
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
        '.download_and_prepare()"'
    )


def _open_tfds(folder: str, split: str) -> TfdsSource:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    features = dict(builder.info.features.items())
    image_keys = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    if not image_keys:
        raise ValueError(
            f"{folder!r} has no image feature, only {', '.join(features)}: expected a "
            "data set of images."
        )
    image_key = image_keys[0]
    records = builder.as_data_source(
        split, decoders={image_key: tfds.decode.SkipDecoding()}
    )
    label = features.get("label")
    if not isinstance(label, tfds.features.ClassLabel):
        return TfdsSource(records, image_key, None, ())
    return TfdsSource(records, image_key, "label", tuple(label.names))
