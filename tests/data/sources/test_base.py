"""Subsets of labelled sources, and sources made from data in Python."""

import operator
import pickle

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.sources.base import (
    ArraySource,
    SubsetSource,
    absent_classes,
    as_source,
    subset,
)
from simmim_jax.errors import UserError
from tests.images import encoded


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
        if num_labels == 12:  # the odd one belongs to either of the larger classes
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


def test_a_subset_keeps_images_with_their_labels():
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


# ---- Data from Python ----------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = [2, 0, 1, 2, 0, 1]


class Elements:
    """Grain's random-access protocol: __len__, and __getitem__ by an integer."""

    def __init__(self, elements):
        self.elements = elements
        self.reads = 0

    def __len__(self):
        return len(self.elements)

    def __getitem__(self, record_key):
        self.reads += 1
        return self.elements[operator.index(record_key)]

    def __repr__(self):
        return f"Elements({len(self)})"


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_arrays_are_sources(dtype):
    images = PIXELS.astype(dtype)
    source = as_source(images)
    assert isinstance(source, ArraySource)
    assert (source.labels, source.class_names) == (None, ())
    assert source.images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(source[4]["image"], images[4])
    assert source[4]["label"] == -1
    if dtype in (np.uint8, np.float32):
        assert source.images is images
    labelled = as_source(images, LABELS, ["a", "b", "c"])
    assert labelled.labels.tolist() == LABELS
    assert labelled.class_names == ("a", "b", "c")
    assert as_source(images, np.array(LABELS)).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("kind", "labelled"),
    [
        (lambda image, label: {"image": image, "label": label}, True),
        (lambda image, label: {"image": image, "label": np.int64(label)}, True),
        (lambda image, label: (image, label), True),
        (lambda image, label: {"image": image, "path": f"{label}.png"}, False),
        (lambda image, label: image, False),
        (lambda image, label: encoded(Image.fromarray(image)), False),
        (lambda image, label: {"image": encoded(Image.fromarray(image))}, False),
        (lambda image, label: image.astype(np.float64), False),
        (lambda image, label: Image.fromarray(image), False),
    ],
)
def test_random_access_sources_of_any_element(kind, labelled):
    elements = [kind(*pair) for pair in zip(PIXELS, LABELS, strict=True)]
    for data in (Elements(elements), elements):
        source = pickle.loads(pickle.dumps(as_source(data)))
        assert len(source) == 6
        assert (None if source.labels is None else source.labels.tolist()) == (
            LABELS if labelled else None
        )
        assert source.class_names == (("0", "1", "2") if labelled else ())
        for i in range(6):
            example = source[np.int64(i)]
            np.testing.assert_array_equal(
                decode(example["image"], Decoding(3)), PIXELS[i]
            )
            assert example["label"] == (LABELS[i] if labelled else -1)
            assert type(example["label"]) is int


def test_given_labels_replace_those_of_elements_and_nothing_is_read():
    data = Elements([(image, 0) for image in PIXELS])
    source = as_source(data, LABELS, ("x", "y", "z"))
    reads = data.reads
    assert source.labels.tolist() == LABELS
    assert source.class_names == ("x", "y", "z")
    assert reads == data.reads <= 1
    assert [source[i]["label"] for i in range(6)] == LABELS


def test_labels_of_elements_are_read_once():
    data = Elements(
        [(image, label) for image, label in zip(PIXELS, LABELS, strict=True)]
    )
    source = as_source(data, class_names=("x", "y", "z"))
    assert source.labels.tolist() == LABELS
    reads = data.reads
    assert source.labels.tolist() == LABELS
    assert data.reads == reads
    few = subset(source, 3, seed=0)
    assert sorted(few[i]["label"] for i in range(3)) == [0, 1, 2]


def test_an_element_without_a_label_makes_the_source_unlabelled():
    source = as_source([(PIXELS[0], 0), PIXELS[1]])
    assert (source.labels, source.class_names) == (None, ())
    assert source[1]["label"] == -1


def test_sources_are_returned_unchanged():
    source = labelled_source([2, 2])
    assert as_source(source) is source
    renamed = as_source(source, class_names=("x", "y"))
    assert renamed.class_names == ("x", "y")
    assert renamed.labels.tolist() == source.labels.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PIXELS[0],), r"array \[4, 5, 3\]: expected \[n, h, w, c\].*image\[None\]"),
        ((PIXELS.astype(complex),), "data has dtype complex128: expected integers"),
        ((PIXELS, LABELS[:5]), r"labels is int64 \[5\]: expected integers \[6\]"),
        ((PIXELS, [0.5] * 6), r"labels is float64 \[6\]: expected integers"),
        ((PIXELS, [-1] * 6), "from -1 to -1: expected classes, counted from 0"),
        ((PIXELS, None, ["a"]), r"class_names=\('a',\) without labels"),
        (([*PIXELS], None, ["a"]), r"class_names=\('a',\) without labels"),
        ((PIXELS, LABELS, ["a", "b"]), "2 names, but the largest label is 2"),
        (({"image": PIXELS},), "type dict: expected an array.*as data and labels"),
        (("/data",), "type str: expected an array.*`open_source` for paths"),
        ((iter(PIXELS),), "expected an array .* or an object with __len__"),
        (([{"pixels": 1}],), "Example 0 of list has the keys pixels: expected 'image'"),
        (([(1, 2, 3)],), r"Example 0 of list is a tuple of 3: expected \(image, label"),
        (([(PIXELS[0], "cat")],), "has the label 'cat': expected an integer"),
        (([object()],), "Example 0 of list has dtype object: expected integers"),
    ],
)
def test_other_data_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        as_source(*arguments)


def test_errors_of_later_elements_name_them():
    source = as_source([PIXELS[0], {"pixels": 1}])
    with pytest.raises(UserError, match="Example 1 of list has the keys pixels"):
        source[1]


def test_the_names_of_elements_must_suffice():
    source = as_source([(PIXELS[0], 0), (PIXELS[1], 5)], class_names=("a", "b"))
    with pytest.raises(UserError, match="the largest label is 5"):
        _ = source.class_names


def test_classes_without_examples():
    source = ArraySource(np.zeros((3, 1, 1, 1), np.uint8), np.array([0, 2, 2]), "abcd")
    assert absent_classes(source) == ("b", "d")
    assert absent_classes(SubsetSource(source, np.array([1]))) == ("a", "b", "d")
    assert absent_classes(ArraySource(source.images, None, ())) == ()
