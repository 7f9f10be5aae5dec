"""Finding and reading data: bundled, folders, idx files, TFDS; and what errors say."""

import gzip
import json
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.bundled_sets import _BUNDLED_DIR
from simmim_jax.data.decode import decode
from simmim_jax.data.source import ArraySource, subset
from simmim_jax.data.sources import check_source, open_source
from simmim_jax.data.tfds_sets import find_prepared


def write_image(path, value=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


# ---- Bundled -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("climate", "train", [426, 198, 616, 226, 1205, 1939]),
        ("climate", "validation", [90, 40, 71, 45, 174, 198]),
        (
            "fashion_mnist_10k",
            "train",
            [786, 776, 825, 827, 810, 807, 790, 792, 790, 797],
        ),
        (
            "fashion_mnist_10k",
            "validation",
            [214, 224, 175, 173, 190, 193, 210, 208, 210, 203],
        ),
    ],
)
def test_bundled_sets_are_labelled_and_complete(name, split, counts):
    check_source(f"bundled:{name}", split)
    source = open_source(f"bundled:{name}", split)
    np.testing.assert_array_equal(np.bincount(source.labels), counts)
    assert len(source.class_names) == len(counts)
    example = source[3]
    shape = (64, 64, 3) if name == "climate" else (28, 28, 1)
    assert example["image"].shape == shape
    assert example["image"].dtype == np.uint8
    assert example["label"] == source.labels[3]


def test_climate_has_unlabelled_patches_and_no_ground_in_two_splits():
    source = open_source("bundled:climate", "unlabelled")
    assert len(source) == 5150
    assert source.class_names == ()
    assert source.labels is None
    assert source[0]["label"] == -1
    assert source.images.std(axis=(1, 2, 3)).max() > 20  # Pictures, not blanks.

    with np.load(_BUNDLED_DIR / "climate-patches.npz") as patches:
        train, held_out = patches["unlabelled_corners"], patches["validation_corners"]
        assert set(map(tuple, patches["train_corners"])) <= set(map(tuple, train))
    distance = np.abs(train[:, None].astype(int) - held_out[None].astype(int))
    # 64 pixels of patch and 32 of margin between any two corners.
    assert distance.max(axis=-1).min() >= 64 + 32


def test_bundled_names_and_splits_are_listed_in_errors():
    for function in (check_source, open_source):
        with pytest.raises(ValueError, match=r"bundled:cifar10.*bundled:climate"):
            function("bundled:cifar10", "train")
        with pytest.raises(ValueError, match=r"split='test'.*train, validation"):
            function("bundled:fashion_mnist_10k", "test")


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ("tdfs:mnist", ValueError, r"tdfs:mnist.*Did you mean 'tfds:mnist'"),
        ("bundle:climate", ValueError, "Did you mean 'bundled:climate'"),
        ("gs://bucket/x", ValueError, r"not a local path.*gcsfuse"),
        ("s3:x", ValueError, "expected a directory, 'tfds:NAME'"),
        ("fashion_mnist", FileNotFoundError, r"not a directory.*'tfds:NAME'.*climate"),
        ("/does/not/exist", FileNotFoundError, "not a directory"),
        ("", FileNotFoundError, "not a directory"),
    ],
)
def test_mistyped_data_sets(dataset, error, message):
    for function in (check_source, open_source):
        with pytest.raises(error, match=message):
            function(dataset, "train")


def test_the_check_is_fast_because_it_loads_little(tmp_path):
    write_image(tmp_path / "1.png")
    code = (
        "import sys\n"
        "from simmim_jax.data.sources import check_source\n"
        "check_source('bundled:climate', 'train')\n"
        f"check_source({str(tmp_path)!r}, 'train')\n"
        "try: check_source('tfds:mnist', 'train', data_dir='/nowhere')\n"
        "except FileNotFoundError: pass\n"
        "heavy = {'jax', 'grain', 'tensorflow', 'tensorflow_datasets', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


# ---- Folders -------------------------------------------------------------------------


def test_class_folders_are_labelled_in_sorted_order(tmp_path):
    for name in ("zebra/deep/1.JPG", "ant/2.png", "ant/1.webp", "bee/3.bmp"):
        write_image(tmp_path / "train" / name)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    write_image(tmp_path / "train" / ".hidden" / "4.png")
    write_image(tmp_path / "val" / "zebra" / "5.jpeg")
    check_source(str(tmp_path), "train")
    train = open_source(str(tmp_path), "train")
    assert train.class_names == ("ant", "bee", "zebra")
    assert train.paths == ("ant/1.webp", "ant/2.png", "bee/3.bmp", "zebra/deep/1.JPG")
    assert train.labels.tolist() == [0, 0, 1, 2]
    assert [train[i]["label"] for i in range(4)] == [0, 0, 1, 2]
    assert decode(train[0]["image"], 3).shape == (10, 12, 3)
    # A split without some classes keeps the labels of the others.
    for split in ("val", "validation"):
        validation = open_source(str(tmp_path), split)
        assert validation.class_names == train.class_names
        assert validation.labels.tolist() == [2]


@pytest.mark.parametrize("prefix", ["", "train"])
def test_class_folders_without_images_are_refused(prefix, tmp_path):
    write_image(tmp_path / prefix / "cat" / "1.png")
    write_image(tmp_path / prefix / "cat" / "2.png")
    (tmp_path / prefix / "dog").mkdir()
    (tmp_path / prefix / "dog" / "1.tif").touch()
    with pytest.raises(ValueError, match=r"without images to learn from: dog\. "):
        open_source(str(tmp_path), "train")


def test_images_beside_no_folder_make_it_unlabelled(tmp_path):
    write_image(tmp_path / "train" / "a.png")
    write_image(tmp_path / "train" / "folder" / "b.png")
    source = open_source(str(tmp_path), "train")
    assert len(source) == 2
    assert source.class_names == ()
    assert source.labels is None
    assert source[0]["label"] == -1
    assert source[0]["path"].endswith("a.png")


def test_one_image_in_20_is_for_validation_and_stays_there(tmp_path):
    for i in range(400):
        write_image(tmp_path / ("cat" if i % 2 else "dog") / f"{i}.png", size=(1, 1))
    train = open_source(str(tmp_path), "train")
    validation = open_source(str(tmp_path), "validation")
    assert len(train) + len(validation) == 400
    assert not set(train.paths) & set(validation.paths)
    assert 8 <= len(validation) <= 35
    assert train.class_names == validation.class_names == ("cat", "dog")
    assert (train.labels == [path.startswith("dog") for path in train.paths]).all()

    for i in range(400, 450):
        write_image(tmp_path / "cat" / f"{i}.png", size=(1, 1))
    assert set(train.paths) <= set(open_source(str(tmp_path), "train").paths)


def test_small_folders_have_a_validation_image_too(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png")
    assert len(open_source(str(tmp_path), "validation")) == 1
    assert len(open_source(str(tmp_path), "train")) == 2


def test_a_tilde_is_the_home_folder(tmp_path, tfds_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_image(tmp_path / "photos" / "train" / "1.png")
    (tmp_path / "sets").symlink_to(tfds_dir)
    for function in (check_source, open_source):
        function("~/photos", "train")
        function("tfds:squares", "train", data_dir="~/sets")
        with pytest.raises(FileNotFoundError, match=r"dataset='~/none' is not a dir"):
            function("~/none", "train")


def test_folder_errors(tmp_path):
    for function in (check_source, open_source):
        with pytest.raises(FileNotFoundError, match=r"no images: expected .jpg/.jpeg"):
            function(str(tmp_path), "train")
    write_image(tmp_path / "1.png")
    with pytest.raises(FileNotFoundError, match="single image"):
        open_source(str(tmp_path), "train")
    for function in (check_source, open_source):
        with pytest.raises(ValueError, match=r"train\[:10%\].*slices.*TFDS"):
            function(str(tmp_path), "train[:10%]")
    write_image(tmp_path / "train" / "1.png")
    for function in (check_source, open_source):
        with pytest.raises(FileNotFoundError, match=r"found train/.*Make.*validation/"):
            function(str(tmp_path), "validation")


# ---- idx files -----------------------------------------------------------------------


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 28, 28), np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(6) % 3)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images[:2])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([2, 1]))
    check_source(str(tmp_path), "train")
    train = open_source(str(tmp_path), "train")
    np.testing.assert_array_equal(train.images, images[..., None])
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.class_names == ("0", "1", "2")
    for split in ("test", "validation"):
        assert open_source(str(tmp_path), split).labels.tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"'extra'.*expected train"):
        check_source(str(tmp_path), "extra")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([2]))
    with pytest.raises(ValueError, match=r"2 images but.*1 labels"):
        open_source(str(tmp_path), "test")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="expected an idx file"):
        open_source(str(tmp_path), "test")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    for function in (check_source, open_source):
        with pytest.raises(FileNotFoundError, match=r"t10k-labels.*does not exist"):
            function(str(tmp_path), "test")


# ---- TFDS ----------------------------------------------------------------------------

# Encoded bytes and a builder in a folder of its own: TFDS needs no TensorFlow then.
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


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Prepare the set in a process of its own, as a user would, away from this one."""
    code_dir = tmp_path_factory.mktemp("code") / "squares"
    code_dir.mkdir()
    (code_dir / "__init__.py").touch()
    (code_dir / "squares_dataset_builder.py").write_text(BUILDER)
    data_dir = tmp_path_factory.mktemp("tfds")
    code = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(code_dir.parent)!r})
        from squares.squares_dataset_builder import Builder
        Builder(
            data_dir={str(data_dir)!r}, file_format="array_record"
        ).download_and_prepare()
        assert "tensorflow" not in sys.modules
    """)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return str(data_dir)


@pytest.mark.parametrize("name", ["tfds:squares", "tfds:squares:1.0.0"])
def test_tfds_reads_encoded_images_without_the_code_that_made_them(tfds_dir, name):
    check_source(name, "train", data_dir=tfds_dir)
    source = open_source(name, "train", data_dir=tfds_dir)
    assert len(source) == 20
    assert source.class_names == ("even", "odd")
    examples = [source[i] for i in range(20)]
    assert all(isinstance(example["image"], bytes) for example in examples)
    values = [int(decode(example["image"], 3)[0, 0, 0]) for example in examples]
    assert sorted(values) == list(range(20))
    assert [e["label"] for e in examples] == [value % 2 for value in values]
    assert source.labels.tolist() == [value % 2 for value in values]


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


def test_tfds_sources_can_be_sent_to_workers(tfds_dir):
    source = open_source("tfds:squares", "train", data_dir=tfds_dir)
    assert pickle.loads(pickle.dumps(source))[5] == source[5]


def test_tfds_finds_its_folder_by_environment(tfds_dir, monkeypatch):
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
            r"[\s\S]*builder\('imagenet2012'.*array_record[\s\S]*download_and_prepare",
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


def test_tfds_takes_the_newest_version_and_the_only_config(tmp_path):
    for version in ("2.0.0", "10.0.0", "9.1.0"):
        fake_prepared(tmp_path / "set" / "config" / version)
    found = find_prepared("set", "train", str(tmp_path))
    assert found == str(tmp_path / "set" / "config" / "10.0.0")


# ---- Subsets -------------------------------------------------------------------------


def labelled_source(counts):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ArraySource(images, labels, tuple("abcdefgh"[: len(counts)]))


@pytest.mark.parametrize(
    ("num_labels", "expected"),
    [(9, [3, 3, 3]), (12, [3, 4, 5]), (13, [3, 5, 5]), (43, [3, 10, 30])],
)
def test_subsets_are_as_balanced_as_the_classes_allow(num_labels, expected):
    for seed in range(5):
        few = subset(labelled_source([3, 10, 30]), num_labels, seed)
        counts = np.bincount(few.labels, minlength=3)
        assert len(few) == num_labels
        if num_labels == 12:  # 3 of the rare class, the odd one to either of the two.
            assert counts[0] == 3
            assert sorted(counts[1:]) == [4, 5]
        else:
            assert counts.tolist() == expected


def test_subsets_depend_on_the_seed_and_contain_each_other():
    source = labelled_source([30, 30, 30])

    def chosen(num_labels, seed):
        return set(subset(source, num_labels, seed).images.ravel().tolist())

    assert chosen(12, 0) == chosen(12, 0)
    assert chosen(12, 0) != chosen(12, 1)
    assert chosen(7, 0) < chosen(12, 0) < chosen(60, 0)


def test_subset_keeps_images_with_their_labels():
    source = labelled_source([20, 20])
    few = subset(source, 8, seed=0)
    assert few.class_names == source.class_names
    for example in (few[i] for i in range(8)):
        assert example["label"] == source.labels[int(example["image"].item())]


def test_subset_errors():
    source = labelled_source([3, 3])
    with pytest.raises(ValueError, match=r"num_labels=7 must be between 1 and 6"):
        subset(source, 7, seed=0)
    with pytest.raises(ValueError, match=r"num_labels=0 must be between"):
        subset(source, 0, seed=0)
    with pytest.raises(ValueError, match=r"unlabelled: sort its images into class"):
        subset(ArraySource(source.images, None, ()), 2, seed=0)
