"""Packing into shards: what comes out, what is left out, kills, damage, bad folders."""

import concurrent.futures
import fcntl
import io
import json
import os
import pickle
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data import packed
from simmim_jax.data.crop import resize_center_crop
from simmim_jax.data.decode import BadImage, decode
from simmim_jax.data.pack import main
from simmim_jax.data.pack_folder import begin
from simmim_jax.data.pack_plan import make_plan, shards_of
from simmim_jax.data.pack_processes import Processes
from simmim_jax.data.pack_shards import Options, Shard, pack_image, write_shard
from simmim_jax.data.pipeline import train_iterator
from simmim_jax.data.source import ArraySource, SubsetSource
from simmim_jax.data.sources import check_source, open_source
from tests.images import PHOTOS

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "simmim_jax.data.pack"]
SHORT_SIDE = 96


def crops(name, count, size=(160, 120)):
    """Some different parts of a photograph."""
    whole = Image.open(next(photo for photo in PHOTOS if photo.stem == name))
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = int(rng.integers(whole.width - size[0]))
        y = int(rng.integers(whole.height - size[1]))
        yield whole.crop((x, y, x + size[0], y + size[1]))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A set of all kinds of images that exist, and some that are none."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 40), ("validation", 4)):
        for name in ("china", "flower"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, image in enumerate(crops(name, count)):
                image.save(folder / f"{i:03}.jpg", quality=92)
    china = root / "train" / "china"
    image = next(crops("china", 1))
    image.resize((60, 40)).save(china / "small.png")
    image.convert("CMYK").save(china / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: a quarter turn
    image.save(china / "turned é.jpg", exif=exif)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(china / "transparent.png")
    gray = np.asarray(image.convert("L")).astype(np.uint16) << 8
    Image.fromarray(gray).save(china / "sixteen.png")
    (china / "zero.jpg").write_bytes(b"")
    (china / "text.jpg").write_text("no image")
    (china / "gone.jpg").symlink_to(root / "nowhere.jpg")
    return root


@pytest.fixture(scope="module")
def jpegs(photos, tmp_path_factory):
    """The photographs, packed with a shorter side."""
    out = tmp_path_factory.mktemp("jpegs")
    main([str(photos), str(out), f"--short_side={SHORT_SIDE}", "--shard_mb=0.05"])
    return out


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """A bundled set of arrays, packed as they are."""
    out = tmp_path_factory.mktemp("pixels")
    splits = "--splits=val=validation,unlabelled"
    main(["bundled:climate", str(out), splits, "--format=raw", "--workers=2"])
    return out


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def run(*args):
    """Run the command in this process; returns what it exits with."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(arg) for arg in args])
    return str(exit_info.value)


# ---- What comes out ------------------------------------------------------------------


def test_examples_come_in_the_order_of_the_source_without_bad_ones(photos, jpegs):
    source = open_source(str(photos), "train")
    bad = {"zero.jpg", "text.jpg", "gone.jpg"}
    kept = [
        (os.path.relpath(path, photos), label)
        for path, label in (
            (os.path.join(source.root, path), label)
            for path, label in zip(source.paths, source.labels, strict=True)
        )
        if os.path.basename(path) not in bad
    ]
    train = open_source(str(jpegs), "train")
    found = [(train[i]["path"], train[i]["label"]) for i in range(len(train))]
    assert found == kept
    assert len(train.shards) > 3
    assert train.class_names == ("china", "flower")
    np.testing.assert_array_equal(train.labels, [label for _, label in kept])
    assert len(open_source(str(jpegs), "val")) == 8


def test_jpegs_have_the_short_side_and_nearly_the_pixels(photos, jpegs):
    train = open_source(str(jpegs), "train")
    sizes, errors = set(), []
    for example in (train[i] for i in range(len(train))):
        assert example["image"][:2] == b"\xff\xd8"
        got = decode(example["image"], 3)
        original = (photos / example["path"]).read_bytes()
        raw = Options(SHORT_SIDE, "raw")
        expected = pack_image(original, raw)
        assert got.shape == expected.shape
        errors.append(np.abs(got.astype(int) - expected).mean())
        sizes.add(got.shape[:2])
    assert np.mean(errors) < 3  # of 255
    assert max(errors) < 6
    # 160 x 120, the same turned upright, and 60 x 40, which is not enlarged.
    assert sizes == {(96, 128), (128, 96), (40, 60)}


def test_a_higher_quality_is_nearer_and_larger():
    image = PHOTOS[0].read_bytes()
    expected = pack_image(image, Options(256, "raw")).astype(int)
    sizes, errors = [], []
    for quality in (70, 90, 98):
        file = pack_image(image, Options(256, "jpeg", quality))
        sizes.append(len(file))
        errors.append(np.abs(decode(file, 3) - expected).mean())
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 4  # of 255


def test_large_photographs_are_nearly_what_they_are_at_full_size():
    whole = Image.open(PHOTOS[0])
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    whole.resize((1707, 1280), Image.Resampling.LANCZOS).save(file, "JPEG", exif=exif)
    expected = resize_center_crop(decode(file.getvalue(), 3), (170, 128), 1, "bicubic")
    got = pack_image(file.getvalue(), Options(128, "raw"))
    assert got.shape == (170, 128, 3)
    error = np.abs(got.astype(int) - expected)
    assert 0 < error.mean() < 1  # of 255; it was reduced while it was decoded
    assert error.max() < 40
    broken = file.getvalue()[:50_000]
    with pytest.raises(BadImage) as caught:
        pack_image(broken, Options(128))
    assert caught.value.reason == "truncated"


def test_images_that_no_jpeg_can_hold_are_too_large():
    line = np.zeros((1, 65_501, 3), np.uint8)
    with pytest.raises(BadImage, match="--format=raw") as caught:
        pack_image(line, Options())
    assert caught.value.reason == "too large"
    assert pack_image(line, Options(256, "raw")).shape == line.shape


def test_gray_images_are_packed_gray():
    image = PHOTOS[0].read_bytes()
    file = pack_image(image, Options(64, "jpeg", 90, channels=1))
    assert decode(file, 1).shape == (64, 95, 1)
    with Image.open(io.BytesIO(file)) as opened:
        assert opened.mode == "L"


def test_raw_pixels_are_those_that_decode_gives(photos, tmp_path):
    main([str(photos), str(tmp_path), "--format=raw", "--short_side=0"])
    train = open_source(str(tmp_path), "train")
    assert len(train) == 85
    for example in (train[i] for i in range(len(train))):
        expected = decode((photos / example["path"]).read_bytes(), 3)
        np.testing.assert_array_equal(example["image"], expected)


def test_short_side_0_keeps_the_bytes(photos, tmp_path):
    main([str(photos), str(tmp_path), "--short_side=0", "--splits=train"])
    train = open_source(str(tmp_path), "train")
    assert len(train) == 85
    for example in (train[i] for i in range(len(train))):
        assert example["image"] == (photos / example["path"]).read_bytes()


def test_arrays_are_packed_as_they_are(pixels):
    for split in ("validation", "unlabelled"):  # Here the first has the name "val".
        expected, got = (
            open_source(name, split) for name in ("bundled:climate", str(pixels))
        )
        images = np.stack([got[i]["image"] for i in range(len(got))])
        np.testing.assert_array_equal(images, expected.images)
        assert got.class_names == expected.class_names
        assert "path" not in got[0]
    assert got.labels is None
    assert got[0]["label"] == -1
    labels = open_source(str(pixels), "validation").labels
    np.testing.assert_array_equal(
        labels, open_source("bundled:climate", "validation").labels
    )


def test_what_is_skipped_is_listed_by_reason(photos, tmp_path, capsys):
    main([str(photos), str(tmp_path), "--short_side=8"])
    output = capsys.readouterr().out
    assert "train: 85 images" in output
    assert "verified 93 records" in output
    header, *rows = (
        line.split("\t") for line in (tmp_path / "skipped.tsv").read_text().splitlines()
    )
    assert header == ["split", "path", "reason", "message"]
    reasons = {path: reason for _, path, reason, _ in rows}
    assert reasons.keys() == {
        f"train/china/{name}.jpg" for name in ("gone", "text", "zero")
    }
    assert sorted(reasons.values()) == ["empty", "missing", "not an image"]
    counts = json.loads((tmp_path / "dataset.json").read_text())["skipped"]
    assert sum(counts.values()) == 3
    for reason, count in counts.items():
        assert f"{count} {reason}" in output


@pytest.mark.parametrize(
    ("image", "path"),
    [
        (b"bytes of a file", "china/\udcff é.jpg"),
        (b"bytes of a file", ""),
        (np.arange(30, dtype=np.uint8).reshape(2, 3, 5), "a"),
    ],
)
def test_a_record_gives_the_example_back(image, path):
    record = packed.to_record(image, -1, path)
    example = packed.from_record(record)
    np.testing.assert_array_equal(example["image"], image)
    assert example["label"] == -1
    assert example.get("path", "") == path
    for part in (record[:14], record[: -len(image)]):
        with pytest.raises(ValueError, match="record"):
            packed.from_record(part)


def test_shards_are_for_random_access_and_hold_all_examples_once(jpegs):
    train = open_source(str(jpegs), "train")
    for shard in train.shards:
        options = packed.open_shard(str(jpegs / shard)).writer_options_string()
        assert "group_size:1," in options
        assert "uncompressed" in options
    source = open_source("bundled:climate", "train")
    for shard_mb, count in ((1e6, 16), (57, 16), (2, 29), (0.001, packed.MAX_SHARDS)):
        plan, num_bytes = make_plan({"a": source}, "", Options(0), shard_mb)
        assert num_bytes == source.images.nbytes
        shards = shards_of(plan)
        assert len(shards) == count
        indices = [range(shard.start, shard.stop) for shard in shards]
        assert np.concatenate(indices).tolist() == list(range(len(source)))
        assert {len(part) for part in indices} <= {
            len(source) // count,
            len(source) // count + 1,
        }


def test_progress_is_shown_in_a_terminal(tmp_path):
    reader, writer = pty.openpty()
    command = [*COMMAND, "bundled:climate", str(tmp_path), "--format=raw"]
    subprocess.run(command, cwd=ROOT, stdout=writer, check=True)
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    os.close(writer)
    assert re.search(r"\rpacking 5,228 of 5,228 images, [\d,]+/s, 0:00:00 left", shown)
    assert "\rverifying 5,228 of 5,228 images" in shown


def test_paths_are_relative_to_what_was_packed(photos, jpegs, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    main([photos.name, str(tmp_path), f"--short_side={SHORT_SIDE}", "--shard_mb=0.05"])
    got, expected = (open_source(str(out), "train") for out in (tmp_path, jpegs))
    assert [e["path"] for e in map(got.__getitem__, range(len(got)))] == [
        e["path"] for e in map(expected.__getitem__, range(len(expected)))
    ]


# ---- Reading -------------------------------------------------------------------------


def test_threads_and_pickled_sources_read_the_same(jpegs):
    train = open_source(str(jpegs), "train")
    expected = [train[i]["image"] for i in range(len(train))]
    assert len(train.labels) == len(train)
    copy = pickle.loads(pickle.dumps(train))
    assert len(pickle.dumps(copy)) < 4000
    order = np.random.default_rng(0).integers(0, len(train), 4000)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda i: copy[i]["image"], order)
        assert list(found) == [expected[i] for i in order]
    for index in (-1, len(train)):
        with pytest.raises(IndexError):
            train[index]


def test_training_batches_are_the_same_from_workers(jpegs):
    def batches(num_workers):
        iterator = train_iterator(
            open_source(str(jpegs), "train"),
            batch_size=32,
            image_size=(32, 32),
            channels=3,
            scale=(0.5, 1.0),
            ratio=(3 / 4, 4 / 3),
            interpolation="bicubic",
            fast_decode=True,
            seed=0,
            num_workers=num_workers,
        )
        taken = [next(iterator) for _ in range(4)]
        iterator.close()
        return taken

    for one, other in zip(batches(0), batches(2), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])
        assert one["image"].std() > 20


def test_splits_that_are_not_there_are_errors(pixels):
    for function in (check_source, open_source):
        with pytest.raises(ValueError, match=r"split='test'.*val, unlabelled"):
            function(str(pixels), "test")


def test_other_folders_with_a_dataset_json_are_folders_of_images(photos, tmp_path):
    shutil.copytree(photos / "validation", tmp_path / "images")
    (tmp_path / "images" / "dataset.json").write_text('{"labels": [["a.png", 1]]}')
    assert len(open_source(str(tmp_path / "images"), "train")) > 5


def test_later_formats_are_refused(pixels, tmp_path):
    index = json.loads((pixels / "dataset.json").read_text())
    index["format_version"] += 1
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="newer simmim_jax"):
        open_source(str(tmp_path), "val")


def test_processes_that_pack_do_without_jax():
    code = "import simmim_jax.data.pack, sys; print({'jax'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert run.stdout == b"set()\n"


# ---- Killed, changed, damaged --------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_resumed_gives_the_same_bytes(photos, jpegs, tmp_path, number):
    out = tmp_path / "out"
    args = [str(photos), str(out), f"--short_side={SHORT_SIDE}", "--shard_mb=0.05"]
    command = [*COMMAND, *args, "--workers=1"]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (done := list(out.glob("*.array_record"))):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    if number == signal.SIGKILL:
        process.kill()
    else:  # A terminal sends it to all processes.
        os.killpg(process.pid, number)
        errors = process.communicate()[1]
        assert errors.startswith("Interrupted. The same command goes on")
    process.wait()
    while workers_of(process.pid):  # They notice, and leave.
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (out / "dataset.json").exists()
    with pytest.raises(FileNotFoundError, match="Run the same"):
        open_source(str(out), "train")

    assert "quality: 90 then, 50 now" in run(*args, "--quality=50")
    written = {path: path.stat().st_mtime_ns for path in done}
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "shards are there" in resumed.stdout
    assert written == {path: path.stat().st_mtime_ns for path in done}
    assert contents(out) == contents(jpegs)


def workers_of(session):
    """Ids of the processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_a_complete_set_is_verified_and_other_data_refused(photos, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(photos / "validation", data)
    main([str(data), str(out), "--short_side=16"])
    before = contents(out)
    capsys.readouterr()
    main([str(data), str(out), "--short_side=16"])
    assert "is complete" in capsys.readouterr().out
    assert contents(out) == before
    (data / "china" / "000.jpg").rename(data / "flower" / "999.jpg")
    assert "sample_blake2b" in run(data, out, "--short_side=16")
    shutil.rmtree(data / "china")
    error = run(data, out, "--short_side=16")
    assert re.search(r"num_source_examples: \d then, \d now", error)
    assert "another folder" in error


@pytest.fixture
def damaged(pixels, tmp_path):
    """A copy to be damaged, and two shards of equally many examples."""
    copy = tmp_path / "copy"
    shutil.copytree(pixels, copy)
    _, first, second, *_ = sorted(copy.glob("unlabelled*.array_record"))
    return copy, first, second


def test_a_flipped_bit_is_found_when_verified_and_when_read(damaged):
    folder, shard, _ = damaged
    data = bytearray(shard.read_bytes())
    data[300_000] ^= 1
    shard.write_bytes(data)
    error = run(folder)
    assert shard.name in error
    assert re.search("corrupt.*pack anew", error)
    source = open_source(str(folder), "unlabelled")
    bad = []
    for i in range(len(source)):
        try:
            source[i]
        except OSError as error:
            bad.append(error.filename)
    assert bad == [str(shard)]


def test_shards_in_each_others_place_are_found(damaged):
    folder, first, second = damaged
    sizes = {path.stat().st_size for path in (first, second)}
    assert len(sizes) == 1
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    assert "checksum" in run(folder)


def test_labels_that_are_not_those_of_the_records_are_found(damaged):
    folder, *_ = damaged
    labels = np.load(folder / "val-labels.npy")
    labels[0] += 1
    np.save(folder / "val-labels.npy", labels)
    assert "other labels" in run(folder)


def test_half_a_copy_is_not_opened(damaged):
    folder, shard, second = damaged
    os.truncate(shard, 1000)
    for function in (open_source, check_source):
        with pytest.raises(FileNotFoundError, match=r"has 1,000 bytes.*Copy it again"):
            function(str(folder), "unlabelled")
    with pytest.raises(OSError, match="not a whole shard"):
        packed.open_shard(str(shard))
    second.unlink()
    assert "FileNotFoundError" in run(folder)


# ---- Errors --------------------------------------------------------------------------


def test_a_full_disk_is_told_and_the_rest_goes_on(photos, tmp_path):
    full = tmp_path / packed.UNFINISHED / "validation-00000-of-00001.array_record"
    full.parent.mkdir()
    full.symlink_to("/dev/full")
    args = [photos, tmp_path, "--short_side=16"]
    error = run(*args)
    assert "No space left on device" in error
    assert "run the same command again" in error
    full.unlink()
    main([str(arg) for arg in args])
    assert len(open_source(str(tmp_path), "train")) == 85


def test_an_error_in_one_process_stops_the_others(tmp_path):
    unfinished = tmp_path / packed.UNFINISHED
    unfinished.mkdir()
    (unfinished / "full").symlink_to("/dev/full")
    image = ArraySource(np.zeros((1, 1, 1, 3), np.uint8), None, ())
    # Writing all of them would take minutes.
    source = SubsetSource(image, np.zeros(5_000_000, np.int8))
    shards = [Shard("a", "long", 0, len(source)), Shard("a", "full", 0, 1)]
    start = time.monotonic()
    with (
        Processes(2, str(tmp_path), "", {"a": source}, Options(0)) as processes,
        pytest.raises(OSError, match="No space left"),
    ):
        processes.map(write_shard, shards, "packing", len(source))
    assert time.monotonic() - start < 30


def test_too_large_a_set_is_refused_before_it_is_begun(tmp_path):
    (tmp_path / packed.UNFINISHED).mkdir()
    with pytest.raises(OSError, match=r"needs about 1000000000\.0 GB.*make room"):
        begin(str(tmp_path), {}, 1e18)


def test_folders_that_cannot_be_packed_into(photos, tmp_path):
    assert "is in DATASET" in run(photos, photos / "packed")
    assert "is in DATASET" in run(photos, photos)
    assert "is in DATASET" in run(photos, photos / "train" / ".." / "packed")
    assert "not a local path" in run(photos, "gs://bucket/packed")
    (tmp_path / "notes.txt").write_text("mine")
    error = run(photos, tmp_path)
    assert error.startswith("FileExistsError")
    assert "notes.txt" in error
    error = run("bundled:climate", tmp_path / "notes.txt" / "out")
    assert error.startswith("NotADirectoryError")
    assert "cannot be written" in error


def test_two_at_once_are_refused(tmp_path):
    (tmp_path / packed.UNFINISHED).mkdir()
    with open(tmp_path / packed.UNFINISHED / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "Another process" in run("bundled:climate", tmp_path, "--format=raw")


def test_processes_leave_ctrl_c_to_the_first(tmp_path):
    with Processes(1, str(tmp_path), "", {}, Options()) as processes:
        found = processes.map(signal.getsignal, [signal.SIGINT], "packing", 1)
    assert found == [signal.SIG_IGN]


def test_a_killed_process_ends_the_command(tmp_path):
    with (
        Processes(1, str(tmp_path), "", {}, Options()) as processes,
        pytest.raises(ChildProcessError, match="fewer --workers"),
    ):
        processes.map(signal.raise_signal, [signal.SIGKILL], "packing", 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bundled:fashion_mnist_10k"], "since channels=3"),
        (["bundled:climate", "--splits=train,test"], "split='test'"),
        (["bundled:climate", "--splits=train[:10%]"], "name a part"),
        (["bundled:climate", "--splits=train,train"], "different names"),
        (["bundled:climate", "--workers=0"], "workers=0"),
        (["bundled:climate", "--quality=101"], "quality=101"),
        (["bundled:climate", "--short_side=-1"], "short_side=-1"),
        (["bundled:climate", "--shard_mb=0"], "shard_mb=0"),
        (["nowhere"], "dataset='nowhere'"),
    ],
)
def test_wrong_arguments(tmp_path, args, message):
    dataset, *flags = args
    assert message in run(dataset, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
