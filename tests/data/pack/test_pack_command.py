"""`simmim pack`: results, skipped images, interruptions, and wrong arguments."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim_jax.cli.pack import main
from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.registry import decode, read
from simmim_jax.data.pack.plan import make_plan
from simmim_jax.data.pack.shards import Options, pack_image
from simmim_jax.data.sources import packed
from simmim_jax.data.sources.registry import open_source
from tests.images import crops, write_photographs
from tests.packing import COMMAND, ROOT, fails

SHORT_SIDE = 96


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Write many kinds of images, and files that are not images."""
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
    exif[0x0112] = 6  # orientation: a quarter turn
    image.save(china / "turned é.jpg", exif=exif)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(china / "transparent.png")
    gray = np.asarray(image.convert("L")).astype(np.uint16) << 8
    Image.fromarray(gray).save(china / "sixteen.png")
    (china / "zero.jpg").write_bytes(b"")
    (china / "text.jpg").write_text("not an image")
    (china / "gone.jpg").symlink_to(root / "nowhere.jpg")
    return root


@pytest.fixture(scope="module")
def jpegs(photos, tmp_path_factory):
    """Pack the photographs with a smaller short side."""
    out = tmp_path_factory.mktemp("jpegs")
    main([str(photos), str(out), f"--short_side={SHORT_SIDE}", "--shard_mb=0.05"])
    return out


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_examples_keep_the_order_of_the_source(photos, jpegs):
    source = open_source(str(photos), "train")
    bad = {"zero.jpg", "text.jpg", "gone.jpg", "sixteen.png"}
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


def test_jpegs_are_close_to_the_resized_images(photos, jpegs):
    train = open_source(str(jpegs), "train")
    sizes, errors = set(), []
    for example in (train[i] for i in range(len(train))):
        assert example["image"][:2] == b"\xff\xd8"
        got = decode(example["image"], Decoding(3))
        original = (photos / example["path"]).read_bytes()
        raw = Options(SHORT_SIDE, "raw")
        expected = pack_image(original, raw)
        assert got.shape == expected.shape
        errors.append(np.abs(got.astype(int) - expected).mean())
        sizes.add(got.shape[:2])
    assert np.mean(errors) < 3  # of 255
    assert max(errors) < 6
    # 160 x 120, the same turned upright, and 60 x 40, which keeps its size.
    assert sizes == {(96, 128), (128, 96), (40, 60)}


def test_raw_pixels_equal_those_of_decode(photos, tmp_path):
    main([str(photos), str(tmp_path), "--format=raw", "--short_side=0"])
    train = open_source(str(tmp_path), "train")
    assert len(train) == 85
    for example in (train[i] for i in range(len(train))):
        expected = decode((photos / example["path"]).read_bytes(), Decoding(3))
        np.testing.assert_array_equal(decode(example["image"], Decoding(3)), expected)


def test_short_side_0_keeps_the_bytes(photos, tmp_path):
    main([str(photos), str(tmp_path), "--short_side=0", "--splits=train"])
    train = open_source(str(tmp_path), "train")
    assert len(train) == 85
    for example in (train[i] for i in range(len(train))):
        assert example["image"] == (photos / example["path"]).read_bytes()


def test_skipped_images_are_listed_with_reasons(photos, tmp_path, capsys):
    main([str(photos), str(tmp_path), "--short_side=8"])
    output = capsys.readouterr().out
    assert "train: 84 images" in output
    assert "verified 92 records" in output
    header, *rows = (
        line.split("\t") for line in (tmp_path / "skipped.tsv").read_text().splitlines()
    )
    assert header == ["split", "path", "reason", "message"]
    reasons = {path: reason for _, path, reason, _ in rows}
    assert reasons == {
        "train/china/gone.jpg": "missing",
        "train/china/sixteen.png": "other values",
        "train/china/text.jpg": "not an image",
        "train/china/zero.jpg": "empty",
    }
    counts = json.loads((tmp_path / "dataset.json").read_text())["skipped"]
    assert sum(counts.values()) == 4
    for reason, count in counts.items():
        assert f"{count} {reason}" in output


def test_paths_are_relative_to_the_data_set(photos, jpegs, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    main([photos.name, str(tmp_path), f"--short_side={SHORT_SIDE}", "--shard_mb=0.05"])
    got, expected = (open_source(str(out), "train") for out in (tmp_path, jpegs))
    assert [e["path"] for e in map(got.__getitem__, range(len(got)))] == [
        e["path"] for e in map(expected.__getitem__, range(len(expected)))
    ]


# ---- Interrupted, changed, refused ---------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_resumed_packing_writes_the_same_bytes(photos, jpegs, tmp_path, number):
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
    else:  # a terminal sends it to all processes
        os.killpg(process.pid, number)
        errors = process.communicate()[1]
        assert errors.startswith("Interrupted. Run the same command again")
    process.wait()
    while workers_of(process.pid):  # they exit when they notice
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (out / "dataset.json").exists()
    with pytest.raises(FileNotFoundError, match="Run the same"):
        open_source(str(out), "train")

    assert "quality: 90 before, 50 now" in fails(*args, "--quality=50")
    written = {path: path.stat().st_mtime_ns for path in done}
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "shards already exist" in resumed.stdout
    assert written == {path: path.stat().st_mtime_ns for path in done}
    assert contents(out) == contents(jpegs)


def workers_of(session):
    """Return the ids of running processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_a_complete_set_is_verified_and_other_data_is_refused(photos, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(photos / "validation", data)
    main([str(data), str(out), "--short_side=16"])
    before = contents(out)
    capsys.readouterr()
    main([str(data), str(out), "--short_side=16"])
    assert "is already complete" in capsys.readouterr().out
    assert contents(out) == before
    (data / "china" / "000.jpg").rename(data / "flower" / "999.jpg")
    assert "sample_blake2b" in fails(data, out, "--short_side=16")
    shutil.rmtree(data / "china")
    error = fails(data, out, "--short_side=16")
    assert re.search(r"num_source_examples: \d before, \d now", error)
    assert "another folder" in error


def test_packing_resumes_after_a_full_disk(photos, tmp_path):
    full = tmp_path / packed.UNFINISHED / "validation-00000-of-00001.array_record"
    full.parent.mkdir()
    full.symlink_to("/dev/full")
    args = [photos, tmp_path, "--short_side=16"]
    error = fails(*args)
    assert "No space left on device" in error
    assert "run the same command again" in error
    full.unlink()
    main([str(arg) for arg in args])
    assert len(open_source(str(tmp_path), "train")) == 84


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bundled:fashion_mnist_10k"], "since channels=3"),
        (["bundled:climate", "--splits=train,test"], "split='test'"),
        (["bundled:climate", "--splits=train[:10%]"], "Name a slice"),
        (["bundled:climate", "--splits=train,train"], "different names"),
        (["bundled:climate", "--workers=0"], "workers=0"),
        (["bundled:climate", "--channels=0"], "channels=0"),
        (["bundled:climate", "--quality=101"], "quality=101"),
        (["bundled:climate", "--short_side=-1"], "short_side=-1"),
        (["bundled:climate", "--shard_mb=0"], "shard_mb=0"),
        (["bundled:climate", "--max_image_pixels=0"], "max_image_pixels=0"),
        (["bundled:climate", "--max_file_mb=0"], "max_file_mb=0"),
        (["nowhere"], "dataset='nowhere'"),
    ],
)
def test_wrong_arguments(tmp_path, args, message):
    dataset, *flags = args
    assert message in fails(dataset, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_images_over_the_limits_are_skipped(tmp_path):
    images = tmp_path / "images"
    (images / "train").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (30, 20 + i)).save(images / "train" / f"{i}.png")
    (images / "train" / "2.png").write_bytes(bytes(1_000_001))
    limits = ["--splits=train", "--max_image_pixels=600", "--max_file_mb=1"]
    main([str(images), str(tmp_path / "out"), *limits])
    assert len(open_source(str(tmp_path / "out"), "train")) == 1
    skipped = (tmp_path / "out" / "skipped.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[1:3] for line in skipped] == [
        ["train/1.png", "too large"],
        ["train/2.png", "too large"],
    ]
    assert "simmim pack: --max_image_pixels" in skipped[0]
    assert "simmim pack: --max_file_mb" in skipped[1]


def test_processes_that_pack_do_not_import_jax():
    code = "import simmim_jax.data.pack, sys; print({'jax'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert run.stdout == b"set()\n"


# ---- Arrays --------------------------------------------------------------------------


def test_float32_arrays_are_packed_losslessly(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 6, 8, 300)).astype(np.float32)
    np.save(tmp_path / "set.npy", images)
    np.save(tmp_path / "set_labels.npy", np.arange(40) % 3)
    args = [str(tmp_path / "set.npy"), str(tmp_path / "out"), "--channels=300"]
    assert "--format=jpeg cannot store float32 images" in fails(*args, "--short_side=4")
    main([*args, "--format=raw"])
    for split in ("train", "validation"):
        expected = open_source(str(tmp_path / "set.npy"), split)
        found = open_source(str(tmp_path / "out"), split)
        assert len(found) == len(expected)
        np.testing.assert_array_equal(found.labels, expected.labels)
        for i in range(len(found)):
            pixels = decode(found[i]["image"], Decoding(300))
            np.testing.assert_array_equal(pixels, expected[i]["image"])
            assert pixels.dtype == np.float32


@pytest.fixture
def measured(tmp_path):
    """Write GeoTIFFs of two named bands; the first has no data on the left."""
    xml = (
        '<GDALMetadata><Item name="DESCRIPTION" sample="0" role="description">red'
        '</Item><Item name="DESCRIPTION" sample="1" role="description">nir</Item>'
        "</GDALMetadata>"
    )
    tags = [(42112, 2, 0, xml, True), (42113, 2, 0, "-32768", True)]
    folder = tmp_path / "measured"
    folder.mkdir()
    for i in range(4):
        image = np.full((40, 64, 2), 29_000 + i, np.int16)
        image[:, :32, 0] = -32768
        tifffile.imwrite(
            folder / f"{i}.tif",
            image,
            photometric="minisblack",
            planarconfig="contig",
            extratags=tags,
        )
    return folder


@pytest.mark.parametrize("short_side", [0, 10])
def test_names_and_nodata_are_kept(measured, tmp_path, short_side):
    out = tmp_path / "out"
    args = ["--format=raw", "--channels=2", f"--short_side={short_side}"]
    main([str(measured), str(out), *args])
    for split in ("train", "validation"):
        source, found = (open_source(str(p), split) for p in (measured, out))
        assert len(found) == len(source)
        for i in range(len(found)):
            raster = read(found[i]["image"], Decoding(2))
            assert (raster.bands, raster.nodata) == (("red", "nir"), -32768)
            original = read(source[i]["image"], Decoding(2)).pixels
            # Neighbours keep their values: no mixture of both is among them.
            step = 40 // (short_side or 40)
            np.testing.assert_array_equal(raster.pixels, original[::step, ::step])
            assert raster.pixels.dtype == np.int16
    nir = read(found[0]["image"], Decoding(1, ("nir",))).pixels
    assert (nir >= 29_000).all()
    main([str(measured), str(out), *args])  # complete, and the same


def test_jpegs_have_no_pixels_without_data(measured, tmp_path):
    args = ["--channels=2", "--value_range", "0", "32767", "--short_side=8"]
    assert "--format=jpeg cannot store" in fails(measured, tmp_path / "out", *args)
    for path in measured.iterdir():
        image = np.full((40, 64), 9, np.uint8)
        image[:, :32] = 0
        tifffile.imwrite(path, image, extratags=[(42113, 2, 0, "0", True)])
    error = fails(measured, tmp_path / "out", "--channels=1", "--short_side=8")
    assert "would mix pixels without data, 0, with others" in error


def test_jpegs_have_no_names_of_bands(tmp_path):
    xml = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{name}</Item>'
        for i, name in enumerate(("red", "green", "nir"))
    )
    tags = [(42112, 2, 0, f"<GDALMetadata>{xml}</GDALMetadata>", True)]
    image = np.full((40, 64, 3), 9, np.uint8)
    (tmp_path / "named").mkdir()
    for i in range(4):
        tifffile.imwrite(tmp_path / f"named/{i}.tif", image, extratags=tags)
    error = fails(tmp_path / "named", tmp_path / "out", "--short_side=8")
    assert "--format=jpeg would lose the names of bands red, green, nir" in error


def test_unfinished_sets_of_the_first_version_are_resumed(measured, tmp_path):
    """Their plans know neither names nor nodata, which photographs do not have."""
    images = tmp_path / "images"
    write_photographs(images, [f"{i}.jpg" for i in range(4)])
    options = Options(short_side=16, format="raw")
    for place, same in ((images, True), (measured, False)):
        channels = 3 if same else 2
        chosen = dataclasses.replace(options, channels=channels)
        source = open_source(str(place), "train")
        plan, _ = make_plan({"train": source}, str(place), chosen, 64)
        digest = hashlib.blake2b(digest_size=16)
        count = len(source)
        for index in np.random.default_rng(0).permutation(np.arange(count)).tolist():
            example = source[index]
            path = os.path.relpath(example["path"], place)
            digest.update(packed.to_record(example["image"], example["label"], path))
        found = plan["splits"]["train"]["sample_blake2b"]
        assert (found == digest.hexdigest()) == same


def test_damaged_arrays_are_skipped_with_their_path(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(8):
        np.save(folder / f"{i}.npy", np.full((4, 5, 2), i, np.float32))
    os.truncate(folder / "3.npy", 200)
    args = ["--format=raw", "--channels=2"]
    main([str(folder), str(tmp_path / "out"), *args])
    lines = (tmp_path / "out" / "skipped.tsv").read_text().splitlines()
    assert [line.split("\t")[1:3] for line in lines[1:]] == [["3.npy", "truncated"]]


def test_images_without_a_label_stay_without(tmp_path):
    write_photographs(tmp_path, ["1.jpg", "2.jpg", "3.jpg"])
    rows = ["path,label,split", "1.jpg,a,train", "2.jpg,,train", "3.jpg,b,train"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    out = str(tmp_path / "packed")
    main([str(tmp_path / "list.csv"), out, "--splits=train", "--short_side=32"])
    train = open_source(out, "train")
    assert train.labels.tolist() == [0, -1, 1]
    assert train.class_names == ("a", "b")
