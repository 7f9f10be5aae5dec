"""Streams of batches: what they contain, in which order, and how they resume."""

import dataclasses
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.loader import pipeline
from simmim_jax.data.sources.base import ArraySource, SubsetSource
from simmim_jax.data.views.base import Spec, View
from simmim_jax.errors import UserError
from tests.batches import eval_batches, train_iterator

SMALL = {"image_size": (8, 8), "channels": 1, "interpolation": "bilinear"}
NO_CROP = {**SMALL, "fast_decode": False, "scale": None, "ratio": (1.0, 1.0)}
CROP = {**SMALL, "fast_decode": False, "scale": (0.3, 1.0), "ratio": (3 / 4, 4 / 3)}


def array_source(count: int, size: int = 8) -> ArraySource:
    """Every label is the index of its example, which its pixels also tell."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count) % 256
    return ArraySource(images, np.arange(count, dtype=np.int32), ())


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """The images of another source as PNG files."""

    source: ArraySource

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index, /):
        file = io.BytesIO()
        Image.fromarray(self.source.images[index][..., 0]).save(file, "PNG")
        return {"image": file.getvalue(), "label": int(self.source.labels[index])}

    @property
    def class_names(self):
        return ()

    @property
    def labels(self):
        return self.source.labels


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def labels_of(batches):
    return np.concatenate([batch["label"] for batch in batches])


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


# ---- Training: contents and order ----------------------------------------------------


@pytest.mark.parametrize("options", [NO_CROP, CROP], ids=["no crop", "crop"])
def test_shapes_and_dtypes(options):
    batch = next(train_iterator(array_source(20), batch_size=6, seed=0, **options))
    assert batch["image"].shape == (6, 8, 8, 1)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (6,)
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("wrap", [lambda s: s, EncodedSource], ids=["raw", "encoded"])
def test_without_a_crop_the_pixels_are_those_of_the_source(wrap):
    source = array_source(20)
    for batch in take(train_iterator(wrap(source), batch_size=6, seed=0, **NO_CROP), 5):
        np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])


def test_every_epoch_has_every_example_once_in_a_new_order():
    iterator = train_iterator(array_source(23), batch_size=5, seed=0, **NO_CROP)
    # 23 batches of 5 are 5 epochs of 23: batches run on from one into the next.
    epochs = labels_of(take(iterator, 23)).reshape(5, 23)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(23), (5, 1)))
    assert len(np.unique(epochs, axis=0)) == 5


def test_a_batch_larger_than_the_source_holds_several_epochs():
    iterator = train_iterator(array_source(4), batch_size=12, seed=0, **NO_CROP)
    counts = np.bincount(next(iterator)["label"])
    np.testing.assert_array_equal(counts, [3, 3, 3, 3])


def test_seeds_change_order_and_crops_and_nothing_else_does():
    def batches(seed, **changes):
        options = {**CROP, "batch_size": 5, **changes}
        return take(train_iterator(array_source(23), seed=seed, **options), 6)

    assert_same(batches(0), batches(0))
    assert_same(batches(0), batches(0, num_threads=1))
    assert (labels_of(batches(0)) != labels_of(batches(1))).any()


def test_crops_differ_between_epochs_and_between_neighbours():
    whole = ArraySource(np.tile(array_source(1, 16).images, (2, 1, 1, 1)), None, ())
    iterator = train_iterator(whole, batch_size=8, seed=0, **CROP)
    crops = next(iterator)["image"].reshape(8, -1)
    assert len(np.unique(crops, axis=0)) == 8


def test_unlabelled_examples_have_label_minus_one():
    source = ArraySource(array_source(9).images, None, ())
    for options in (NO_CROP, CROP):
        batch = next(train_iterator(source, batch_size=4, seed=0, **options))
        assert batch["label"].tolist() == [-1] * 4


# ---- Training: processes -------------------------------------------------------------


@pytest.mark.parametrize("options", [NO_CROP, CROP], ids=["no crop", "crop"])
@pytest.mark.parametrize("process_count", [2, 3])
def test_global_batches_do_not_depend_on_the_number_of_processes(
    options, process_count
):
    source = array_source(23)
    alone = take(train_iterator(source, batch_size=6, seed=3, **options), 8)
    parts = [
        take(
            train_iterator(
                source,
                batch_size=6 // process_count,
                seed=3,
                process_index=index,
                process_count=process_count,
                **options,
            ),
            8,
        )
        for index in range(process_count)
    ]
    together = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(alone, together)


def test_processes_together_cover_each_epoch_exactly_once():
    labels = [
        labels_of(
            take(
                train_iterator(
                    array_source(24),
                    batch_size=3,
                    seed=0,
                    process_index=index,
                    process_count=4,
                    **NO_CROP,
                ),
                2,
            )
        )
        for index in range(4)
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(labels)), np.arange(24))


# ---- Training: resume ----------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda s: s, EncodedSource], ids=["raw", "encoded"])
@pytest.mark.parametrize("options", [NO_CROP, CROP], ids=["no crop", "crop"])
def test_resume_in_the_middle_of_an_epoch_is_exact(wrap, options):
    source = wrap(array_source(23))
    options = {**options, "batch_size": 5, "seed": 1, "num_threads": 3}
    iterator = train_iterator(source, **options)
    take(iterator, 7)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 6)

    fresh = train_iterator(source, **options)
    take(fresh, 2)  # Whatever was read before is forgotten.
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert_same(take(fresh, 6), expected)

    iterator.set_state(state)  # Backwards in the iterator it came from.
    assert_same(take(iterator, 6), expected)


@pytest.mark.parametrize("num_workers", [1, 2, 16])
def test_workers_yield_and_resume_what_threads_do(num_workers):
    source = SubsetSource(array_source(40), np.arange(23))
    options = {**CROP, "batch_size": 5, "seed": 1}
    threads = train_iterator(source, **options)
    workers = train_iterator(source, num_workers=num_workers, num_threads=2, **options)
    assert_same(take(workers, 7), take(threads, 7))
    state = workers.get_state()
    assert state == threads.get_state()
    workers.set_state(state)
    assert_same(take(workers, 4), take(threads, 4))
    workers.close()


def test_other_numbers_of_processes_go_on_where_the_run_was():
    source = array_source(48)

    def run(state, batch_size, process_count, steps):
        parts = []
        for index in range(process_count):
            iterator = train_iterator(
                source,
                batch_size=batch_size,
                seed=0,
                process_index=index,
                process_count=process_count,
                **CROP,
            )
            if state:
                iterator.set_state(state)
            parts.append(labels_of(take(iterator, steps)))
        return np.concatenate(parts).tolist(), iterator.get_state()

    first, state = run(None, 4, 2, 2)  # 16 of 48
    second, state = run(json.loads(json.dumps(state)), 2, 3, 2)  # 12
    third, state = run(state, 20, 1, 1)
    assert sorted(first + second + third) == list(range(48))
    assert state["examples_seen"] == 48


def test_a_position_fits_other_batch_sizes_and_process_counts():
    source = array_source(23)
    iterator = train_iterator(source, batch_size=6, seed=0, **CROP)
    take(iterator, 5)
    expected = take(iterator, 2)
    half = train_iterator(
        source, batch_size=3, seed=0, process_index=1, process_count=2, **CROP
    )
    take(half, 1)
    half.set_state({**half.get_state(), "examples_seen": 30})
    assert_same(
        take(half, 2),
        [{key: value[3:] for key, value in batch.items()} for batch in expected],
    )


def test_a_position_in_other_data_is_refused():
    state = train_iterator(array_source(23), batch_size=5, seed=0, **CROP).get_state()
    other = train_iterator(array_source(24), batch_size=5, seed=0, **CROP)
    with pytest.raises(
        ValueError, match=r"num_examples=23.*num_examples=24.*same data"
    ):
        other.set_state(state)
    other = train_iterator(array_source(23), batch_size=5, seed=2, **CROP)
    with pytest.raises(ValueError, match=r"seed=0.*seed=2"):
        other.set_state(state)


# ---- Evaluation ----------------------------------------------------------------------


def eval_options(**changes):
    return {**SMALL, "crop_fraction": 1.0, "batch_size": 4, **changes}


def test_evaluation_is_exact_and_repeatable():
    source = array_source(10)
    batches = eval_batches(source, **eval_options())
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == 3
    assert_same(first, second)
    weight = np.concatenate([batch["weight"] for batch in first])
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, [1.0] * 10 + [0.0] * 2)
    np.testing.assert_array_equal(labels_of(first)[weight == 1], np.arange(10))
    images = np.concatenate([batch["image"] for batch in first])
    np.testing.assert_array_equal(images[:10], source.images)
    assert not images[10:].any()


def test_processes_evaluate_equally_many_batches_and_all_examples_once():
    seen = []
    for index in range(3):
        batches = list(
            eval_batches(
                array_source(13),
                process_index=index,
                process_count=3,
                **eval_options(),
            )
        )
        assert len(batches) == 2  # 13 of 2 x 12; the last process's second is empty.
        for batch in batches:
            assert batch["image"].shape == (4, 8, 8, 1)
            seen.extend(batch["label"][batch["weight"] == 1].tolist())
    assert sorted(seen) == list(range(13))


def test_evaluation_crops_the_middle():
    source = array_source(3, size=16)
    batches = eval_batches(source, **eval_options(crop_fraction=0.5))
    np.testing.assert_array_equal(
        next(iter(batches))["image"][:3], source.images[:, 4:12, 4:12]
    )


# ---- Errors, and what is loaded ------------------------------------------------------


def test_an_empty_source_is_refused():
    empty = array_source(0)
    with pytest.raises(ValueError, match="empty: expected at least one"):
        train_iterator(empty, batch_size=2, seed=0, **CROP)
    with pytest.raises(ValueError, match="empty: expected at least one"):
        eval_batches(empty, **eval_options())


def test_neither_tensorflow_nor_the_rest_of_the_package_is_imported():
    code = (
        "import sys, simmim_jax.data.loader.pipeline\n"
        "from simmim_jax.data.sources import registry as s\n"
        "s.open_source('bundled:climate', 'validation')\n"
        "assert 'tensorflow' not in sys.modules\n"
        "ours = {m for m in sys.modules if m.startswith('simmim_jax.')}\n"
        # They import the standard library alone.
        "beside = {'simmim_jax.errors', 'simmim_jax.runtime'}\n"
        "ours -= {*beside, 'simmim_jax.runtime.host_memory'}\n"
        "assert all(m.startswith('simmim_jax.data') for m in ours), ours\n"
        "import jax\n"
        "assert not jax._src.xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ, capture_output=True
    )


# ---- Views of others -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong(View):
    """Returns what its spec does not say."""

    values: dict

    @property
    def spec(self):
        return {"image": Spec((4, 4, 3), np.uint8), "label": Spec((), np.int32)}

    def __call__(self, example, rng):
        return self.values


@pytest.mark.parametrize(
    "values",
    [
        {"image": np.zeros((4, 4, 3), np.uint8)},
        {"image": np.zeros((4, 4, 1), np.uint8), "label": 0},
        {"image": np.full((4, 4, 3), 300.7), "label": 0},
        {"image": np.zeros((4, 4, 3), np.uint8), "label": 0, "mask": 1},
    ],
    ids=["no label", "shape", "dtype", "unknown"],
)
def test_a_view_that_breaks_its_spec_ends_the_run(values):
    iterator = pipeline.train_iterator(
        array_source(8), Wrong(values=values), batch_size=4, seed=0
    )
    with pytest.raises(UserError, match=r"Wrong returned .*: expected what its spec"):
        next(iterator)


def test_a_choice_of_arrays_gives_what_the_chosen_arrays_give():
    whole, chosen = array_source(20), np.array([3, 17, 4, 9, 11, 0])
    part = ArraySource(whole.images[chosen], whole.labels[chosen], ())
    options = {"batch_size": 4, "seed": 0, **NO_CROP}
    assert_same(
        take(train_iterator(SubsetSource(whole, chosen), **options), 4),
        take(train_iterator(part, **options), 4),
    )
