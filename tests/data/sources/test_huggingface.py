"""Parquet files and Arrow streams with the schema that datasets 5.2.0 writes."""

import json
import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.sources.base import labelled
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError
from tests.images import encoded
from tests.stores import SIZE, contents, trains_and_packs

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
# The metadata of Features({"image": Image(), "label": ClassLabel(["cat", "dog"])}) in a
# file of Dataset.to_parquet and one of save_to_disk (datasets 5.2.0, pyarrow 26.0.1).
METADATA = {
    "huggingface": '{"info": {"features": {"image": {"_type": "Image"}, "label": '
    '{"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
}
NUM_IMAGES = 30
EXPECTED = {value: value % 2 for value in range(NUM_IMAGES)}


def png(value, dtype=np.uint8):
    return encoded(Image.fromarray(np.full(SIZE, value, dtype)))


def table(values, metadata=METADATA, **columns):
    """Return images of these values and their labels; columns replace them."""
    rows = [{"bytes": png(value), "path": f"{value}.png"} for value in values]
    columns = {"image": rows, "label": [v % 2 for v in values]} | columns
    arrays = {
        name: pa.array(each, IMAGE) if isinstance(each[0], dict) else pa.array(each)
        for name, each in columns.items()
    }
    return pa.table(arrays).replace_schema_metadata(metadata)


def write_parquet(path, *args, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table(*args, **columns), path, row_group_size=4)
    return str(path)


def save_to_disk(folder, values, num_shards=2):
    """Write what Dataset.save_to_disk writes: Arrow streams and their list."""
    folder.mkdir(parents=True)
    names = []
    for shard, part in enumerate(np.array_split(values, num_shards)):
        names.append(f"data-{shard:05d}-of-{num_shards:05d}.arrow")
        content = table(part.tolist())
        with pa.ipc.new_stream(folder / names[-1], content.schema) as stream:
            stream.write_table(content, max_chunksize=4)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text(METADATA["huggingface"])


def test_a_parquet_file(tmp_path):
    place = write_parquet(tmp_path / "set.parquet", range(NUM_IMAGES))
    trains_and_packs(place, tmp_path / "packed", EXPECTED)
    assert open_source(place, "train").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("set_training.parquet", "set_eval.parquet"),
        ("extra-00000-of-00001.parquet", "test.parquet"),
    ],
)
def test_splits_are_in_the_names_of_files(names, tmp_path):
    write_parquet(tmp_path / "set" / names[0], range(9))
    write_parquet(tmp_path / "set" / names[1], range(9, 14))
    split = "extra" if names[0].startswith("extra") else "train"
    for name, values in ((split, range(9)), ("test", range(9, 14))):
        check_source(str(tmp_path / "set"), name)
        source = open_source(str(tmp_path / "set"), name)
        found = [int(decode(e["image"], Decoding())[0, 0, 0]) for e in source]
        assert found == list(values)
        assert source.labels.tolist() == [value % 2 for value in values]
    with pytest.raises(FileNotFoundError, match="split='validation' of"):
        open_source(str(tmp_path / "set"), "validation")


def test_folders_without_splits(tmp_path):
    for start in range(0, NUM_IMAGES, 10):
        write_parquet(tmp_path / f"{start}.parquet", range(start, start + 10))
    assert contents(str(tmp_path)) == EXPECTED


def test_a_saved_set(tmp_path):
    save_to_disk(tmp_path / "set", range(NUM_IMAGES))
    trains_and_packs(str(tmp_path / "set"), tmp_path / "packed", EXPECTED)


def test_a_saved_dict_of_splits(tmp_path):
    save_to_disk(tmp_path / "train", range(20))
    save_to_disk(tmp_path / "validation", range(20, NUM_IMAGES), num_shards=1)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert contents(str(tmp_path)) == EXPECTED
    train = open_source(str(tmp_path), "train")
    assert len(train) == 20
    path = f"{tmp_path}/train/data-00001-of-00002.arrow:1"
    assert train[11]["path"] == path
    assert len(pickle.dumps(train)) < 3000


def test_sixteen_bits_stay(tmp_path):
    """`datasets` itself stores 16-bit colours modulo 256."""
    rows = [{"bytes": png(i, np.uint16), "path": None} for i in (300, 4095)]
    place = write_parquet(tmp_path / "train.parquet", range(2), image=rows)
    found = [decode(e["image"], Decoding()) for e in open_source(place, "validation")]
    found += [decode(e["image"], Decoding()) for e in open_source(place, "train")]
    assert sorted((int(i.max()), i.dtype.name) for i in found) == [
        (300, "uint16"),
        (4095, "uint16"),
    ]


def test_null_images_and_labels(tmp_path):
    rows = [{"bytes": png(1), "path": None}, None, {"bytes": None, "path": None}]
    path = tmp_path / "set" / "train-00000-of-00001.parquet"
    write_parquet(path, range(3), image=rows, label=[0, None, -1])
    source = open_source(str(tmp_path / "set"), "train")
    assert source.labels.tolist() == [0, -1, -1]
    assert len(labelled(source)) == 1
    assert source[0]["path"] == f"{path}:0"
    for bad in (1, 2):
        with pytest.raises(BadImage, match="A row has no image") as raised:
            source[bad]
        assert raised.value.reason == "empty"
        assert raised.value.filename == f"{path}:{bad}"


def test_images_beside_the_table_and_their_largest_size(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "1.bin").write_bytes(png(7))
    rows = [{"bytes": None, "path": "1.bin"}, {"bytes": bytes(1001), "path": ""}]
    write_parquet(tmp_path / "set" / "a" / "train.parquet", range(2), image=rows)
    source = open_source(str(tmp_path / "set"), "train", max_bytes=1000)
    assert source[0]["image"] == png(7)
    with pytest.raises(BadImage, match=r"more than 0\.001 MB") as raised:
        source[1]
    assert raised.value.reason == "too large"


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["owl", "cat", None], ("cat", "owl"), [1, 0, -1]),
        ([3, 0, 0], ("0", "1", "2", "3"), [3, 0, 0]),
        ([None, None, None], (), None),
    ],
)
def test_labels_without_names_in_the_schema(labels, classes, expected, tmp_path):
    rows = [png(i) for i in range(3)]  # bytes alone
    path = tmp_path / "set" / "train.parquet"
    write_parquet(path, range(3), None, picture=rows, image=["x"] * 3, label=labels)
    source = open_source(str(tmp_path / "set"), "train")
    assert source.class_names == classes
    assert (None if expected is None else source.labels.tolist()) == expected
    assert source[2]["image"] == png(2)


@pytest.mark.parametrize(
    ("metadata", "train", "validation", "lacks"),
    [
        (METADATA, [0, 0, -1], [0, 1], "dog"),
        (None, ["cat", "cat", None], ["cat", "owl"], "owl"),
        (None, [0, 2, None], [1, 2], "1"),
    ],
)
def test_a_class_without_rows_to_train_on_is_refused_as_for_folders(
    metadata, train, validation, lacks, tmp_path
):
    for split, labels in (("train", train), ("validation", validation)):
        path = tmp_path / "set" / f"{split}.parquet"
        write_parquet(path, range(len(labels)), metadata, label=labels)
    place = str(tmp_path / "set")
    source = open_source(place, "train")
    assert (source.labels, source.class_names) == (None, ())
    begins = f"{place!r} has classes without images to train on: {lacks}. Expected rows"
    assert source.unlabelled.startswith(begins)
    assert lacks in open_source(place, "validation").class_names
    write_parquet(path, range(len(train)), metadata, label=train)
    assert open_source(place, "train").labels[0] == 0


@pytest.mark.parametrize("missing", ["train", "train/state.json", "train/DATA"])
def test_saved_sets_that_were_copied_in_part_are_refused(missing, tmp_path):
    save_to_disk(tmp_path / "train", range(4), num_shards=1)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    path = tmp_path / missing.replace("DATA", "data-00000-of-00001.arrow")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"is damaged: expected what|cannot be read by"):
        open_source(str(tmp_path), "train")


def test_damaged_labels_are_refused_with_the_file(tmp_path):
    path = tmp_path / "set" / "train.parquet"
    write_parquet(path, range(8), None, label=["ant", "bee"] * 4)
    whole = path.read_bytes()
    at = whole.index(b"ant")
    path.write_bytes(whole[: at - 20] + bytes(20) + whole[at:])
    with pytest.raises(UserError, match=r"train\.parquet' cannot be read by pyarrow"):
        open_source(str(tmp_path / "set"), "train")


def test_lists_of_labels_are_refused(tmp_path):
    rows = [png(i) for i in range(2)]
    place = write_parquet(
        tmp_path / "set.parquet", range(2), None, image=rows, label=[[0, 1], [1]]
    )
    with pytest.raises(
        UserError, match=r"'label' of .* has list<.*>: expected the num"
    ):
        open_source(place, "train")


def test_damaged_groups_of_rows_are_bad_images(tmp_path):
    path = tmp_path / "set" / "train.parquet"
    write_parquet(path, range(8))
    first = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[first.data_page_offset : first.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    source = open_source(str(tmp_path / "set"), "train")
    with pytest.raises(BadImage, match="cannot be read by pyarrow") as raised:
        source[1]
    assert raised.value.reason == "corrupt"
    assert decode(source[5]["image"], Decoding())[0, 0, 0] == 5
    os.truncate(path, 100)
    with pytest.raises(UserError, match=r"train.parquet' cannot be read by pyarrow"):
        open_source(str(tmp_path / "set"), "train")


def test_arrays_in_columns_are_refused_with_the_way_in(tmp_path):
    """datasets 5.2.0 stores Array3D as lists of lists of lists."""
    rows = np.zeros((3, 4, 5, 2), np.float32).tolist()
    place = write_parquet(tmp_path / "set.parquet", range(3), None, image=rows)
    (tmp_path / "saved").mkdir()
    for name in (place, str(tmp_path)):
        with pytest.raises(UserError, match=r"the columns image list.*np.save\("):
            open_source(name, "train")


def test_several_images_are_refused(tmp_path):
    rows = [{"bytes": png(1), "path": None}] * 3
    place = write_parquet(
        tmp_path / "set.parquet", range(3), left=rows, image=[1, 2, 3]
    )
    assert len(open_source(place, "train")) == 2
    place = write_parquet(
        tmp_path / "two.parquet", range(3), left=rows, right=rows, image=[1, 2, 3]
    )
    with pytest.raises(UserError, match=r"or in one named image. Rename the one"):
        open_source(place, "train")


@pytest.mark.parametrize("text", ["{", "[]", '{"_data_files": [{"filename": "../x"}]}'])
def test_damaged_states_are_refused(text, tmp_path):
    (tmp_path / "state.json").write_text(text)
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"state.json' is damaged: expected what"):
        open_source(str(tmp_path), "train")
