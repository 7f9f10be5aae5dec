"""Prepared TFDS data sets, read without TensorFlow, and errors."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.sources import cache
from simmim_jax.data.sources.base import subset
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.data.sources.tfds_sets import TfdsSource, find_prepared
from simmim_jax.errors import UserError

# With encoded bytes, and a builder in its own folder, TFDS needs no TensorFlow.
BUILDER = '''
import io
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIZES = {"train": 20, "test": 4}


class Builder(tfds.core.GeneratorBasedBuilder):
    """Squares in the gray of their index."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        })
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(n) for split, n in SIZES.items()}

    def _generate_examples(self, count):
        for i in range(count):
            file = io.BytesIO()
            Image.new("RGB", (6, 5), (i, i, i)).save(file, "PNG")
            yield i, {"image": io.BytesIO(file.getvalue()), "label": i % 2}
'''

# Images and labels with other names, nested, several of them, or none.
FEATURES_BUILDER = """
import io
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def file(i):
    content = io.BytesIO()
    Image.new("L", (6, 5), i).save(content, "PNG")
    return io.BytesIO(content.getvalue())


def image():
    return tfds.features.Image(shape=(None, None, 1), encoding_format="png")


def classes():
    return tfds.features.ClassLabel(names=["even", "odd"])


class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name)
        for name in ("nested", "masks", "two_images", "two_labels", "no_labels", "text",
                     "bands", "field")
    ]

    def _info(self):
        features = {
            "nested": {
                "sample": {"photo": image(), "kind": classes()},
                "id": tfds.features.Text(),
            },
            "masks": {
                "mask": tfds.features.LabeledImage(labels=3, shape=(None, None, 1)),
                "photo": image(),
                "label": classes(),
            },
            "two_images": {"left": image(), "right": image()},
            "two_labels": {
                "image": image(),
                "other": image(),
                "coarse": classes(),
                "fine": classes(),
            },
            "no_labels": {"image": image(), "label": classes()},
            "text": {"text": tfds.features.Text(), "label": classes()},
            "bands": {
                "image": tfds.features.Tensor(shape=(32, 32, 13), dtype=np.uint16),
                "label": classes(),
            },
            "field": {
                "field": tfds.features.Tensor(shape=(4, 5, 2), dtype=np.float64),
                "mean": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            },
        }[self.builder_config.name]
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(4):
            yield i, {
                "nested": lambda: {
                    "sample": {"photo": file(i), "kind": i % 2}, "id": "x"
                },
                "masks": lambda: {
                    "mask": file(0), "photo": file(i), "label": i % 2
                },
                "two_images": lambda: {"left": file(i), "right": file(i)},
                "two_labels": lambda: {
                    "image": file(i), "other": file(99), "coarse": 0, "fine": i % 2
                },
                "no_labels": lambda: {"image": file(i), "label": -1},
                "text": lambda: {"text": "x", "label": 0},
                "bands": lambda: {
                    "image": np.full((32, 32, 13), 4095 + i, np.uint16), "label": i % 2
                },
                "field": lambda: {
                    "field": np.full((4, 5, 2), -i / 2), "mean": np.zeros(2, "f4")
                },
            }[self.builder_config.name]()
"""


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Prepare data sets in a separate process, as a user would."""
    code_dir = tmp_path_factory.mktemp("code")
    for name, builder in (("squares", BUILDER), ("features", FEATURES_BUILDER)):
        (code_dir / name).mkdir()
        (code_dir / name / "__init__.py").touch()
        (code_dir / name / f"{name}_dataset_builder.py").write_text(builder)
    data_dir = tmp_path_factory.mktemp("tfds")
    code = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(code_dir)!r})
        from squares.squares_dataset_builder import Builder
        from features.features_dataset_builder import Builder as FeaturesBuilder

        where = dict(data_dir={str(data_dir)!r}, file_format="array_record")
        Builder(**where).download_and_prepare()
        for config in FeaturesBuilder.BUILDER_CONFIGS:
            FeaturesBuilder(config=config.name, **where).download_and_prepare()
        assert "tensorflow" not in sys.modules
    """)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return str(data_dir)


@pytest.mark.parametrize("name", ["tfds:squares", "tfds:squares:1.0.0"])
def test_tfds_sets_are_read_without_their_builder(tfds_dir, name):
    check_source(name, "train", data_dir=tfds_dir)
    source = open_source(name, "train", data_dir=tfds_dir)
    assert len(source) == 20
    assert source.class_names == ("even", "odd")
    examples = [source[i] for i in range(20)]
    assert all(isinstance(example["image"], bytes) for example in examples)
    values = [
        int(decode(example["image"], Decoding(3))[0, 0, 0]) for example in examples
    ]
    assert sorted(values) == list(range(20))
    assert [e["label"] for e in examples] == [value % 2 for value in values]
    assert source.labels.tolist() == [value % 2 for value in values]


@pytest.mark.parametrize(
    ("config", "labelled"),
    [("nested", True), ("masks", True), ("two_labels", False), ("no_labels", False)],
)
def test_features_of_any_name(config, labelled, tfds_dir):
    source = open_source(f"tfds:features/{config}", "train", data_dir=tfds_dir)
    examples = [source[i] for i in range(4)]
    assert all(isinstance(example["image"], bytes) for example in examples)
    values = [
        int(decode(example["image"], Decoding(1))[0, 0, 0]) for example in examples
    ]
    assert sorted(values) == [0, 1, 2, 3]
    labels = [value % 2 if labelled else -1 for value in values]
    assert [example["label"] for example in examples] == labels
    if labelled:
        assert source.labels.tolist() == labels
        assert source.class_names == ("even", "odd")
    else:
        assert source.labels is None


@pytest.mark.parametrize(
    ("config", "shape", "dtype", "expected"),
    [
        ("bands", (32, 32, 13), "uint16", [4095, 4096, 4097, 4098]),
        ("field", (4, 5, 2), "float32", [-1.5, -1, -0.5, 0]),
    ],
)
def test_tensors_are_images(config, shape, dtype, expected, tfds_dir):
    source = open_source(f"tfds:features/{config}", "train", data_dir=tfds_dir)
    images = [source[i]["image"] for i in range(4)]
    assert {(image.shape, image.dtype.name) for image in images} == {(shape, dtype)}
    assert sorted(image.min() for image in images) == expected
    assert sorted(image.max() for image in images) == expected


def test_sets_without_exactly_one_image_are_refused(tfds_dir):
    for config, names in (("two_images", "left, right"), ("text", "label, text")):
        with pytest.raises(ValueError, match=rf"features {names}: expected one image"):
            open_source(f"tfds:features/{config}", "train", data_dir=tfds_dir)


def test_labels_are_read_once_and_cached(tfds_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "_MIN_IMAGES", 1)

    def source(split):
        return open_source("tfds:squares", split, data_dir=tfds_dir)

    labels = {split: source(split).labels.tolist() for split in ("train", "train[:10]")}
    assert [len(some) for some in labels.values()] == [20, 10]
    monkeypatch.setattr(TfdsSource, "__getitem__", None)  # no record is read again
    for split, expected in labels.items():
        assert source(split).labels.tolist() == expected


def test_a_tilde_is_the_home_folder(tfds_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sets").symlink_to(tfds_dir)
    check_source("tfds:squares", "train", data_dir="~/sets")
    assert len(open_source("tfds:squares", "train", data_dir="~/sets")) == 20


def test_tfds_slices_and_subsets(tfds_dir):
    def length(split):
        return len(open_source("tfds:squares", split, data_dir=tfds_dir))

    assert length("test") == 4
    assert length("train[:10%]") == 2
    assert length("train[:50%]+test") == 14
    train = open_source("tfds:squares", "train", data_dir=tfds_dir)
    few = subset(train, 6, seed=0)
    assert np.bincount(few.labels).tolist() == [3, 3]
    assert [few[i]["label"] for i in range(6)] == few.labels.tolist()


def test_tfds_sources_can_be_pickled(tfds_dir):
    source = open_source("tfds:squares", "train", data_dir=tfds_dir)
    assert pickle.loads(pickle.dumps(source))[5] == source[5]


@pytest.mark.parametrize("damage", ["removed", "cut off", "overwritten"])
def test_unreadable_records_are_os_errors(damage, tfds_dir, tmp_path):
    shutil.copytree(f"{tfds_dir}/squares", tmp_path / "squares")
    source = open_source("tfds:squares", "train", data_dir=str(tmp_path))
    (file,) = (tmp_path / "squares" / "1.0.0").glob("*-train.array_record*")
    if damage == "removed":
        file.unlink()
    elif damage == "cut off":
        os.truncate(file, file.stat().st_size // 2)
    else:
        data = file.read_bytes()
        at = data.index(b"\x89PNG")
        file.write_bytes(data[:at] + b"\xff" * 200 + data[at + 200 :])
    with pytest.raises(OSError, match=r"train: example 0: .*squares") as raised:
        source[0]
    assert raised.value.filename == source.folder


def test_the_environment_names_the_folder(tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
    assert len(open_source("tfds:squares", "test")) == 4


def fake_prepared(folder, suffix="array_record"):
    folder.mkdir(parents=True)
    splits = [{"name": "train"}, {"name": "test"}]
    (folder / "dataset_info.json").write_text(json.dumps({"splits": splits}))
    (folder / f"x-train.{suffix}-00000-of-00001").touch()


def test_tfds_errors(tmp_path, tfds_dir):
    data_dir = str(tmp_path)
    fake_prepared(tmp_path / "records" / "1.0.0", "tfrecord")
    fake_prepared(tmp_path / "many" / "one" / "1.0.0")
    fake_prepared(tmp_path / "many" / "two" / "1.0.0")
    for function in (check_source, open_source):
        with pytest.raises(
            FileNotFoundError,
            match=r"'tfds:imagenet2012' is not prepared[\s\S]*pip install tensorflow "
            r"[\s\S]*builder\('imagenet2012'.*array_record[\s\S]*download_and_prepare[\s\S]*"
            rf"ImageNet's, go to {data_dir}/downloads/manual first",
        ):
            function("tfds:imagenet2012", "train", data_dir=data_dir)
        with pytest.raises(ValueError, match=r"data_dir='gs://x'.*Mount the bucket"):
            function("tfds:squares", "train", data_dir="gs://x")
        with pytest.raises(FileNotFoundError, match=r"squares:9.9.9.*not prepared"):
            function("tfds:squares:9.9.9", "train", data_dir=tfds_dir)
        with pytest.raises(FileNotFoundError, match=r"not in the array_record format"):
            function("tfds:records", "train", data_dir=data_dir)
        with pytest.raises(
            ValueError, match=r"several configs.*many/one, tfds:many/tw"
        ):
            function("tfds:many", "train", data_dir=data_dir)
        with pytest.raises(ValueError, match=r"split='valid\[:10%\]'.*train, test"):
            function("tfds:many/one", "valid[:10%]", data_dir=data_dir)


def test_the_newest_version_and_the_only_config_are_opened(tmp_path):
    for version in ("2.0.0", "10.0.0", "9.1.0"):
        fake_prepared(tmp_path / "set" / "config" / version)
    found = find_prepared("set", "train", str(tmp_path))
    assert found == str(tmp_path / "set" / "config" / "10.0.0")


# ---- Descriptions --------------------------------------------------------------------

OWN = "tensorflow_datasets.core.features.image_feature.Image"
HARMLESS = "colorsys.Feature"  # of the standard library; nothing else imports it


@pytest.fixture
def described(tfds_dir, tmp_path):
    """Return a function that changes features.json, and check that it has an effect."""
    shutil.copytree(f"{tfds_dir}/squares", tmp_path / "squares")
    path = tmp_path / "squares" / "1.0.0" / "features.json"

    def change(old, new):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return str(tmp_path), path

    return change


QUOTED = json.dumps({"feature": {"type": HARMLESS, "content": {}}, "length": None})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OWN, HARMLESS),
        (f'"pythonClassName": "{OWN}"', f'"python_class_name": "{HARMLESS}"'),
        (f'"pythonClassName": "{OWN}"', f'"type": "{HARMLESS}", "content": {{}}'),
        (OWN, "colorsys\\u002eFeature"),
        (OWN, "tensorflow_datasets.core.features..colorsys.Feature"),
        (OWN, "tensorflow_datasets.scripts.cli.main.Feature"),
        (OWN, "tensorflow_datasets_more.core.features.Feature"),
        (
            '"image": {\n                    "dtype"',
            f'"jsonFeature": {{"json": {json.dumps(QUOTED)}}}, '
            '"image": {\n                    "dtype"',
        ),
    ],
)
def test_classes_of_others_are_refused_before_tfds_imports_them(old, new, described):
    data_dir, path = described(old, new)
    json.loads(path.read_text())  # still well-formed
    sys.modules.pop("colorsys", None)
    for function in (check_source, open_source):
        with pytest.raises(UserError, match=rf"{path}' names the class '.*TFDS's own"):
            function("tfds:squares", "train", data_dir=data_dir)
    assert "colorsys" not in sys.modules


def test_a_class_in_dataset_info_is_checked_too(tfds_dir, tmp_path):
    shutil.copytree(f"{tfds_dir}/squares", tmp_path / "squares")
    path = tmp_path / "squares" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text()) | {"features": {"pythonClassName": HARMLESS}}
    path.write_text(json.dumps(info))
    with pytest.raises(
        UserError, match=r"dataset_info.json' names the class 'colorsys"
    ):
        check_source("tfds:squares", "train", data_dir=str(tmp_path))


def test_types_that_are_no_classes_are_kept(tfds_dir, tmp_path):
    """Old descriptions have statistics, with types such as BYTES."""
    shutil.copytree(f"{tfds_dir}/squares", tmp_path / "squares")
    path = tmp_path / "squares" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["schema"] = {"feature": [{"name": "image", "type": "BYTES"}]}
    path.write_text(json.dumps(info))
    check_source("tfds:squares", "train", data_dir=str(tmp_path))
    assert len(open_source("tfds:squares", "train", data_dir=str(tmp_path))) == 20


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_every_damaged_description_is_refused_with_its_folder(name, tfds_dir, tmp_path):
    shutil.copytree(f"{tfds_dir}/squares", tmp_path / "squares")
    path = tmp_path / "squares" / "1.0.0" / name
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 40):
        for damaged in (whole[:at], whole[:at] + b"[}" + whole[at + 2 :]):
            path.write_bytes(damaged)
            message = refusal(str(tmp_path))
            assert message is None or str(path.parent) in message
            refused += message is not None
    assert refused > 20


def test_a_description_without_splits_is_refused(tfds_dir, tmp_path):
    shutil.copytree(f"{tfds_dir}/squares", tmp_path / "squares")
    path = tmp_path / "squares" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"splits": []}))
    with pytest.raises(UserError, match=r"dataset_info.json' is damaged .*no splits"):
        open_source("tfds:squares", "train", data_dir=str(tmp_path))


def refusal(data_dir):
    """Return the error that opens no set, if it is the user's."""
    try:
        open_source("tfds:squares", "train", data_dir=data_dir)
    except UserError as error:
        return str(error)
