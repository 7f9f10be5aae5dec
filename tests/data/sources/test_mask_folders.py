"""Folders of images and masks: pairs, splits, names of classes, and what is wrong."""

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.sources.mask_folders import CLASSES
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import NotFoundError, UserError
from tests.images import write_image


def write_pairs(folder, names, masks=None):
    for name in names:
        write_image(folder / "images" / f"{name}.png")
    for name in names if masks is None else masks:
        write_image(folder / "masks" / f"{name}.png")


def test_masks_belong_to_images_of_the_same_name(tmp_path):
    for split, names in {"train": ["a/1", "b/1", "2"], "validation": ["3"]}.items():
        write_pairs(tmp_path / split, names)
    mask = Image.fromarray(np.full((10, 12), 7, np.uint8))
    mask.save(tmp_path / "train" / "masks" / "b" / "1.png")
    (tmp_path / "train" / "images" / "b" / "1.png").rename(
        tmp_path / "train" / "images" / "b" / "1.bmp"
    )
    (tmp_path / CLASSES).write_text("nothing\ncrop\n\n")
    check_source(str(tmp_path), "train")
    source = open_source(str(tmp_path), "train")
    assert [*source.images] == ["2.png", "a/1.png", "b/1.bmp"]
    assert [*source.masks] == ["2.png", "a/1.png", "b/1.png"]
    assert source[2]["mask"] == (tmp_path / "train/masks/b/1.png").read_bytes()
    assert source[2]["image"] == (tmp_path / "train/images/b/1.bmp").read_bytes()
    assert source[2]["path"] == str(tmp_path / "train/images/b/1.bmp")
    assert source.mask_classes == ("nothing", "crop")
    # As for pre-training: without labels.
    assert source.labels is None
    assert source.class_names == ()
    assert len(open_source(str(tmp_path), "validation")) == 1


def test_without_splits_one_image_in_twenty_is_held_out(tmp_path):
    write_pairs(tmp_path, [f"{i}" for i in range(40)])
    train, held_out = (open_source(str(tmp_path), s) for s in ("train", "validation"))
    assert len(train) + len(held_out) == 40
    assert 1 <= len(held_out) <= 6
    assert not {*train.images} & {*held_out.images}
    assert [*held_out.masks] == [*held_out.images]


def test_images_without_a_mask_have_none(tmp_path):
    write_pairs(tmp_path / "train", ["1", "2", "3"], masks=["2", "other"])
    source = open_source(str(tmp_path), "train")
    np.testing.assert_array_equal(source.has_mask, [False, True, False])
    assert "mask" not in source[0]
    assert "mask" in source[1]


def test_two_masks_of_an_image_are_an_error(tmp_path):
    write_pairs(tmp_path / "train", ["1"])
    np.save(tmp_path / "train" / "masks" / "1.npy", np.zeros((10, 12), np.uint8))
    with pytest.raises(UserError, match=r"'1\.npy' and '1\.png': expected one mask"):
        open_source(str(tmp_path), "train")


def test_missing_files_and_splits_are_named(tmp_path):
    write_pairs(tmp_path / "train", ["1"], masks=[])
    (tmp_path / "train" / "masks").mkdir()
    for function in (check_source, open_source):
        with pytest.raises(NotFoundError, match="masks' has no images"):
            function(str(tmp_path), "train")
        with pytest.raises(NotFoundError, match=r"split='validation' .* found train"):
            function(str(tmp_path), "validation")
