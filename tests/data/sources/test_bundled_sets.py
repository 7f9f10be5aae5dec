"""The data sets that come with the package."""

import numpy as np
import pytest

from simmim_jax.data.sources.bundled_sets import _BUNDLED_DIR
from simmim_jax.data.sources.registry import check_source, open_source


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


def test_climate_has_unlabelled_patches_and_splits_that_do_not_overlap():
    source = open_source("bundled:climate", "unlabelled")
    assert len(source) == 5150
    assert source.class_names == ()
    assert source.labels is None
    assert source[0]["label"] == -1
    assert source.images.std(axis=(1, 2, 3)).max() > 20  # not blank

    with np.load(_BUNDLED_DIR / "climate-patches.npz") as patches:
        train, held_out = patches["unlabelled_corners"], patches["validation_corners"]
        assert set(map(tuple, patches["train_corners"])) <= set(map(tuple, train))
    distance = np.abs(train[:, None].astype(int) - held_out[None].astype(int))
    # 64 pixels of a patch and 32 of margin between any two corners.
    assert distance.max(axis=-1).min() >= 64 + 32


def test_bundled_names_and_splits_are_listed_in_errors():
    for function in (check_source, open_source):
        with pytest.raises(ValueError, match=r"bundled:cifar10.*bundled:climate"):
            function("bundled:cifar10", "train")
        with pytest.raises(ValueError, match=r"split='test'.*train, validation"):
            function("bundled:fashion_mnist_10k", "test")
