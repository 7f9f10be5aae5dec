"""Subsets of labelled sources."""

import numpy as np
import pytest

from simmim_jax.data.sources.base import ArraySource, subset


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
