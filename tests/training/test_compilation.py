"""Batches that cannot fit, refused before anything is compiled."""

import jax
import pytest
import tiny_config

from simmim_jax.errors import UserError
from simmim_jax.runtime import sharding
from simmim_jax.tasks.learners import learner
from simmim_jax.training import compilation


def bytes_kept(**fields):
    learns = learner(tiny_config.typed("pretrain", **fields), 1000)
    params = jax.eval_shape(learns.init, jax.random.key(0))
    return compilation.activations(learns, params), learns, params


def test_activations_grow_with_the_batch_and_shrink_with_what_saves_memory():
    one, _, _ = bytes_kept()
    two, _, _ = bytes_kept(**{"data.batch_size": 32})
    assert 1.8 * one < two <= 2 * one  # masks and weights do not grow
    assert bytes_kept(**{"model.remat": "full"})[0] < 0.7 * one
    both = {"data.batch_size": 32, "optim.accumulation": 2}
    assert bytes_kept(**both)[0] == pytest.approx(two / 2)


def test_activations_of_a_block_are_those_of_the_textbook():
    shallow, deep = (bytes_kept(**{"model.depth": depth})[0] for depth in (1, 3))
    tokens, width, heads, batch = 9, 16, 2, 16
    # Of each block at least: both norms' and both branches' inputs, queries, keys and
    # values, attention, the MLP before and after GELU.
    least = batch * tokens * (4 * width + 3 * width + 8 * width) * 4
    least += batch * heads * tokens**2 * 4
    assert least < (deep - shallow) / 2 < 4 * least


def test_a_batch_that_is_twice_too_large_is_refused():
    kept, learns, params = bytes_kept()
    compilation.check_memory(learns, params, memory=round(kept / 1.9))
    with pytest.raises(UserError, match=r"batch_size=16 needs .* Try .*batch_size=4,"):
        compilation.check_memory(learns, params, memory=round(kept / 3))


def test_a_run_asks_before_it_compiles(monkeypatch):
    monkeypatch.setattr(compilation.os, "sysconf", lambda name: 10)
    _, learns, _ = bytes_kept()
    with pytest.raises(UserError, match=r"there are 0\.0 GB of memory"):
        compilation.plan(learns, sharding.make_mesh())


def test_groups_that_are_mixed_divide_the_images_of_a_device():
    def mesh(devices):
        axes = (jax.sharding.AxisType.Auto,) * 2
        return jax.sharding.AbstractMesh((devices, 1), ("data", "fsdp"), axes)

    compilation.check_groups(16, 128, mesh(8))
    compilation.check_groups(0, 128, mesh(8))
    compilation.check_groups(128, 64, mesh(1))  # a smaller batch is one group
    message = "mix_group=32 with 16 images on each of 8 devices"
    with pytest.raises(UserError, match=message):
        compilation.check_groups(32, 128, mesh(8))
    with pytest.raises(UserError, match="mix_group=128 with 32 images on each of 2"):
        compilation.check_groups(128, 64, mesh(2))
