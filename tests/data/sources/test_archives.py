"""Tar and zip files: layouts, exact reads, indexes, and damage."""

import concurrent.futures
import contextlib
import io
import multiprocessing
import os
import pickle
import tarfile
import tracemalloc
import zipfile

import pytest

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.sources import archive_index, cache
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError
from tests.images import PHOTOS, write_photographs

CHINA, FLOWER = (photo.read_bytes() for photo in PHOTOS)


def write_tar(path, files, **options):
    """Write {name: bytes}; a dict in place of bytes becomes a nested tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files.items():
            if isinstance(data, dict):
                write_tar(inner := path.with_name("inner"), data)
                data = inner.read_bytes()
                inner.unlink()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def write_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def write(path, files):
    return (write_tar if path.suffix == ".tar" else write_zip)(path, files)


def whole(path, splits=("train", "validation")):
    """Return the examples of splits, {path in the archive: (image, class or None)}."""
    found = {}
    for split in splits:
        check_source(path, split)
        source = open_source(path, split)
        labels = [-1] * len(source) if source.labels is None else source.labels
        for i in range(len(source)):
            example = source[i]
            assert example["label"] == labels[i]
            name = source.class_names[labels[i]] if labels[i] >= 0 else None
            found[example["path"].removeprefix(path + "/")] = example["image"], name
    return found


@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_class_folders(ending, tmp_path):
    files = {
        "./zebra/deep/1.JPG": CHINA,
        "./ant/2.jpg": FLOWER,
        "./ant/ü 3.jpg": CHINA,
        "./ant/notes.txt": b"no image",
        "./.hidden/4.jpg": FLOWER,
        "./ant/._2.jpg": b"written by macOS",
    }
    path = write(tmp_path / f"set.{ending}", files)
    assert whole(path) == {
        "zebra/deep/1.JPG": (CHINA, "zebra"),
        "ant/2.jpg": (FLOWER, "ant"),
        "ant/ü 3.jpg": (CHINA, "ant"),
    }
    assert open_source(path, "train").class_names == ("ant", "zebra")


@pytest.mark.parametrize("ending", ["tar", "zip"])
@pytest.mark.parametrize("top", ["", "my set/"])
def test_split_folders_below_a_single_top_folder(top, ending, tmp_path):
    files = {
        f"{top}train/ant/1.jpg": CHINA,
        f"{top}train/bee/2.jpg": FLOWER,
        f"{top}val/bee/3.jpg": FLOWER,
        f"{top}test/4.jpg": CHINA,
        f"{top}extra/cow/5.jpg": CHINA,
    }
    path = write(tmp_path / f"set.{ending}", files)
    for split in ("val", "validation"):
        assert whole(path, [split]) == {f"{top}val/bee/3.jpg": (FLOWER, "bee")}
        assert open_source(path, split).labels.tolist() == [1]
    train = open_source(path, "train")
    assert train.labels.tolist() == [0, 1]
    assert train.class_names == ("ant", "bee")
    assert open_source(path, "test").labels is None
    with pytest.raises(FileNotFoundError, match=r"'none'.*found train, val, test"):
        open_source(path, "none")


def test_an_archive_of_one_folder_is_read_like_that_folder(tmp_path):
    files = {
        f"photos/{name}": CHINA for name in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg")
    }
    path = write_zip(tmp_path / "set.zip", files)
    assert [name for _, name in whole(path).values()].count("dog") == 2


def test_archives_and_folders_have_the_same_splits(tmp_path):
    names = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(60)]
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(name.encode())
    path = write_tar(tmp_path / "set.tar", {name: name.encode() for name in names})
    for split in ("train", "validation"):
        folder, archive = (
            open_source(str(tmp_path / "set"), split),
            open_source(path, split),
        )
        assert sorted(folder.paths) == sorted(archive.paths)
        assert len(folder) < 60


def test_flat_archives_are_unlabelled(tmp_path):
    path = write_tar(tmp_path / "set.tar", {"1.jpg": CHINA, "2.jpg": FLOWER})
    assert whole(path) == {"1.jpg": (CHINA, None), "2.jpg": (FLOWER, None)}


@pytest.mark.parametrize(
    "format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_long_and_odd_names_in_tars(format, tmp_path):
    long = f"{'d' * 90}/{'x' * 90}.jpg"
    names = [long, b"\xff/1.jpg".decode("utf-8", "surrogateescape")]
    files = dict(zip(names, (CHINA, FLOWER), strict=True))
    path = write_tar(
        tmp_path / "set.tar", files, format=format, errors="surrogateescape"
    )
    assert [whole(path)[name][0] for name in names] == [CHINA, FLOWER]


def test_hard_links_in_a_tar_are_images_too(tmp_path):
    folder = tmp_path / "set"
    write_photographs(folder, ["a/1.jpg", "b/2.jpg"])
    os.link(folder / "a" / "1.jpg", folder / "b" / "3.jpg")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(folder, ".")
        assert any(member.islnk() for member in tar)
    assert whole(str(tmp_path / "set.tar")) == {
        "a/1.jpg": (CHINA, "a"),
        "b/2.jpg": (FLOWER, "b"),
        "b/3.jpg": (CHINA, "b"),
    }


def test_stored_and_deflated_members(tmp_path):
    files = {"a/1.bmp": b"BM" + bytes(100_000), "b/2.jpg": CHINA}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_zip(tmp_path / f"{method}.zip", files, method)
        assert {name: data for name, (data, _) in whole(path).items()} == files
    assert (
        os.path.getsize(path) < 400_000 < os.path.getsize(tmp_path / "0.zip") + 200_000
    )
    path = write_zip(tmp_path / "lzma.zip", files, zipfile.ZIP_LZMA)
    with pytest.raises(
        ValueError, match=r"'a/1.bmp'.*method 14: expected stored or defl"
    ):
        open_source(path, "train")


# ---- Shards, and ImageNet ------------------------------------------------------------


def shard(start, stop, cls=True):
    files = {}
    for i in range(start, stop):
        files[f"{i:04d}.jpg"] = CHINA if i % 2 else FLOWER
        files[f"{i:04d}.json"] = b"{}"
        if cls:
            files[f"{i:04d}.cls"] = str(i % 3 + 1).encode()
    return files


def test_shards_with_labels_beside_the_images(tmp_path):
    write_tar(tmp_path / "set-0000.tar", shard(0, 5))
    write_tar(tmp_path / "set-0001.tar", shard(5, 8))
    (tmp_path / "README.md").touch()
    found = whole(str(tmp_path))
    assert found == {
        f"set-000{i // 5}.tar/{i:04d}.jpg": (CHINA if i % 2 else FLOWER, str(i % 3 + 1))
        for i in range(8)
    }
    assert open_source(str(tmp_path), "train").class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize("name", ["{}-{}.tar", "set1k-{}-00{}.tar", "{}/{}.tar"])
def test_shards_of_splits(name, tmp_path):
    write_tar(tmp_path / name.format("train", 0), shard(0, 2))
    write_tar(tmp_path / name.format("train", 1), shard(2, 4))
    write_tar(tmp_path / name.format("validation", 0), shard(4, 5))
    train = open_source(str(tmp_path), "train")
    assert train.labels.tolist() == [1, 2, 3, 1]
    validation = open_source(str(tmp_path), "validation")
    assert validation.labels.tolist() == [2]
    assert train.class_names == validation.class_names
    with pytest.raises(
        FileNotFoundError, match=r"'test'.*train, validation\..*test-\*"
    ):
        open_source(str(tmp_path), "test")


@pytest.mark.parametrize("cls", [".cls", ".CLS"])
@pytest.mark.parametrize("name", ["set.tar", "set.zip"])
def test_the_whole_stem_comes_first(name, cls, tmp_path):
    files = {f"img_1.{i}m.jpg": CHINA for i in range(5)}
    files |= {f"img_1.{i}m{cls}": str(i % 2).encode() for i in range(5)}
    found = whole(write(tmp_path / name, files))
    assert [found[f"img_1.{i}m.jpg"][1] for i in range(5)] == ["0", "1", "0", "1", "0"]


def test_a_number_of_another_image_is_not_taken(tmp_path):
    files = {"train/a.0.jpg": CHINA, "train/a.0.cls": b"1", "train/a.1.jpg": CHINA}
    path = write_tar(tmp_path / "set.tar", files)
    with pytest.raises(UserError, match=r"'a.1.jpg' in .* has no .cls file beside it"):
        open_source(path, "train")


def test_several_numbers_for_an_image_are_an_error(tmp_path):
    for numbers in (["a.cls", "a.CLS"], ["a.x.cls", "a.y.cls"]):
        files = {"a.b.jpg": CHINA, "c.jpg": CHINA} | dict.fromkeys(numbers, b"0")
        first, second = sorted(numbers)
        named = f"'a.b.jpg' in .* has the .cls files '{first}', '{second}': expected"
        with pytest.raises(UserError, match=named):
            open_source(write_tar(tmp_path / "set.tar", files), "train")


def test_keys_of_examples_end_at_the_first_dot(tmp_path):
    """As in webdataset 1.0.2: "a/b.c.jpg" is key "a/b", field "c.jpg"."""
    files = {"a.b/0.left.jpg": CHINA, "a.b/0.cls": b"1\n", "a.b/0.x.right.jpg": FLOWER}
    found = whole(write_tar(tmp_path / "set.tar", files))
    assert sorted(name for _, name in found.values()) == ["1", "1"]


def test_bad_label_files_are_errors(tmp_path):
    files = shard(0, 3)
    del files["0001.cls"]
    with pytest.raises(ValueError, match=r"'0001.jpg'.*no .cls file beside it"):
        open_source(write_tar(tmp_path / "a.tar", files), "train")
    files["0001.cls"] = b"cat"
    with pytest.raises(ValueError, match=r"'0001.cls'.*b'cat'.*number of the class"):
        open_source(write_tar(tmp_path / "b.tar", files), "train")


def test_tars_beside_images_or_folders_are_ignored(tmp_path):
    write_tar(tmp_path / "old.tar", {"9.jpg": CHINA})
    for name in ("train/cat/1.jpg", "train/dog/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(CHINA)
    assert [*open_source(str(tmp_path), "train").paths] == ["cat/1.jpg", "dog/2.jpg"]


def imagenet(folder):
    """Write small versions of the two ILSVRC2012 files of image-net.org."""
    classes = {
        f"{synset}.tar": {f"{synset}_{i}.JPEG": CHINA + bytes([i]) for i in range(3)}
        for synset in ("n01751748", "n02105855", "n09193705")
    }
    train = write_tar(folder / "ILSVRC2012_img_train.tar", classes)
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (3, 1, 2)]
    write_tar(folder / "ILSVRC2012_img_val.tar", dict.fromkeys(names, FLOWER))
    return train


def test_a_tar_of_class_tars(tmp_path):
    found = whole(imagenet(tmp_path))
    assert len(found) == 9
    for path, (image, name) in found.items():
        assert path == f"{name}/{name}_{image[-1]}.JPEG"
        assert image[:-1] == CHINA


def test_imagenet_as_downloaded(tmp_path):
    imagenet(tmp_path)
    train = open_source(str(tmp_path), "train")
    validation = open_source(str(tmp_path), "validation")
    assert train.class_names == validation.class_names
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # The first lines of the published ground truth are images 1, 2 and 3.
    names = [validation.class_names[validation[i]["label"]] for i in range(3)]
    assert names == ["n02105855", "n01751748", "n09193705"]


# ---- Reading, and the index ----------------------------------------------------------


def read_all(source):
    return [source[i]["image"] for i in range(len(source))]


def test_threads_and_processes_read_concurrently(tmp_path):
    files = {f"{i}.jpg": bytes([i]) * (i + 1) * 999 for i in range(40)}
    source = open_source(write_tar(tmp_path / "set.tar", files), "train")
    expected = read_all(source)
    assert sorted(expected) == sorted(
        image for name, image in files.items() if name in set(source.paths)
    )
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(t == expected for t in threads.map(read_all, [source] * 16))
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(read_all, [source] * 2) == [expected] * 2


def test_pickles_are_small_and_no_file_stays_open(tmp_path):
    files = {f"{i:05d}.jpg": b"x" for i in range(900)}
    source = open_source(write_tar(tmp_path / "set.tar", files), "train")
    before = os.listdir("/proc/self/fd")
    source[0]
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert len(pickle.dumps(source)) < 60 * len(source)


@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_the_index_is_used_until_the_file_changes(ending, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_MIN_IMAGES", 1)
    indexed = []

    def members(file, original=archive_index._labelled_members):
        indexed.append(file)
        return original(file)

    monkeypatch.setattr(archive_index, "_labelled_members", members)
    files = {f"{'ab'[i % 2]}/{i}.jpg": CHINA for i in range(4)}
    path = write(tmp_path / f"set.{ending}", files)
    first, second = whole(path), whole(path)
    assert first == second == {n: (CHINA, n[0]) for n in files}
    assert indexed == [path]
    files["a/4.jpg"] = FLOWER
    write(tmp_path / f"set.{ending}", files)
    assert whole(path)["a/4.jpg"] == (FLOWER, "a")
    assert indexed == [path] * 2


@pytest.mark.parametrize("kept", [100_000, 2000, 300])
def test_a_truncated_tar(kept, tmp_path):
    path = tmp_path / "set.tar"
    write_tar(path, {"1.jpg": CHINA, "2.jpg": FLOWER, "3.jpg": CHINA})
    os.truncate(path, kept)
    with pytest.raises(ValueError, match=r"set.tar' is not a tar file, or is corrupt"):
        open_source(str(path), "train")


def test_corrupt_headers_are_not_taken_for_the_end(tmp_path):
    path = tmp_path / "set.tar"
    write_tar(path, {"1.jpg": b"1", "2.jpg": b"2", "3.jpg": b"3"})
    data = bytearray(path.read_bytes())
    data[1024:1034] = b"0123456789"  # the name of the second: now its checksum is wrong
    path.write_bytes(data)
    with pytest.raises(ValueError, match="bad header at byte 1024"):
        open_source(str(path), "train")


def test_files_that_shrink_or_vanish_after_opening(tmp_path):
    names = {f"{i}.jpg": CHINA for i in range(3)}
    for path in (
        write_tar(tmp_path / "a.tar", names),
        write_zip(tmp_path / "a.zip", names),
    ):
        source = open_source(path, "train")
        os.truncate(path, 1000)
        with pytest.raises(OSError, match=r"is truncated: \d+ bytes at"):
            source[1]
        os.unlink(path)
        with pytest.raises(FileNotFoundError):
            source[1]


def test_a_corrupt_zip(tmp_path):
    file = tmp_path / "a.zip"
    path = write_zip(file, {"1.bmp": bytes(9999), "2.bmp": bytes(9999)})
    data = bytearray(file.read_bytes())
    start = data.index(b"1.bmp") + 5
    data[start : start + 8] = b"\xff" * 8
    file.write_bytes(data)
    for split in ("train", "validation"):
        source = open_source(path, split)
        if source.paths[0] == "1.bmp":
            with pytest.raises(OSError, match=r"a.zip' is corrupt at byte"):
                source[0]
    data[:4] = b"junk"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"a.zip'.*'1.bmp' is not where"):
        open_source(path, "train")


def test_archives_without_images(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.txt": b""})
    for function in (check_source, open_source):
        with pytest.raises(FileNotFoundError, match=r"no images: expected .jpg"):
            function(path, "train")
    with pytest.raises(FileNotFoundError, match=r"no images: expected .jpg"):
        open_source(write_zip(tmp_path / "a.zip", {"a.txt": b""}), "train")
    with pytest.raises(ValueError, match=r"split='test'.*expected train, validation"):
        open_source(write_zip(tmp_path / "b.zip", {"1.jpg": CHINA}), "test")


# ---- Limits and damage ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "zip", "stored zip"])
def test_members_have_a_largest_size(kind, tmp_path):
    contents = {f"train/{i}.jpg": bytes(1000) for i in range(2)}
    contents |= {"train/large.jpg": bytes(1001), "val/a.jpg": b""}
    if kind == "tar":
        path = write_tar(tmp_path / "a.tar", contents)
    else:
        method = zipfile.ZIP_STORED if "stored" in kind else zipfile.ZIP_DEFLATED
        path = write_zip(tmp_path / "a.zip", contents, method)
    source = open_source(path, "train", max_bytes=1000)
    assert [source[i]["image"] for i in range(2)] == [bytes(1000)] * 2
    with pytest.raises(BadImage, match=r"more than 0\.001 MB.*max_file_mb") as raised:
        source[2]
    assert raised.value.reason == "too large"
    assert raised.value.filename == f"{path}/train/large.jpg"
    larger = open_source(path, "train", max_bytes=1001)
    assert larger[2]["image"] == bytes(1001)


def test_a_zip_that_lies_about_sizes_is_not_inflated(tmp_path):
    """The listed size is 10 bytes, that of the content 2 MB."""
    path = write_zip(tmp_path / "a.zip", {"train/a.jpg": bytes(2_000_000)})
    data = (tmp_path / "a.zip").read_bytes()
    size = (2_000_000).to_bytes(4, "little")
    assert data.count(size) == 2  # at the file, and in the list of files
    (tmp_path / "a.zip").write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    source = open_source(path, "train", max_bytes=1_000_000)
    assert source.unpacked.tolist() == [10]
    tracemalloc.start()
    with pytest.raises(BadImage, match="more than 1 MB"):
        source[0]
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    # What an archive says less than the truth of is read up to the limit.
    assert len(open_source(path, "train")[0]["image"]) == 2_000_000


def test_a_cut_off_member_of_a_zip_is_unreadable(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"train/a.jpg": CHINA})
    source = open_source(path, "train")
    source.sizes[0] -= 100
    with pytest.raises(OSError, match=r"a.zip' is corrupt at byte \d+: incomplete"):
        source[0]


@pytest.mark.parametrize("text", [b"x", b"-1", b"1000000", b"7" * 2000, b""])
def test_numbers_of_classes_are_checked(text, tmp_path):
    files = {"train/a.jpg": CHINA, "train/a.cls": text}
    for path in (tmp_path / "a.tar", tmp_path / "a.zip"):
        with pytest.raises(UserError, match=r"a\.cls' in '.*expected the number"):
            open_source(write(path, files), "train")


def test_a_class_without_images_to_train_on(tmp_path):
    files = {"train/cat/1.jpg": CHINA, "val/cat/2.jpg": CHINA, "val/dog/3.jpg": CHINA}
    for name in ("a.tar", "a.zip"):
        train, val = (
            open_source(write(tmp_path / name, files), split)
            for split in ("train", "val")
        )
        assert (train.labels, train.class_names) == (None, ())
        assert "without images to train on: dog. " in train.unlabelled
        assert val.class_names == ("cat", "dog")
    numbered = {f"{s}/{n}.jpg": CHINA for s, n in (("train", 0), ("val", 1))}
    numbered |= {"train/0.cls": b"0", "val/1.cls": b"3"}
    train = open_source(write_tar(tmp_path / "n.tar", numbered), "train")
    assert train.labels is None
    assert "without images to train on: 3. " in train.unlabelled
    stray = {"train/cat/1.jpg": CHINA, "train/2.jpg": CHINA}
    train = open_source(write_tar(tmp_path / "s.tar", stray), "train")
    assert "2.jpg' is in no class folder" in train.unlabelled


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_every_damaged_archive_is_refused_with_its_name(name, tmp_path):
    """Each byte of the headers in turn."""
    path = tmp_path / name
    write(path, {"a/1.bmp": bytes(40), "b/2.bmp": bytes(40), "b/3.bmp": bytes(40)})
    whole_file = path.read_bytes()
    refused = 0
    for at in range(len(whole_file)):
        if whole_file[at] == 0:
            continue
        for value in (0, 0x7F, 0xFF):
            damaged = bytearray(whole_file)
            damaged[at] = value
            path.write_bytes(damaged)
            message = refusal(str(path))
            assert message is None or str(path) in message
            refused += message is not None
    assert refused > 50


def refusal(path):
    """Return the error that opens or reads no archive, if it is the user's."""
    try:
        source = open_source(path, "train")
        with contextlib.suppress(OSError):
            source[0]
    except UserError as error:
        return str(error)
