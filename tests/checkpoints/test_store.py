"""Checkpoints are exact and atomic; the last few and the best are kept."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from simmim_jax.checkpoints import layout
from simmim_jax.checkpoints.layout import read_meta
from simmim_jax.checkpoints.store import Checkpointer, load
from simmim_jax.errors import Interrupted, NotFoundError
from simmim_jax.training import optim

PARAMS = {
    "encoder": {"kernel": jnp.arange(6.0).reshape(2, 3) / 7, "bias": jnp.ones(3)},
    "head": {"kernel": jnp.full((3, 2), -0.1)},
}


def optimizer(params):
    """Optimizer item after one update: step, and moments in optax."""
    ones = jax.tree.map(lambda p: 1.0, params)
    tx = optim.adamw(
        lambda step, scale: 1e-3 * scale,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.05,
        clip_norm=5.0,
        mask=optim.decay_mask(params, "official"),
        scales=ones,
    )
    grads = jax.tree.map(lambda p: p / 3, params)
    _, state = tx.update(grads, tx.init(params), params)
    return {"step": jnp.int32(1), "state": state}


OPTIMIZER = optimizer(PARAMS)


def opened(workdir, *, keep=2, best="eval_loss", mode="min"):
    return Checkpointer(workdir, keep=keep, best=best, mode=mode)


def save(checkpoints, step, metrics=None, params=PARAMS):
    """Save a checkpoint; parameters depend on the step unless given."""
    if params is PARAMS:
        params = jax.tree.map(lambda p: p + step, PARAMS)
    checkpoints.save(
        step,
        params=params,
        optimizer=OPTIMIZER,
        data={"position": step},
        meta={"step": step},
    )
    if metrics:
        checkpoints.rate(step, metrics)


def save_all(workdir, losses, **options):
    """Save one checkpoint per loss, from step 1; None for one without evaluation."""
    with opened(workdir, **options) as checkpoints:
        for step, loss in enumerate(losses, 1):
            save(checkpoints, step, loss and {"eval_loss": loss, "other": 7.0})
        checkpoints.wait()
        return checkpoints.steps(), checkpoints.best_step()


def shapes(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def loaded_step(path):
    return load(path)[1]["step"]


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Workdir with steps 2 (the best), 3 and 4, read-only."""
    workdir = tmp_path_factory.mktemp("run")
    save_all(workdir, [0.5, 0.2, 0.4, 0.3])
    return workdir


# ---- Save and restore ----------------------------------------------------------------


def test_restore_is_exact(tmp_path):
    data = {"position": [3, {"epoch": 1}], "rng": "0x1f", "seed": 0}
    with opened(tmp_path) as checkpoints:
        checkpoints.save(
            7,
            params=PARAMS,
            optimizer=OPTIMIZER,
            data=data,
            meta={"step": 7},
        )
    with opened(tmp_path) as checkpoints:
        assert checkpoints.steps() == [7]
        params, restored, position = checkpoints.restore(
            7, params=shapes(PARAMS), optimizer=shapes(OPTIMIZER)
        )
    assert_same(params, PARAMS)
    assert_same(restored, OPTIMIZER)
    assert position == data


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    change = jax.jit(lambda x: x * -1 - 5, donate_argnums=0)
    array = jnp.arange(2_000_000, dtype=jnp.float32)
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1, params={"array": array})
        for _ in range(5):
            array = change(array)
        jax.block_until_ready(array)
    params, _ = load(tmp_path)
    np.testing.assert_array_equal(params["array"], np.arange(2e6, dtype=np.float32))


# ---- Retention -----------------------------------------------------------------------


def test_keeps_the_last_and_the_best(tmp_path):
    steps, best = save_all(tmp_path, [0.5, 0.2, 0.4, 0.3, 0.6, 0.5], keep=2)
    assert steps == [2, 5, 6]
    assert best == 2


def test_best_may_be_the_highest(tmp_path):
    with opened(tmp_path, keep=1, best="top1", mode="max") as checkpoints:
        for step, top1 in enumerate([0.1, 0.8, 0.3], 1):
            save(checkpoints, step, {"top1": top1})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.best_step() == 2


def test_best_survives_checkpoints_without_evaluation(tmp_path):
    steps, best = save_all(tmp_path, [0.5, 0.2, None, None, 0.4, None], keep=2)
    assert steps == [2, 5, 6]
    assert best == 2


def test_best_step_is_none_without_evaluation(tmp_path):
    steps, best = save_all(tmp_path, [None, None, None], keep=2)
    assert steps == [2, 3]
    assert best is None


def test_metrics_of_a_step_are_from_its_evaluation(tmp_path):
    save_all(tmp_path, [0.5, None])
    with opened(tmp_path) as checkpoints:
        assert checkpoints.metrics(1) == {"eval_loss": 0.5, "other": 7.0}
        assert checkpoints.metrics(2) == {}


def test_retention_continues_after_resuming(tmp_path):
    save_all(tmp_path, [0.2, 0.5, 0.4])
    with opened(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        save(checkpoints, 4, {"eval_loss": 0.3})
        save(checkpoints, 5, {"eval_loss": 0.1})
        checkpoints.wait()
        assert checkpoints.steps() == [4, 5]
        assert checkpoints.best_step() == 5


# ---- Metrics after the checkpoint ----------------------------------------------------


def test_a_saved_step_is_unrated_until_it_is_evaluated(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1)
        assert not checkpoints.is_rated(1)
    with opened(tmp_path) as checkpoints:  # the run ended before its evaluation
        assert checkpoints.last_step() == 1
        assert not checkpoints.is_rated(1)
        checkpoints.rate(1, {"eval_loss": 0.5})
        assert checkpoints.is_rated(1)
        assert checkpoints.best_step() == 1
        assert layout.find(tmp_path) == tmp_path / "checkpoints" / "1"
    with opened(tmp_path) as checkpoints:
        assert checkpoints.is_rated(1)
        assert checkpoints.metrics(1) == {"eval_loss": 0.5}


def test_rating_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1)
        monkeypatch.setattr(checkpoints, "is_writing", lambda: True)
        checkpoints.rate(1, {"eval_loss": 0.5})
        assert checkpoints.best_step() == 1
        metrics = tmp_path / "checkpoints/1/metrics/metrics"
        assert not metrics.exists()
        save(checkpoints, 2)
        assert json.loads(metrics.read_text()) == {"eval_loss": 0.5, "quality": -0.5}


def test_a_step_is_kept_until_it_is_rated(tmp_path):
    with opened(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1, {"eval_loss": 0.5})
        save(checkpoints, 2)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        checkpoints.rate(2, {"eval_loss": 0.4})
        checkpoints.wait()  # deletes the former best
        assert checkpoints.steps() == [2]


def test_orbax_reads_the_metrics_as_its_own(tmp_path):
    """As older releases do: they ask Orbax for the best step."""
    save_all(tmp_path, [0.5, 0.2, None], keep=3)
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["quality"])
    names = ("params", "optimizer", "data", "meta")
    folder = tmp_path / "checkpoints"
    with ocp.CheckpointManager(folder, options=options, item_names=names) as manager:
        assert manager.best_step() == 2
        assert manager.metrics(2) == {"eval_loss": 0.2, "other": 7.0, "quality": -0.2}
        assert manager.metrics(3) is None


# ---- Load ----------------------------------------------------------------------------


def test_load_takes_the_best_checkpoint_of_a_workdir(run):
    params, meta = load(run)
    assert meta == {"step": 2}
    expected = jax.tree.map(lambda p: np.asarray(p + 2), PARAMS)
    assert_same(params, expected)
    assert {type(p) for p in jax.tree.leaves(params)} == {np.ndarray}


def test_load_takes_the_given_checkpoint(run, monkeypatch):
    assert loaded_step(run / "checkpoints" / "3") == 3
    assert loaded_step(str(run / "checkpoints" / "4")) == 4
    monkeypatch.chdir(run)
    assert loaded_step("checkpoints/4") == 4


def test_load_takes_the_last_checkpoint_without_evaluation(tmp_path):
    save_all(tmp_path, [None] * 10, keep=2)
    assert loaded_step(tmp_path) == 10  # sorted as numbers: "9" > "10" as text


def test_load_and_best_step_break_ties_alike(tmp_path):
    _, best = save_all(tmp_path, [0.2, 0.2, 0.2], keep=3)
    assert loaded_step(tmp_path) == best


@pytest.mark.parametrize("path", ["", "nowhere", "checkpoints/9"])
def test_a_missing_checkpoint_raises_with_what_is_expected(tmp_path, path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(NotFoundError, match="has no checkpoint in it") as error:
        load(tmp_path / path)
    assert f"'{tmp_path / path}'" in str(error.value)
    assert "checkpoints/<step>/" in str(error.value)


def test_read_meta_equals_the_meta_of_load(run):
    assert read_meta(run) == load(run)[1]
    assert read_meta(run / "checkpoints" / "3") == {"step": 3}


# ---- Interrupted writes --------------------------------------------------------------


def test_a_partial_checkpoint_is_ignored(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    folder = workdir / "checkpoints"
    partial = folder / "9.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", partial)
    metrics = partial / "metrics" / "metrics"
    better = json.loads(metrics.read_text()) | {"quality": 100.0}
    metrics.write_text(json.dumps(better))
    assert loaded_step(workdir) == 2
    with opened(workdir) as checkpoints:
        assert checkpoints.steps() == [2, 3, 4]
        assert checkpoints.best_step() == 2
        save(checkpoints, 9)  # the interrupted step can be saved again
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 9]
    assert not partial.exists()


def test_metrics_are_whole_if_a_signal_follows_them_at_once(tmp_path, monkeypatch):
    write = layout.write_metrics

    def interrupted(*args):
        write(*args)
        monkeypatch.undo()
        raise Interrupted("SIGTERM")

    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        monkeypatch.setattr(layout, "write_metrics", interrupted)
        with pytest.raises(Interrupted):
            checkpoints.rate(1, {"eval_loss": 0.5})
    with opened(tmp_path) as checkpoints:
        assert checkpoints.metrics(1) == {"eval_loss": 0.5}


def test_two_threads_finish_a_checkpoint_together(tmp_path, monkeypatch):
    write, written = layout.write_metrics, []

    def slowly(step, metrics):
        time.sleep(0.1)
        written.append(step.name)
        write(step, metrics)

    monkeypatch.setattr(layout, "write_metrics", slowly)
    with opened(tmp_path) as checkpoints, ThreadPoolExecutor(2) as pool:
        save(checkpoints, 1)
        monkeypatch.setattr(checkpoints, "is_writing", lambda: True)
        checkpoints.rate(1, {"eval_loss": 0.5})
        for finished in [pool.submit(checkpoints.finish) for _ in range(2)]:
            finished.result()
    assert written == ["1"]
