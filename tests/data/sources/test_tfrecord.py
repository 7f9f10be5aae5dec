"""TFRecord files of tf.train.Example: framing, features, labels, damage."""

import os
import pickle
import struct

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example_pb2
from tensorflow_datasets.proto import tf_feature_generated_pb2 as tf_feature_pb2

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources import cache, tf_example, tfrecord
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.data.sources.tfrecord import masked_crc32c
from simmim_jax.errors import UserError
from tests.images import encoded
from tests.stores import SIZE, contents, trains_and_packs

pytest.importorskip("google_crc32c")
# What tf.io.TFRecordWriter of TensorFlow 2.21.0 writes for two Examples with
# image/encoded b"png0", image/class/label 0, image/class/text b"cat", f [0.5, 1], and
# the same with b"png1" and 1, serialised with deterministic=True.
TENSORFLOW = bytes.fromhex(
    "6900000000000000360b3c6e0a670a110a0166120c120a0a080000003f0000803f0a1a0a11696d6167"
    "652f636c6173732f6c6162656c12051a030a01000a1b0a10696d6167652f636c6173732f7465787412"
    "070a050a036361740a190a0d696d6167652f656e636f64656412080a060a04706e6730e790c57a"
    "6900000000000000360b3c6e0a670a110a0166120c120a0a080000003f0000803f0a1a0a11696d6167"
    "652f636c6173732f6c6162656c12051a030a01010a1b0a10696d6167652f636c6173732f7465787412"
    "070a050a036361740a190a0d696d6167652f656e636f64656412080a060a04706e6731629b0ec7"
)
NUM_IMAGES = 30
EXPECTED = {value: value % 2 for value in range(NUM_IMAGES)}


def png(value, dtype=np.uint8):
    return encoded(Image.fromarray(np.full(SIZE, value, dtype)))


def example(**features):
    """Return an Example as Google's protobuf serialises it; "__" in a name is "/"."""
    lists = {}
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], bytes):
            feature = tf_feature_pb2.Feature(
                bytes_list=tf_feature_pb2.BytesList(value=values)
            )
        else:
            feature = tf_feature_pb2.Feature(
                int64_list=tf_feature_pb2.Int64List(value=values)
            )
        lists[name.replace("__", "/")] = feature
    features = tf_feature_pb2.Features(feature=lists)
    return tf_example_pb2.Example(features=features).SerializeToString()


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for record in records:
            size = struct.pack("<Q", len(record))
            file.write(size + struct.pack("<I", masked_crc32c(size)))
            file.write(record + struct.pack("<I", masked_crc32c(record)))
    return str(path)


def labelled(values):
    return [example(image=png(value), label=value % 2) for value in values]


def test_what_tensorflow_writes(tmp_path):
    (tmp_path / "train.tfrecord").write_bytes(TENSORFLOW)
    source = open_source(str(tmp_path), "train")
    path = f"{tmp_path}/train.tfrecord"
    assert [source[i] for i in range(2)] == [
        {"image": b"png0", "label": 0, "path": f"{path}:12"},
        {"image": b"png1", "label": 1, "path": f"{path}:133"},
    ]
    assert source.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_checksums_are_those_of_rfc_3720(data, crc):
    """RFC 3720, B.4; the last one is the usual check value of CRC-32C.

    The mask is a rotation by 15 bits and a sum, as TensorFlow's crc32c.h says.
    """
    rotated = (crc >> 15 | crc << 17) % 2**32
    assert masked_crc32c(data) == (rotated + 0xA282EAD8) % 2**32


def test_features_of_every_kind():
    """As TensorFlow 2.21.0 serialises [-1], [1, 300, 2^40], [b"", b"\\0x"] and none."""
    message = bytes.fromhex(
        "0a480a050a016512000a170a056c6162656c120e1a0c0a0affffffffffffffffff010a150a046d"
        "616e79120d1a0b0a0901ac028080808080200a0f0a0374776f12080a060a000a020078"
    )
    found = {
        name: tf_example.values(feature)
        for name, feature in tf_example.features(memoryview(message))
    }
    assert found == {
        "label": [-1],
        "many": [1, 300, 2**40],
        "two": [b"", b"\0x"],
        "e": [],
    }
    floats = dict(tf_example.features(memoryview(TENSORFLOW)[12:117]))["f"]
    assert tf_example.values(floats) == [0.5, 1]


def test_a_file(tmp_path):
    place = write(tmp_path / "set.tfrecords", labelled(range(NUM_IMAGES)))
    trains_and_packs(place, tmp_path / "packed", EXPECTED)


@pytest.mark.parametrize(
    "name",
    [
        "set-{}.tfrecord-{:05d}-of-00003",
        "{}-{:05d}-of-00003",
        "{}/{}.tfrecord",
        "testing/{}-{:05d}-of-00003.tfrecord",
    ],
)
def test_shards_of_splits(name, tmp_path):
    parts = np.split(np.arange(NUM_IMAGES), 3)
    for i, part in enumerate(parts[:2]):
        write(tmp_path / "set" / name.format("train", i), labelled(part))
    write(tmp_path / "set" / name.format("validation", 2), labelled(parts[2]))
    trains_and_packs(str(tmp_path / "set"), tmp_path / "packed", EXPECTED)
    train = open_source(str(tmp_path / "set"), "train")
    assert len(train) == 20
    assert train.class_names == ("0", "1")
    with pytest.raises(FileNotFoundError, match="split='test' of"):
        open_source(str(tmp_path / "set"), "test")


def test_shards_without_splits(tmp_path):
    for i, part in enumerate(np.split(np.arange(NUM_IMAGES), 3)):
        write(tmp_path / f"images-{i:05d}-of-00003.tfrecord", labelled(part))
    assert contents(str(tmp_path)) == EXPECTED
    assert len(pickle.dumps(open_source(str(tmp_path), "train"))) < 3000


def test_names_of_classes(tmp_path):
    def imagenet(value, label, text):
        return example(
            image__encoded=png(value),
            image__class__label=label,
            image__class__text=text,
        )

    both = [imagenet(0, 3, b"dog"), imagenet(1, 1, b"cat")]
    write(tmp_path / "train-00000-of-00001", both)
    write(tmp_path / "validation-00000-of-00001", both[1:])
    train = open_source(str(tmp_path), "train")
    assert train.labels.tolist() == [3, 1]
    assert train.class_names == ("0", "cat", "2", "dog")
    assert open_source(str(tmp_path), "validation").class_names == train.class_names


def test_labels_that_are_text_or_missing(tmp_path):
    records = [example(image=png(0), label=b"owl"), example(image=png(1))]
    write(tmp_path / "train.tfrecord", [*records, example(image=png(2), label=b"cat")])
    source = open_source(str(tmp_path), "train")
    assert source.labels.tolist() == [1, -1, 0]
    assert source.class_names == ("cat", "owl")


@pytest.mark.parametrize("labels", [(b"cat", b"owl"), (0, 1)])
def test_a_class_without_records_to_train_on_is_refused_as_for_folders(
    labels, tmp_path
):
    records = [example(image=png(i), label=label) for i, label in enumerate(labels)]
    write(tmp_path / "train.tfrecord", records[:1])
    write(tmp_path / "validation.tfrecord", records)
    train = open_source(str(tmp_path), "train")
    assert (train.labels, train.class_names) == (None, ())
    lacks = os.fsdecode(labels[1]) if labels[1] != 1 else "1"
    assert f"without images to train on: {lacks}. Expected records" in train.unlabelled
    assert open_source(str(tmp_path), "validation").labels.tolist() == [0, 1]
    write(tmp_path / "train.tfrecord", records)
    assert open_source(str(tmp_path), "train").labels.tolist() == [0, 1]


def test_a_wrong_checksum_is_a_bad_image(tmp_path):
    path = tmp_path / "set" / "train.tfrecord"
    write(path, labelled(range(3)))
    source = open_source(str(tmp_path / "set"), "train")
    data = bytearray(path.read_bytes())
    data[int(source.offsets[1]) + 40] ^= 1
    path.write_bytes(data)
    source = open_source(str(tmp_path / "set"), "train")
    assert len(source) == 3
    assert (source[0]["image"], source[2]["image"]) == (png(0), png(2))
    with pytest.raises(BadImage, match="does not match its CRC-32C") as raised:
        source[1]
    assert raised.value.reason == "corrupt"
    assert raised.value.filename == f"{path}:{source.offsets[1]}"
    with pytest.raises(BadImage, match="has more than") as raised:
        open_source(str(tmp_path / "set"), "train", max_bytes=10)[0]
    assert raised.value.reason == "too large"


def test_a_record_without_its_image_is_a_bad_image(tmp_path):
    records = [*labelled([0]), example(label=1), b"\x0a\xff"]
    write(tmp_path / "train.tfrecord", records)
    source = open_source(str(tmp_path), "train")
    assert source.labels.tolist() == [0, 1, -1]
    for index, reason in ((1, "empty"), (2, "corrupt")):
        with pytest.raises(BadImage) as raised:
            source[index]
        assert raised.value.reason == reason


@pytest.mark.parametrize("kept", [0, 5, 12, 60, 300])
def test_truncated_files(kept, tmp_path):
    path = tmp_path / "train.tfrecord"
    write(path, labelled(range(3)))
    os.truncate(path, kept)
    with pytest.raises(UserError, match=r"is truncated or damaged|has no records"):
        open_source(str(tmp_path), "train")


def test_every_damaged_byte_is_noticed(tmp_path):
    """Lengths and their checksums at opening, the rest when a record is read."""
    path = tmp_path / "train.tfrecord"
    for at in range(len(TENSORFLOW)):
        damaged = bytearray(TENSORFLOW)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises((UserError, BadImage)):  # noqa: PT012
            source = open_source(str(tmp_path), "train")
            [source[i] for i in range(2)]


def test_compressed_files_are_refused(tmp_path):
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "a.tfrecord.gz").write_bytes(b"\x1f\x8b" + bytes(30))
    (tmp_path / "b.tfrecord").write_bytes(b"\x1f\x8b" + bytes(30))
    for place in (
        tmp_path / "gz",
        tmp_path / "gz/a.tfrecord.gz",
        tmp_path / "b.tfrecord",
    ):
        with pytest.raises(UserError, match="is compressed, which prevents random"):
            open_source(str(place), "train")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"image_raw": bytes(4 * 5 * 3), "height": 4, "width": 5},
            "has raw pixels in its feature 'image_raw'.*tf.io.encode_png",
        ),
        ({"text": b"x", "label": 0}, "has the features label, text: expected bytes of"),
        ({"image": 3}, "has the features image: expected bytes of an encoded"),
    ],
)
def test_other_features_are_refused(features, message, tmp_path):
    place = write(tmp_path / "set.tfrecord", [example(**features)] * 2)
    check_source(place, "train")
    with pytest.raises(UserError, match=message):
        open_source(place, "train")


def test_the_index_is_used_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_MIN_IMAGES", 1)
    scanned = []

    def scan(path, original=tfrecord._scan):
        scanned.append(path)
        return original(path)

    monkeypatch.setattr(tfrecord, "_scan", scan)
    place = write(tmp_path / "set.tfrecord", labelled(range(NUM_IMAGES)))
    assert contents(place) == contents(place) == EXPECTED
    assert len(scanned) == 1
    write(tmp_path / "set.tfrecord", labelled(range(20)))
    assert contents(place) == {value: value % 2 for value in range(20)}
    assert len(scanned) == 2
