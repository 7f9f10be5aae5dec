"""What is said of real files of each kind before training on them."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from images import (
    PHOTOS,
    encoded,
    gradient,
    npy,
    write_image,
    write_photographs,
)
from PIL import Image

from simmim_jax.data.sources.registry import open_source
from simmim_jax.data.survey.inspect import BandRange, Classes, inspect, kind
from simmim_jax.errors import NotFoundError


def write(folder: Path, **files: bytes) -> str:
    """Write files; the name a__b_png is a/b.png."""
    for name, data in files.items():
        stem, _, ending = name.replace("__", "/").rpartition("_")
        path = folder / f"{stem}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


def png(array: np.ndarray) -> bytes:
    return encoded(Image.fromarray(array))


def noise(*shape: int, seed: int = 0, high: int = 256, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, dtype)


def test_folder_of_photographs_with_splits_and_classes(tmp_path):
    write_photographs(
        tmp_path,
        ["train/cat/a.jpg", "train/cat/b.jpg", "train/dog/c.jpg", "val/dog/d.JPG"],
    )
    found = inspect(str(tmp_path))
    assert found.splits == {"train": 3, "validation": 1}
    assert found.files == {".jpg": 4}
    assert found.encodings == {"JPEG": 4}
    assert found.dtypes == {"uint8": 4}
    assert found.bands == {3: 4}
    assert found.sizes == ((427, 640), (427, 640), (427, 640))
    assert found.classes == Classes(2, ("dog", 1), ("cat", 2))
    assert found.unreadable == ()
    # Two photographs, written twice each; one pair is in both splits.
    (oddity,) = found.oddities
    assert oddity.startswith("2 of 4 sampled images are copies of others, such as ")
    assert oddity.endswith(", in train and validation")
    dataset = f"--config.data.dataset={tmp_path}"
    assert found.command == ("simmim", "train", "--config=vit_base", dataset)
    assert kind(open_source(str(tmp_path), "train"), 4) == "JPEG, 3 x uint8, 427x640"
    json.dumps(found.__dict__, default=lambda each: each.__dict__)


def test_the_command_evaluates_by_what_there_is(tmp_path):
    for name in ("train/1.png", "train/2.png", "test/3.png"):
        write_image(tmp_path / name)
    assert "--config.data.eval_split=test" in inspect(str(tmp_path)).command
    shutil.rmtree(tmp_path / "test")
    dataset = f"--config.data.dataset={tmp_path}/train"
    assert dataset in inspect(str(tmp_path)).command


def test_deep_grey_files_of_12_bits(tmp_path):
    values = noise(40, 64, high=4096, dtype=np.uint16)
    values[0, :2] = 0, 4095
    found = inspect(write(tmp_path, a_png=png(values), b_png=png(values[::-1])))
    assert found.dtypes == {"uint16": 2}
    assert found.values == (BandRange("0", 0.0, 4095.0, 0.0),)
    assert found.oddities == (
        "values of 12 bits in files of 16: they are kept, or mapped to 8 bits with "
        "--config.data.value_range=0,4095",
    )
    assert "--config.data.channels=1" in found.command


def test_fourth_band_that_is_no_transparency(tmp_path):
    smooth = [gradient(32, 32, 4) + 8 * np.uint8(i) for i in range(3)]
    mask = gradient(32, 32, 4)
    mask[:, :, 3] = 255
    found = inspect(
        write(tmp_path / "bands", **{f"i{i}_png": png(a) for i, a in enumerate(smooth)})
    )
    (oddity,) = found.oddities
    assert oddity.startswith("the last of 4 channels varies smoothly in 3 of 3 sampled")
    assert "--config.data.channels=4" in found.command
    colours = {f"c{i}_png": png(gradient(32, 32, 3) + np.uint8(i)) for i in range(2)}
    found = inspect(write(tmp_path / "mixed", a_png=png(smooth[0]), **colours))
    assert not any("channels" in flag for flag in found.command)
    found = inspect(write(tmp_path / "logos", a_png=png(mask), b_png=png(mask[::-1])))
    assert found.oddities == ()
    assert not any("channels" in flag for flag in found.command)


def test_arrays_with_missing_values_and_mixed_kinds(tmp_path):
    fields = np.ones((8, 10, 2), np.float32)
    fields[:2, :, 1] = np.nan
    fields[7, 7] = -3, 5
    other = noise(16, 16, 3)
    found = inspect(
        write(tmp_path, a_npy=npy(fields), b_npy=npy(fields), c_npy=npy(other))
    )
    assert found.encodings == {"array": 3}
    assert found.values == (BandRange("0", -3, 1, 0), BandRange("1", 1, 5, 0.25))
    assert found.oddities[:3] == (
        "mixed types of 3 sampled images: float32: 2; uint8: 1",
        "mixed numbers of bands of 3 sampled images: 2: 2; 3: 1",
        "sizes differ: crops are resized, which mixes neighbouring values",
    )


def test_images_without_values_and_of_one_value(tmp_path):
    empty = np.full((4, 4, 1), np.nan, np.float32)
    flat = np.full((4, 4, 1), 7, np.float32)
    found = inspect(write(tmp_path, a_npy=npy(empty), b_npy=npy(flat)))
    assert found.oddities == (
        "1 of 2 sampled images have one value per band",
        "1 of 2 sampled images have no valid value",
    )


def test_photographs_that_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(PHOTOS[0]) as photo:
        turned = encoded(photo, "JPEG", exif=exif)
    found = inspect(write(tmp_path, a_jpg=turned, b_jpg=PHOTOS[1].read_bytes()))
    assert set(found.sizes) == {(640, 427), (427, 640)}
    assert found.oddities == (
        "1 of 2 sampled images are turned upright by their EXIF tag",
    )


def test_unreadable_files_are_listed_with_reasons(tmp_path):
    photo = PHOTOS[0].read_bytes()
    found = inspect(
        write(
            tmp_path,
            a_jpg=photo,
            b_jpg=b"",
            c_jpg=b"GIF89a",
            d_png=b"\x89PNG\r\n\x1a\n" + bytes(50),
            e_jpg=b"",
        )
    )
    assert found.sampled == 5
    assert sum(group.images for group in found.unreadable) == 4
    groups = {group.reason: group for group in found.unreadable}
    empty = groups["empty"]
    assert empty.images == 2
    assert empty.first in (str(tmp_path / "b.jpg"), str(tmp_path / "e.jpg"))
    assert empty.message.startswith("The file is empty.")
    nothing = inspect(write(tmp_path / "bad", a_jpg=b"x", b_jpg=b"y"))
    assert nothing.sizes == ()
    assert nothing.command == ()


def test_types_that_end_a_run_are_listed_too(tmp_path):
    values = [npy(np.ones((4, 4), np.complex64)), npy(np.arange(16.0).reshape(4, 4))]
    found = inspect(write(tmp_path, a_npy=values[0], b_npy=values[1]))
    assert [group.reason for group in found.unreadable] == ["refused"]
    assert "complex64" in found.unreadable[0].message


def test_a_test_split_by_another_name_is_not_counted_twice():
    found = inspect("bundled:fashion_mnist_10k", count=8)
    assert found.splits == {"train": 8000, "validation": 2000}
    assert found.classes == Classes(10, ("Trouser", 776), ("Dress", 827))
    assert found.sampled == 8
    assert inspect("bundled:climate", ("unlabelled",)).classes is None


def test_missing_data_is_one_sentence(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        inspect(str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_100_000_files_take_seconds(tmp_path):
    for folder in map(str, range(100)):
        first = tmp_path / folder / "0.png"
        first.parent.mkdir()
        first.write_bytes(png(noise(8, 8, 3)))
        for name in range(1, 1000):
            first.with_stem(str(name)).hardlink_to(first)
    begin = time.perf_counter()
    found = inspect(str(tmp_path))
    assert sum(found.splits.values()) == 100_000
    assert time.perf_counter() - begin < 10
