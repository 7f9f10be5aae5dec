"""The same numbers on 1 and 8 virtual devices, with parameters replicated or split."""

import functools
import os
import re
import subprocess
import sys

import commands
import jax
import numpy as np
import optax
import pytest

from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.runtime import sharding
from simmim_jax.tasks import pretrain

# Wide enough for FSDP to split matrices; with an average of the parameters.
WIDE = ("model.embed_dim=512", "model.depth=1", "duration=4 steps", "ema_decay=0.5")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Fields of the runs, with a set that is evaluated at once."""
    file = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (200, 28, 28, 1), np.uint8))
    return (*WIDE, f"data.dataset={file}")


@pytest.fixture(scope="module")
def one_device(wide, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    commands.run(*commands.tiny("pretrain", workdir, *wide))
    return workdir


def losses(workdir):
    return [line["loss"] for line in commands.metrics(workdir) if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_give_the_losses_of_one(fsdp, wide, one_device, tmp_path):
    args = commands.tiny("pretrain", tmp_path, *wide, f"mesh.fsdp={fsdp}")
    commands.run(*args, devices=8, dump=tmp_path / "hlo")
    assert losses(tmp_path) == pytest.approx(losses(one_device), rel=1e-5)
    commands.assert_same(
        commands.params(tmp_path, 4), commands.params(one_device, 4), atol=2e-5
    )
    assert_only_parameters_move(tmp_path, fsdp)


def assert_only_parameters_move(workdir, fsdp):
    """FSDP gathers parameters; activations stay on the devices of their images."""
    (program,) = (workdir / "hlo").glob("*jit_train_step*after_optimizations.txt")
    text = program.read_text()
    moved = re.findall(
        r"= (\S+).* (all-gather|all-to-all|collective-permute)\(",
        text,
    )
    shapes = {
        tuple(sorted(x.shape)) for x in jax.tree.leaves(commands.params(workdir, 4))
    }
    for shape, name in moved:
        assert name == "all-gather"
        sizes = re.search(r"\[([\d,]+)\]", shape)[1].split(",")
        assert tuple(sorted(map(int, sizes))) in shapes, shape
    assert bool(moved) == (fsdp > 1)
    assert "all-reduce" in text


@pytest.mark.slow
def test_one_device_resumes_a_checkpoint_of_eight(wide, one_device, tmp_path):
    args = commands.tiny("pretrain", tmp_path, *wide)
    commands.kill(
        commands.start(*args, "--config.checkpoint_every=2 steps", devices=8),
        lambda: (tmp_path / "checkpoints/2").exists(),
    )
    assert "resumed at step" in commands.run(*args)
    assert losses(tmp_path) == pytest.approx(losses(one_device), rel=1e-5)


def test_fsdp_splits_large_arrays_and_replicates_small_ones():
    mesh = jax.sharding.AbstractMesh(
        (2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    shapes = {
        "wide": jax.ShapeDtypeStruct((512, 1536), "float32"),
        "odd": jax.ShapeDtypeStruct((514, 1537), "float32"),
        "bias": jax.ShapeDtypeStruct((1536,), "float32"),
    }
    specs = {name: s.spec for name, s in sharding.state_sharding(shapes, mesh).items()}
    assert specs["wide"] == jax.P(None, "fsdp")
    assert not any(specs["odd"])
    assert not any(specs["bias"])


@pytest.mark.parametrize("variant", ["vit_huge", "swin_large", "swin_v2_huge"])
def test_fsdp_splits_nearly_all_of_a_model_and_its_moments(variant):
    mesh = jax.sharding.AbstractMesh(
        (1, 8), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    config = schema.parse(common.pretrain(variant))
    init = functools.partial(pretrain.init, config, pretrain.model_of(config))
    params = jax.eval_shape(init, jax.random.key(0))
    moments = jax.eval_shape(optax.adamw(1e-3).init, params)
    for tree in (params, moments):
        shardings = jax.tree.leaves(sharding.state_sharding(tree, mesh))
        sizes = [leaf.size for leaf in jax.tree.leaves(tree)]
        split = [any(layout.spec) for layout in shardings]
        assert sum(np.multiply(sizes, split)) > 0.99 * sum(sizes)


def test_the_error_of_a_mesh_that_does_not_fit_has_the_numbers():
    with pytest.raises(ValueError, match=r"data=3 x fsdp=1 devices, but there are 1"):
        sharding.make_mesh(data=3)
    for fsdp in (0, 7):
        with pytest.raises(ValueError, match=rf"fsdp={fsdp} devices, but there are 1"):
            sharding.make_mesh(fsdp=fsdp)


GRADIENTS = """
import jax, jax.numpy as jnp
from simmim_jax.runtime import sharding

mesh = sharding.make_mesh(fsdp=4)
params = {"large": jnp.ones((512, 1024)), "small": jnp.ones(1024)}
layout = sharding.state_sharding(params, mesh)
params = jax.device_put(params, layout)
batch = jax.device_put(jnp.ones((8, 512)), sharding.batch_sharding(mesh))

@jax.jit
@jax.grad
def gradients(params, batch):
    params = sharding.gathered(params, mesh)
    return jnp.square(batch @ params["large"] + params["small"]).sum()

found = gradients(params, batch)
for name, x in found.items():
    assert x.sharding.is_equivalent_to(layout[name], x.ndim), (name, x.sharding)
    assert float(jnp.abs(x - 8 * 2 * 513).max()) < 1e-2, (name, x)
print(found["large"].addressable_shards[0].data.shape)
"""


def test_gradients_are_sharded_like_their_parameters():
    done = subprocess.run(
        [sys.executable, "-c", GRADIENTS],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": commands.xla_flags(8), "JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(512, 256)"


AUGMENTED = """
import re, jax, numpy as np
from simmim_jax.augment.normalization import Normalization
from simmim_jax.config.schema import Augment
from simmim_jax.mim.masking import block_mask
from simmim_jax.runtime import sharding
from simmim_jax.tasks.classify_step import class_targets, finetune_prepare

batch = {
    "image": np.random.default_rng(0).integers(0, 256, (8, 12, 16, 3), np.uint8),
    "label": np.arange(8, dtype=np.int32) % 3,
}
augment = Augment(
    num_ops=2, magnitude=9.0, magnitude_std=0.5, erase_prob=0.5, mixup_alpha=0.0,
    cutmix_alpha=1.0, mix_prob=1.0, mix_switch_prob=0.5, mix_group=2,
)
prepare = finetune_prepare(
    augment, targets=class_targets(3, 0.1), flip=True,
    normalization=Normalization((0.5,) * 3, (0.2,) * 3),
)
mesh = sharding.make_mesh()
split = sharding.to_devices(batch, mesh)
jitted = jax.jit(prepare, out_shardings=sharding.batch_sharding(mesh))
many = jitted.lower(split, jax.random.key(0)).compile()
one = jax.jit(prepare)(batch, jax.random.key(0))
for name, x in many(split, jax.random.key(0)).items():
    np.testing.assert_allclose(x, one[name], atol=1e-6)
moves = r"= ([^=]*) (?:all-[a-z-]+|collective-[a-z-]+|reduce-scatter)\\("

# Scalars may move: whether anything is mixed.
def moved(program):
    return [s for s in re.findall(moves, program.as_text()) if re.search(r"\\[\\d", s)]

print(len(x.devices()), moved(many))

def masks(key):
    with sharding.on_mesh(mesh):
        return block_mask(key, 8, (14, 14), (1, 1), 0.6)

jitted = jax.jit(masks, out_shardings=sharding.batch_sharding(mesh))
many = jitted.lower(jax.random.key(0)).compile()
one = jax.jit(lambda key: block_mask(key, 8, (14, 14), (1, 1), 0.6))(jax.random.key(0))
np.testing.assert_array_equal(many(jax.random.key(0)), one)
print(re.findall(moves, many.as_text()))
"""


def test_augmentation_and_block_masks_are_equal_on_many_devices_and_move_nothing():
    run = subprocess.run(
        [sys.executable, "-c", AUGMENTED],
        env=os.environ | {"XLA_FLAGS": commands.xla_flags(4)},
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split("\n") == ["4 []", "[]", ""], run.stderr
