"""The same numbers on 1 device and on 8, whole or split (virtual CPU devices)."""

import commands
import jax
import pytest

from simmim_jax import sharding

# Wide enough for its matrices to be split; checkpoints hold averages and the latest.
WIDE = ("model.embed_dim=512", "model.depth=1", "duration=4 steps", "ema_decay=0.5")


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    commands.run(*commands.tiny("pretrain", workdir, *WIDE))
    return workdir


def losses(workdir):
    return [line["loss"] for line in commands.metrics(workdir) if "loss" in line]


@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_give_the_losses_of_one(fsdp, one_device, tmp_path):
    args = commands.tiny("pretrain", tmp_path, *WIDE, f"mesh.fsdp={fsdp}")
    commands.run(*args, devices=8)
    assert losses(tmp_path) == pytest.approx(losses(one_device), rel=1e-5)
    commands.assert_same(
        commands.params(tmp_path, 4), commands.params(one_device, 4), atol=2e-5
    )


def test_checkpoint_of_eight_devices_goes_on_on_one(one_device, tmp_path):
    args = commands.tiny("pretrain", tmp_path, *WIDE)
    commands.kill(
        commands.start(*args, "--config.checkpoint_every=2 steps", devices=8),
        lambda: (tmp_path / "checkpoints/2").exists(),
    )
    assert "resumed at step" in commands.run(*args)
    assert losses(tmp_path) == pytest.approx(losses(one_device), rel=1e-5)


def test_large_arrays_are_split_over_fsdp_and_small_ones_are_not():
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


def test_mesh_that_does_not_fit_names_the_numbers():
    with pytest.raises(ValueError, match=r"data=3 x fsdp=1 devices, but there are 1"):
        sharding.make_mesh(data=3)
    with pytest.raises(ValueError, match=r"fsdp=7 devices, but there are 1"):
        sharding.make_mesh(fsdp=7)
