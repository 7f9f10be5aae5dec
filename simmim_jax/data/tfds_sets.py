"""Prepared TFDS sets, found with os alone; TFDS is imported when one is opened."""

import dataclasses
import functools
import json
import os
from typing import Any

import numpy as np

from simmim_jax.data.folders import subfolders
from simmim_jax.data.source import NO_LABEL


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
        label = NO_LABEL if self.label_key is None else int(record[self.label_key])
        return {"image": record[self.image_key], "label": label}

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int[n]; reads every record once (about 0.1 ms each), decodes no image."""
        if self.label_key is None:
            return None
        return np.array([self[i]["label"] for i in range(len(self))], np.int32)


def open_tfds(name: str, split: str, data_dir: str) -> TfdsSource:
    """Open one split of a set "NAME[/CONFIG][:VERSION]" that is prepared."""
    folder = find_prepared(name, split, data_dir)
    import tensorflow_datasets as tfds  # Takes seconds, too long for an error above.

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


def find_prepared(name: str, split: str, data_dir: str) -> str:
    """Return the folder of a prepared set, looked for with os alone.

    TFDS itself would try to download what is missing, for minutes.
    """
    name, _, version = name.partition(":")
    data_dir = data_dir or os.path.expanduser(
        os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    folder = os.path.join(data_dir, name)
    versions = _versions(folder)
    if not versions and "/" not in name:  # A set with a single config needs no name.
        configs = [c for c in subfolders(folder) if _versions(os.path.join(folder, c))]
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
        '.download_and_prepare()"'
    )
