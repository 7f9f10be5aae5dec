"""Stores of encoded images: Parquet, Arrow streams, TFRecord.

Not LMDB: its library maps the file, and a damaged page may end the process.
"""

import importlib.util
import io
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from simmim_jax.data.sources.tfrecord import masked_crc32c
from tests.fuzz.data_sets import read_splits
from tests.fuzz.target import Target, write
from tests.images import encoded, gradient

_SPLITS = ("train", "validation")
# What `datasets` 5.2.0 says of an image and its class in a schema.
_FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["ant", "bee"], "_type": "ClassLabel"},
}


def _images(count: int = 6) -> list[bytes]:
    return [
        encoded(Image.fromarray(gradient(6 + i, 9, 3)), quality=50, format="JPEG")
        for i in range(count)
    ]


def _read(seed: Path) -> None:
    read_splits(str(seed / "set"), _SPLITS)


# ---- Hugging Face --------------------------------------------------------------------


def _table(labels: list) -> pa.Table:
    rows = [{"bytes": image, "path": None} for image in _images(len(labels))]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table({"image": pa.array(rows, kind), "label": pa.array(labels)})


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=4)
    return file.getvalue()


def _arrow(table: pa.Table) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    return file.getvalue()


def _make_tables(folder: Path) -> None:
    info = json.dumps({"info": {"features": _FEATURES}})
    numbers = _table([0, 1] * 3).replace_schema_metadata({"huggingface": info})
    names = _table(["ant", "bee", None] * 2)
    for name, table in (("numbers", numbers), ("names", names)):
        files = {f"set/{s}-00000-of-00001.parquet": _parquet(table) for s in _SPLITS}
        write(folder / name, files)
    state = json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()
    saved = {"set/dataset_dict.json": json.dumps({"splits": _SPLITS}).encode()}
    for split in _SPLITS:
        saved[f"set/{split}/data.arrow"] = _arrow(numbers)
        saved[f"set/{split}/state.json"] = state
        saved[f"set/{split}/dataset_info.json"] = info.encode()
    write(folder / "saved", saved)


TABLE = Target("table", _make_tables, _read, damaged="*.*")


# ---- TFRecord ------------------------------------------------------------------------


def _record(image: bytes, label: int) -> bytes:
    """Return an Example as TensorFlow frames it."""
    from tensorflow_datasets.proto import tf_example_generated_pb2 as example
    from tensorflow_datasets.proto import tf_feature_generated_pb2 as feature

    features = feature.Features(
        feature={
            "image/encoded": feature.Feature(
                bytes_list=feature.BytesList(value=[image])
            ),
            "image/class/label": feature.Feature(
                int64_list=feature.Int64List(value=[label])
            ),
        }
    )
    content = example.Example(features=features).SerializeToString()
    size = struct.pack("<Q", len(content))
    return b"".join(
        part + struct.pack("<I", masked_crc32c(part)) for part in (size, content)
    )


def _make_records(folder: Path) -> None:
    records = [_record(image, i % 2) for i, image in enumerate(_images())]
    for name, count in (("one", 1), ("some", 6)):
        shards = np.array_split(np.arange(6), count)
        files = {
            f"set/{split}-{i:05}-of-{count:05}": b"".join(records[j] for j in shard)
            for split in _SPLITS
            for i, shard in enumerate(shards)
        }
        write(folder / name, files)


RECORDS = Target("tfrecord", _make_records, _read, damaged="set/*")
TARGETS = (TABLE, *([RECORDS] if importlib.util.find_spec("google_crc32c") else []))
