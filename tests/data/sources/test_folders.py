"""Folders of images: files, splits, classes, and the index."""

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.sources import cache, folders
from simmim_jax.data.sources.paths import Paths
from simmim_jax.data.sources.registry import check_source, open_source
from tests.images import PHOTOS, write_image, write_photographs


def test_class_folders_are_labelled_in_sorted_order(tmp_path):
    for name in ("zebra/deep/1.JPG", "ant/2.png", "ant/1.webp", "bee/3.bmp"):
        write_image(tmp_path / "train" / name)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    write_image(tmp_path / "train" / ".hidden" / "4.png")
    write_image(tmp_path / "val" / "zebra" / "5.jpeg")
    check_source(str(tmp_path), "train")
    train = open_source(str(tmp_path), "train")
    assert train.class_names == ("ant", "bee", "zebra")
    assert [*train.paths] == [
        "ant/1.webp",
        "ant/2.png",
        "bee/3.bmp",
        "zebra/deep/1.JPG",
    ]
    assert train.labels.tolist() == [0, 0, 1, 2]
    assert [train[i]["label"] for i in range(4)] == [0, 0, 1, 2]
    assert decode(train[0]["image"], Decoding(3)).shape == (10, 12, 3)
    # A class that is missing in a split does not shift the labels of others.
    for split in ("val", "validation"):
        validation = open_source(str(tmp_path), split)
        assert validation.class_names == train.class_names
        assert validation.labels.tolist() == [2]


def test_gif_files_are_images(tmp_path):
    (tmp_path / "train").mkdir()
    pictures = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    pictures[0].save(
        tmp_path / "train" / "1.GIF", save_all=True, append_images=pictures[1:]
    )
    source = open_source(str(tmp_path), "train")
    assert (decode(source[0]["image"], Decoding(3)) == (255, 0, 0)).all()


def test_splits_of_other_names_may_have_other_classes(tmp_path):
    write_photographs(tmp_path, ["train/bee/1.jpg", "more/ant/2.jpg", "more/bee/3.jpg"])
    assert open_source(str(tmp_path), "train").class_names == ("bee",)
    more = open_source(str(tmp_path), "more")
    assert more.class_names == ("ant", "bee")
    assert more.labels.tolist() == [0, 1]


@pytest.mark.parametrize("prefix", ["", "train"])
def test_an_empty_class_folder_makes_the_set_unlabelled(prefix, tmp_path):
    """Fine-tuning refuses it; pre-training does not mind a folder of videos."""
    write_image(tmp_path / prefix / "cat" / "1.png")
    write_image(tmp_path / prefix / "cat" / "2.png")
    (tmp_path / prefix / "dog").mkdir()
    (tmp_path / prefix / "dog" / "1.exr").touch()
    source = open_source(str(tmp_path), "train")
    assert re.search(r"without images to train on: /.*dog\. ", source.unlabelled)
    assert source.class_names == ()
    assert source.labels is None
    assert len(source) == (2 if prefix else 1)


def test_class_folders_of_other_splits_are_named_with_their_path(tmp_path):
    """As in Tiny ImageNet, whose validation images are unlabelled."""
    write_photographs(tmp_path, ["train/cat/images/1.jpg", "val/images/2.jpg"])
    source = open_source(str(tmp_path), "train")
    assert f"train on: {tmp_path}/val/images. " in source.unlabelled
    assert source.labels is None
    (tmp_path / "val" / "images" / "2.jpg").rename(tmp_path / "val" / "2.jpg")
    (tmp_path / "val" / "images").rmdir()
    assert open_source(str(tmp_path), "train").class_names == ("cat",)
    assert open_source(str(tmp_path), "val").labels is None


def test_images_outside_of_class_folders_make_the_set_unlabelled(tmp_path):
    write_image(tmp_path / "train" / "a.png")
    write_image(tmp_path / "train" / "folder" / "b.png")
    source = open_source(str(tmp_path), "train")
    assert len(source) == 2
    assert source.class_names == ()
    assert source.labels is None
    assert source[0]["label"] == -1
    assert f"'{tmp_path}/train/a.png' is in no class folder" in source.unlabelled
    (tmp_path / "train" / "folder" / "b.png").unlink()
    (tmp_path / "train" / "folder").rmdir()
    assert open_source(str(tmp_path), "train").unlabelled == ""
    assert source[0]["path"].endswith("a.png")


def test_one_image_in_20_is_held_out_and_stays_held_out(tmp_path):
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


def test_small_folders_also_have_a_validation_image(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png")
    assert len(open_source(str(tmp_path), "validation")) == 1
    assert len(open_source(str(tmp_path), "train")) == 2


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
        with pytest.raises(
            FileNotFoundError, match=r"found train\..*Make.*validation/"
        ):
            function(str(tmp_path), "validation")


def paths_of(folder):
    check_source(str(folder), "train")
    return [*open_source(str(folder), "train").paths]


def test_odd_names_are_found_and_read(tmp_path):
    names = ["ü é 🐈.jpg", "a\nb.PNG", "-rf.jpeg", "x.jpg.jpg", "e\u0301.jpg"]
    write_photographs(tmp_path / "train", names)
    not_utf8 = os.fsencode(tmp_path / "train") + b"/\xff\xfe.jpg"
    with open(not_utf8, "wb") as file:
        file.write(PHOTOS[1].read_bytes())
    source = open_source(str(tmp_path), "train")
    assert sorted(source.paths) == sorted([*names, os.fsdecode(b"\xff\xfe.jpg")])
    sent = pickle.loads(pickle.dumps(source))
    for i in range(6):
        assert sent[i]["image"] in [photo.read_bytes() for photo in PHOTOS]
        assert sent[i]["path"] == source[i]["path"]


def test_class_names_need_not_be_utf8(tmp_path):
    for name in (b"caf\xe9", b"caf\xc3\xa9"):  # Latin-1 and UTF-8
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        for i in range(3):
            Path(os.fsdecode(folder), f"{i}.jpg").write_bytes(b"")
    train = open_source(str(tmp_path), "train")
    validation = open_source(str(tmp_path), "validation")
    assert len(train) + len(validation) == 6
    assert [os.fsencode(n) for n in train.class_names] == [b"caf\xc3\xa9", b"caf\xe9"]


def test_links_are_followed_but_not_in_loops(tmp_path):
    write_photographs(tmp_path, ["elsewhere/deep/1.jpg", "set/train/a/2.jpg"])
    train = tmp_path / "set" / "train"
    (train / "b").symlink_to(tmp_path / "elsewhere")
    (train / "a" / "3.jpg").symlink_to(tmp_path / "elsewhere" / "deep" / "1.jpg")
    (train / "a" / "up").symlink_to(train)
    (train / "a" / "across").symlink_to(train / "b")
    (tmp_path / "elsewhere" / "back").symlink_to(train / "a")
    (train / "a" / "itself").symlink_to("itself")
    (train / "a" / "nowhere").symlink_to("/nowhere")
    (train / "itself").symlink_to("itself")
    assert paths_of(tmp_path / "set") == [
        "a/2.jpg",
        "a/3.jpg",
        "a/across/deep/1.jpg",
        "b/back/2.jpg",
        "b/back/3.jpg",
        "b/deep/1.jpg",
    ]
    only_loops = tmp_path / "loops"
    only_loops.mkdir()
    for name in "ab":  # With two links, the paths double with each level.
        (only_loops / name).symlink_to(only_loops)
    with pytest.raises(FileNotFoundError, match="no images"):
        check_source(str(only_loops), "train")


def test_folders_without_permission_are_errors(open_folder, without_root):
    write_photographs(open_folder, ["dog/deep/2.jpg"])
    (open_folder / "dog" / "deep").chmod(0)
    with without_root:
        for function in (check_source, open_source):
            with pytest.raises(ValueError, match=r"dog/deep' cannot be read"):
                function(str(open_folder), "train")


def test_pipes_are_ignored(tmp_path):
    write_photographs(tmp_path, ["train/1.jpg"])
    os.mkfifo(tmp_path / "train" / "2.jpg")  # opening it would block
    assert [*open_source(str(tmp_path), "train").paths] == ["1.jpg"]


def test_lost_and_found_is_not_a_class(tmp_path):
    write_photographs(tmp_path, ["cat/1.jpg", "cat/2.jpg", "lost+found/3.jpg"])
    assert open_source(str(tmp_path), "train").class_names == ("cat",)


def test_paths_are_a_sequence():
    paths = Paths([b"a", b"", b"bc\xff"])
    assert list(paths) == ["a", "", "bc\udcff"]
    assert paths[-1] == paths[2]
    assert paths[1:] == ("", "bc\udcff")
    with pytest.raises(IndexError):
        paths[3]
    assert list(Paths([])) == []


# ---- The index -----------------------------------------------------------------------


@pytest.fixture
def scanned(tmp_path, monkeypatch):
    """Record the folders that are read, with an own cache for sets of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_MIN_IMAGES", 1)
    names = []

    def read(root, name, wanted, original=folders._read):
        names.append(os.fsdecode(name))
        return original(root, name, wanted)

    monkeypatch.setattr(folders, "_read", read)
    return names


def settle(root):
    """Set the modification time of all folders back by a minute."""
    for folder, _, _ in os.walk(root, followlinks=False):
        then = os.stat(folder).st_mtime_ns - 60 * 10**9
        os.utime(folder, ns=(then, then))


def test_only_folders_that_changed_are_read_again(tmp_path, scanned):
    root = tmp_path / "set"
    write_photographs(root, ["train/a/1.jpg", "train/b/2.jpg", "train/b/deep/3.jpg"])
    settle(root)
    found = ["a/1.jpg", "b/2.jpg", "b/deep/3.jpg"]
    assert paths_of(root) == found
    assert sorted(scanned) == ["", "a", "b", "b/deep"]

    def changed():
        scanned.clear()
        return paths_of(root), sorted(scanned)

    assert changed() == (found, [])
    write_photographs(root, ["train/b/deep/4.jpg"])
    assert changed() == ([*found, "b/deep/4.jpg"], ["b/deep"])
    # It just changed, and may change again within the same tick of the clock.
    assert changed() == ([*found, "b/deep/4.jpg"], ["b/deep"])
    settle(root / "train" / "b" / "deep")
    changed()
    assert changed()[1] == []
    (root / "train" / "a" / "1.jpg").rename(root / "train" / "a" / "9.jpg")
    (root / "train" / "b" / "2.jpg").unlink()
    write_photographs(root, ["train/c/5.jpg"])
    assert changed() == (
        ["a/9.jpg", "b/deep/3.jpg", "b/deep/4.jpg", "c/5.jpg"],
        ["", "a", "b", "c"],
    )
    shutil.rmtree(root / "train" / "b")
    assert changed()[0] == ["a/9.jpg", "c/5.jpg"]
    assert [*open_source(str(root / "train"), "train").paths] != []


def test_the_target_of_a_link_appears_when_it_is_mounted(tmp_path, scanned):
    write_photographs(tmp_path, ["set/train/1.jpg"])
    (tmp_path / "set" / "train" / "more").symlink_to(tmp_path / "disk")
    settle(tmp_path / "set")
    assert paths_of(tmp_path / "set") == ["1.jpg"]
    write_photographs(tmp_path, ["disk/2.jpg"])
    assert paths_of(tmp_path / "set") == ["1.jpg", "more/2.jpg"]
    shutil.rmtree(tmp_path / "disk")
    assert paths_of(tmp_path / "set") == ["1.jpg"]


def test_links_to_one_folder_share_its_index(tmp_path, scanned):
    write_photographs(tmp_path, ["set/train/1.jpg", "set/train/2.jpg"])
    settle(tmp_path / "set")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    paths_of(tmp_path / "set")
    scanned.clear()
    assert paths_of(tmp_path / "link") == ["1.jpg", "2.jpg"]
    assert scanned == []


@pytest.mark.parametrize("content", [b"", b"junk", "pickle", "half"])
def test_a_corrupt_index_is_rebuilt(content, tmp_path, scanned):
    write_photographs(tmp_path, ["set/train/1.jpg"])
    settle(tmp_path / "set")
    paths_of(tmp_path / "set")
    (file,) = (tmp_path / "cache" / "simmim_jax" / "indexes").iterdir()
    if content == "pickle":
        np.savez(file, folders=np.array([{}], object), allow_pickle=True)
    elif content == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_bytes(content)
    scanned.clear()
    assert paths_of(tmp_path / "set") == ["1.jpg"]
    assert scanned == [""]
    scanned.clear()
    assert paths_of(tmp_path / "set") == ["1.jpg"]
    assert scanned == []


def test_an_unwritable_cache_does_no_harm(tmp_path, scanned, monkeypatch):
    write_photographs(tmp_path, ["set/train/1.jpg"])
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert paths_of(tmp_path / "set") == paths_of(tmp_path / "set") == ["1.jpg"]


def test_small_folders_are_not_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_photographs(tmp_path, ["set/train/1.jpg"])
    paths_of(tmp_path / "set")
    assert not (tmp_path / "cache").exists()


# ---- Files ---------------------------------------------------------------------------


def test_files_have_a_largest_size(tmp_path):
    write_image(tmp_path / "train" / "a.png")
    size = (tmp_path / "train" / "a.png").stat().st_size
    source = open_source(str(tmp_path), "train", max_bytes=size)
    assert len(source[0]["image"]) == size
    smaller = open_source(str(tmp_path), "train", max_bytes=size - 1)
    with pytest.raises(BadImage, match=r"MB.*--config.data.max_file_mb") as raised:
        smaller[0]
    assert raised.value.reason == "too large"
    assert raised.value.filename == f"{tmp_path}/train/a.png"


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").symlink_to(tmp_path / "pipe")
    (tmp_path / "train" / "b.png").symlink_to("/dev/null")
    source = open_source(str(tmp_path), "train")
    assert len(source) == 2
    for i in range(2):
        with pytest.raises(OSError, match="Not a regular file"):
            source[i]
