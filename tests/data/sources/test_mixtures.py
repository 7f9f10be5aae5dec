"""Several sources as one: shares, classes, batches, and names in configs."""

import pickle

import numpy as np
import pytest

from simmim_jax.data.sources.base import ArraySource, labelled
from simmim_jax.data.sources.mixtures import mix, parse_names
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError
from tests.images import write_image
from tests.stores import contents, trains_and_packs


def source(values, labels=None, names=()):
    images = np.array(values, np.uint8)[:, None, None, None]
    return ArraySource(images, None if labels is None else np.array(labels), names)


def values(mixed):
    return [int(mixed[i]["image"].item()) for i in range(len(mixed))]


def test_without_weights_they_follow_each_other():
    mixed = mix([source(range(3)), source(range(10, 15))])
    assert values(mixed) == [0, 1, 2, 10, 11, 12, 13, 14]
    assert values(pickle.loads(pickle.dumps(mixed))) == values(mixed)
    assert (mixed.labels, mixed.class_names) == (None, ())


@pytest.mark.parametrize("weights", [(0.5, 0.5), (3, 1), (0.01, 0.99), (0.2, 0.8)])
def test_shares_are_the_weights_and_no_example_is_lost(weights):
    mixed = mix([source(range(100)), source(range(100, 125))], weights)
    found, times = np.unique(values(mixed), return_counts=True)
    assert found.tolist() == list(range(125))
    share = times[:100].sum() / len(mixed)
    np.testing.assert_allclose(share, weights[0] / sum(weights), atol=0.5 / len(mixed))
    for part in (times[:100], times[100:]):
        assert part.max() - part.min() <= 1  # all examples of a source alike
    assert times[:100].min() == 1 or times[100:].min() == 1


def test_classes_are_merged_by_name():
    cats = source([1, 2, 3], [0, 1, -1], ("cat", "owl"))
    dogs = source([4, 5], [1, 0], ("dog", "cat"))
    mixed = mix([cats, dogs, source([6])])
    assert mixed.class_names == ("cat", "dog", "owl")
    assert mixed.labels.tolist() == [0, 2, -1, 0, 1, -1]
    assert [mixed[i]["label"] for i in range(6)] == mixed.labels.tolist()
    assert values(labelled(mixed)) == [1, 2, 4, 5]
    weighted = mix([cats, dogs], (1, 4))
    assert weighted.labels.tolist() == [0, 2, -1, *[0, 1] * 6]


def test_records_are_read_for_their_labels_only_if_some_may_have_none():
    class Records(ArraySource):
        reads_labels = True

    records = Records(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 0]), ("cat",))
    whole = source([1, 2], [0, 0], ("cat",))
    assert mix([records, whole]).reads_labels
    assert labelled(mix([records, source([3])])).labels.tolist() == [0, 0]
    for other in (source([3]), source([3, 4], [0, -1], ("cat",))):
        assert not mix([records, other]).reads_labels
    assert not mix([whole, whole]).reads_labels


def test_names_that_are_the_same_or_numbers_keep_their_order():
    same = ("zebra", "ant")
    mixed = mix([source([1], [0], same), source([2], [1], same)])
    assert (mixed.class_names, mixed.labels.tolist()) == (same, [0, 1])
    numbers = tuple(map(str, range(11)))
    mixed = mix([source([1], [10], numbers), source([2], [1], ("0", "1"))])
    assert (mixed.class_names, mixed.labels.tolist()) == (numbers, [10, 1])


@pytest.mark.parametrize("weights", [(1, 0), (1, -1), (1, float("nan")), (1, 2, 3)])
def test_weights_are_checked(weights):
    with pytest.raises(UserError, match="expected a positive number for each of 2"):
        mix([source([1]), source([2])], weights)


def test_epochs_have_a_largest_length():
    with pytest.raises(UserError, match=r"an epoch of 10,000: expected at most 100 t"):
        mix([source(range(10)), source(range(10))], (1, 999))


def test_folders_as_one(tmp_path):
    for value in range(30):
        split = "train" if value < 20 else "val"
        name = f"{'ab'[value % 2]}/{split}/{'dog' if value % 3 else 'cat'}/{value}.png"
        write_image(tmp_path / name, value, (5, 4))
    text = str([str(tmp_path / "a"), str(tmp_path / "b")])
    expected = {value: int(value % 3 > 0) for value in range(30)}
    trains_and_packs(text, tmp_path / "packed", expected)
    names = [(str(tmp_path / "a"), 3), (str(tmp_path / "b"), 1)]
    for dataset in (names, str(names)):
        check_source(dataset, "train")
        train = open_source(dataset, "train")
        assert train.class_names == ("cat", "dog")
        assert len(train) == 40
    assert contents(str(tmp_path / "a")) == {
        value: label for value, label in expected.items() if value % 2 == 0
    }


def test_texts_of_lists():
    assert parse_names("/data/a") is None
    assert parse_names("['/a', '/b,c']") == (["/a", "/b,c"], [])
    assert parse_names("(('/a', 1), ('/b', 0.5))") == (["/a", "/b"], [1, 0.5])
    assert parse_names(["/a", "/b"]) == (["/a", "/b"], [])
    for text in ("[", "[]", "[1]", "['/a', ('/b', 1)]", "[('/a', '1')]", "(1)", {}):
        with pytest.raises(UserError, match="expected the name of a data set, a list"):
            parse_names(text)
