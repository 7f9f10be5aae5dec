"""Folders of TIFF files, their pages as images, and windows of large ones."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError

SIDE = 100


def scene(bands=3, side=SIDE):
    values = np.random.default_rng(0).integers(0, 60_000, (side, side, bands))
    return values.astype(np.uint16)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 3:
        options = {"photometric": "minisblack", "planarconfig": "contig"} | options
    tifffile.imwrite(path, array, **options)
    return str(path)


def splits(place):
    train, held_out = (open_source(place, split) for split in ("train", "validation"))
    return [source[i] for source in (train, held_out) for i in range(len(source))]


def test_a_folder_of_files_is_a_folder_of_images(tmp_path):
    for i, name in enumerate(("a/1.tif", "a/2.TIFF", "b/3.tif")):
        save(tmp_path / "train" / name, np.full((8, 8, 13), i, np.uint16))
    source = open_source(str(tmp_path), "train")
    assert source.class_names == ("a", "b")
    assert source.labels.tolist() == [0, 0, 1]
    image = decode(source[2]["image"], Decoding(13))
    assert image.shape == (8, 8, 13)
    assert (image == 2).all()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_of_a_file(tmp_path, compression):
    pages = np.arange(40 * 6 * 5, dtype=np.uint16).reshape(40, 6, 5)
    path = save(
        tmp_path / "stack.tif",
        pages,
        planarconfig=None,
        compression=compression,
        rowsperstrip=2,
    )
    found = splits(path)
    assert len(found) == 40
    for example in found:
        number = int(example["path"].rpartition(":")[2])
        np.testing.assert_array_equal(example["image"][:, :, 0], pages[number])
    check_source(path, "train")


def test_pages_of_the_files_in_a_folder(tmp_path):
    for name, label in (("cat/1.tif", 0), ("dog/2.tif", 1)):
        pages = np.full((30, 4, 4), label, np.uint8)
        save(tmp_path / "train" / name, pages, planarconfig=None)
    source = open_source(f"{tmp_path}:pages", "train")
    assert len(source) == 60
    assert source.labels.tolist() == [0] * 30 + [1] * 30
    assert all((source[i]["image"] == source[i]["label"]).all() for i in (0, 29, 30))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": (32, 48)},
        {"tile": (32, 48), "compression": "lzw", "predictor": True},
        {"rowsperstrip": 7, "compression": "zlib", "byteorder": ">"},
    ],
    ids=["plain", "tiles", "lzw", "strips"],
)
def test_windows_of_a_scene(tmp_path, options):
    image = scene()
    path = save(tmp_path / "scene.tif", image, **options)
    found = splits(f"{path}:@32")
    assert len(found) == 16
    for example in found:
        number = int(example["path"].rpartition(":")[2])
        top, left = (min(32 * n, SIDE - 32) for n in divmod(number, 4))
        np.testing.assert_array_equal(
            example["image"], image[top : top + 32, left : left + 32]
        )


def test_windows_of_all_scenes_in_a_folder(tmp_path):
    for name, side in (("1.tif", 40), ("2.tif", 70), ("3.tif", 20)):
        save(tmp_path / "train" / name, scene(2, side), compression="zlib")
    source = open_source(f"{tmp_path}:@32", "train")
    assert len(source) == 4 + 9 + 1
    assert source[13]["image"].shape == (20, 20, 2)
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda i: copy[i]["image"], range(14)))
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, source[i]["image"])


def test_a_large_scene_is_read_in_windows(tmp_path):
    path = save(
        tmp_path / "large.tif", np.zeros((1100, 2000), np.uint8), tile=(256, 256)
    )
    assert len(splits(path)) == 3 * 4


def test_nodata_and_names_belong_to_windows(tmp_path):
    xml = (
        '<GDALMetadata><Item name="DESCRIPTION" sample="0" role="description">red'
        '</Item><Item name="DESCRIPTION" sample="1" role="description">nir</Item>'
        "</GDALMetadata>"
    )
    tags = [(42112, 2, 0, xml, True), (42113, 2, 0, "-9999", True)]
    image = scene(2).astype(np.int16)
    path = save(tmp_path / "scene.tif", image, extratags=tags)
    window = splits(f"{path}:@25")[0]["image"]
    assert (window.bands, window.nodata) == (("red", "nir"), -9999)


def test_replaced_files_are_opened_again(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((64, 64), np.uint8))
    assert not splits(f"{path}:@8")[0]["image"].any()
    save(tmp_path / "a.tif", np.ones((64, 64), np.uint8))
    os.utime(path, (1, 1))
    assert splits(f"{path}:@8")[0]["image"].all()


def test_damaged_files_are_bad_examples(tmp_path):
    for i in range(3):
        path = save(tmp_path / "train" / f"{i}.tif", scene(2), compression="zlib")
    with open(path, "r+b") as file:
        file.truncate(9)
    path = str(tmp_path / "train" / "1.tif")
    os.truncate(path, os.path.getsize(path) // 2)
    source = open_source(f"{tmp_path}:@50", "train")
    assert len(source) == 4 + 4 + 1
    for index, name in ((7, "1.tif:3"), (8, "2.tif:0")):
        with pytest.raises(BadImage, match="TIFF") as raised:
            source[index]
        assert raised.value.filename.endswith(name)


@pytest.mark.parametrize("selection", ["page", "pages@", "@0", "@large"])
def test_unknown_selections(tmp_path, selection):
    path = save(tmp_path / "a.tif", scene(2))
    with pytest.raises(UserError, match="expected"):
        open_source(f"{path}:{selection}", "train")


def test_one_small_image_is_no_data_set(tmp_path):
    path = save(tmp_path / "a.tif", scene(2))
    with pytest.raises(UserError, match="1 images"):
        open_source(path, "train")
