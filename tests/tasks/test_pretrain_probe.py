"""What features are worth during pre-training: neighbours and effective rank."""

import jax
import numpy as np
import pytest
import tiny_config

from simmim_jax.data.sources.base import ArraySource
from simmim_jax.errors import UserError
from simmim_jax.monitoring.writer import read_metrics
from simmim_jax.runtime import sharding
from simmim_jax.tasks import api
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.pretrain import Parts
from simmim_jax.tasks.pretrain_probe import probe
from simmim_jax.tasks.probe import effective_rank, knn_accuracy

NAMES = ("low", "high", "striped")


def kinds(count, seed=0, labels=None):
    """Noisy images of three kinds, uint8 [n 28 28 1], in batches of 16."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, 3, count)
    base = np.stack([np.full((28, 28), 60), np.full((28, 28), 190), np.eye(28) * 255])
    noise = rng.normal(0, 60, (count, 28, 28))
    images = (base[shown] + noise).clip(0, 255).astype(np.uint8)[..., None]
    labels = shown.astype(np.int32) if labels is None else labels
    return ArraySource(images, labels, NAMES)


def config(**fields):
    fields = {"probe.every": "4 steps", "probe.k": 5, "pictures": 0} | fields
    return tiny_config.typed("pretrain", **fields)


@pytest.fixture(scope="module")
def params():
    return jax.jit(Parts(config()).learner(100).init)(jax.random.key(0))


def measured(params, train, held_out, **fields):
    evaluate, said = probe(config(**fields), train, held_out, sharding.make_mesh())
    return evaluate(params, 4), said


def vectors_of(params, source):
    return Encoder.of(params, config(), 0).embed(list(source.images))


def test_neighbours_and_rank_are_those_of_the_encoders_features(params):
    train, held_out = kinds(50), kinds(37, seed=1)
    found, said = measured(params, train, held_out)
    bank, queries = (vectors_of(params, source) for source in (train, held_out))
    expected = knn_accuracy(bank, train.labels, queries, held_out.labels, k=5).top1
    assert 0.5 < expected < 1
    assert found["knn_top1"] == expected
    assert found["effective_rank"] == pytest.approx(effective_rank(queries), rel=1e-4)
    assert said == (
        "probe: effective rank of 37 held-out images, classified by the nearest of 50 "
        "training images"
    )


def test_a_sample_of_each_split_is_the_same_every_time(params):
    train, held_out = kinds(50), kinds(37, seed=1)
    found, said = measured(params, train, held_out, **{"probe.images": 20})
    assert "rank of 20 held-out images, classified by the nearest of 20 train" in said
    again, _ = measured(params, train, held_out, **{"probe.images": 20})
    assert found == again != measured(params, train, held_out)[0]


def test_examples_without_a_label_do_not_count(params):
    train, held_out = kinds(50), kinds(30, seed=1)
    train.labels[40:] = held_out.labels[20:] = -1
    found, _ = measured(params, train, held_out)
    bank, queries = (vectors_of(params, source) for source in (train, held_out))
    labels, expected = train.labels[:40], held_out.labels[:20]
    known = knn_accuracy(bank[:40], labels, queries[:20], expected, k=5)
    assert found["knn_top1"] == known.top1
    assert found["effective_rank"] == pytest.approx(effective_rank(queries), rel=1e-4)
    train.labels[:] = -1
    assert measured(params, train, held_out)[0].keys() == {"effective_rank"}


def test_without_classes_there_is_the_rank_alone(params):
    train, held_out = kinds(20), kinds(20, seed=1)
    for other in (
        ArraySource(held_out.images, None, ()),
        ArraySource(held_out.images, held_out.labels, NAMES[::-1]),
    ):
        found, said = measured(params, train, other)
        assert found.keys() == {"effective_rank"}
        assert "without labels of the same classes in both splits no accuracy" in said


@pytest.mark.parametrize(("value", "rank"), [(0.0, 1), (np.nan, 0), (np.inf, 0)])
def test_features_that_are_zero_or_not_finite_are_measured(params, value, rank):
    broken = jax.tree.map(lambda p: np.full_like(p, value), params)
    found, _ = measured(broken, kinds(20), kinds(20, seed=1))
    assert found["effective_rank"] == rank
    assert 0 <= found["knn_top1"] < 0.7


def test_a_run_writes_them_at_their_own_interval(tmp_path):
    trained = api.pretrain(
        config(duration="6 steps", eval_every="3 steps"),
        tmp_path,
        data=kinds(50),
        held_out=kinds(20, seed=1),
    )
    lines = [x for x in read_metrics(tmp_path / "metrics.jsonl") if "eval_loss" in x]
    assert [line["step"] for line in lines] == [3, 4, 6]
    assert [line["step"] for line in lines if "knn_top1" in line] == [4, 6]
    assert 1 < trained.last["effective_rank"] <= 16
    assert trained.last["knn_top1"] == lines[-1]["knn_top1"]


def test_mistakes_name_the_field(tmp_path):
    with pytest.raises(UserError, match=r"config\.probe\.temperature=0: expected more"):
        config(**{"probe.temperature": 0.0})
    with pytest.raises(UserError, match=r"config\.probe\.every='often': invalid"):
        config(**{"probe.every": "often"})
