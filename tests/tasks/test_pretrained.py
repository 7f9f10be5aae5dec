"""What runs take from config.init_from, and continued pre-training."""

from pathlib import Path

import commands
import jax
import numpy as np
import pytest
import tiny_config
from scipy.io import netcdf_file

import simmim_jax
from simmim_jax.checkpoints import store
from simmim_jax.checkpoints.transfer import adapted_channels, interpolate_offsets
from simmim_jax.errors import UserError
from simmim_jax.tasks import classify, pretrain
from simmim_jax.tasks.pretrained import window_notice
from tests.convert_cases import PLAIN_VIT, convert, make

TABLE = "relative_position_bias_table"


# Runs of an older release: ViTs of width 16 on grey images of 28x28.
RUNS = Path(__file__).parents[1] / "workdirs" / "e0607c8"
BEGUN, CLASSIFIER = RUNS / "pretrain", RUNS / "finetune"


def parameters(run):
    return store.load(run)[0]


def config(**fields):
    return tiny_config.typed("pretrain", pictures=0, **fields)


def unchanged(**fields):
    """A config of one step that changes no parameter."""
    rates = {"optim.lr": 0.0, "optim.warmup_lr": 0.0}
    return config(duration="1 steps", **rates, **fields)


def photographs(count=24):
    return np.random.default_rng(0).integers(0, 256, (count, 50, 40, 3), np.uint8)


COLOUR = {
    "data.channels": 3,
    "data.image_size": (42, 28),  # a grid of 3x4 patches instead of 2x4
    "data.mean": (),
    "data.std": (),
}


# ---- Continued pre-training ----------------------------------------------------------


def test_continues_a_run_exactly(tmp_path, capsys):
    fields = {"model.embed_dim": 32, "decoder.kind": "linear"}  # adopted, and the same
    trained = simmim_jax.pretrain(unchanged(**fields), tmp_path, init_from=BEGUN)
    before = parameters(BEGUN)
    commands.assert_same(jax.device_get(trained.params), before)
    said = capsys.readouterr().out
    assert f"architecture of {BEGUN}: embed_dim=16" in said
    assert f"from {BEGUN} (step 8):\nrestored 37 of the encoder's" in said
    assert "restored the decoder: decoder/bias, decoder/kernel\nnew: nothing" in said
    assert commands.config(tmp_path)["init_from"] == str(BEGUN)
    record = (tmp_path / "config.json").read_text()
    assert f'"restored_from": "{BEGUN}/checkpoints/8"' in record


def test_continues_with_another_size_and_other_channels(tmp_path, capsys):
    images = photographs()
    trained = simmim_jax.pretrain(
        unchanged(**COLOUR), tmp_path, data=images, init_from=BEGUN
    )
    old = parameters(BEGUN)["encoder"]
    new = jax.device_get(trained.params["encoder"])
    kernel = old["patch_embed"]["kernel"]
    np.testing.assert_array_equal(
        new["patch_embed"]["kernel"], adapted_channels(kernel, 3)
    )
    table = old["rel_pos_bias"][TABLE]
    np.testing.assert_allclose(
        new["rel_pos_bias"][TABLE][:-3],
        interpolate_offsets(table[:-3].reshape(3, 7, 2), (5, 7)).reshape(-1, 2),
        atol=1e-6,
    )
    commands.assert_same(new["blocks_1"], old["blocks_1"])
    said = capsys.readouterr().out
    for line in (
        "ImageNet's mean and standard deviation",  # those of the run are of grey images
        f"interpolated: 1 {TABLE} from 3x7 to 5x7",
        "adapted: patch_embed, repeated from 1 to 3 channels",
        "the decoder starts anew: decoder/bias is (98,) in the checkpoint, (294,) here",
        "new: decoder/bias, decoder/kernel\nleft out: decoder/bias, decoder/kernel",
    ):
        assert line in said, line
    assert np.isfinite(trained.last["eval_loss"])
    # Resumed, it is itself again, whatever config.init_from says.
    longer = config(duration="2 steps", **COLOUR)
    simmim_jax.pretrain(longer, tmp_path, data=images, init_from=BEGUN)
    said = capsys.readouterr().out
    assert "resumed at step 1 of 2" in said
    assert "adapted" not in said


def test_starts_from_a_classifier_with_its_positions(tmp_path, capsys):
    trained = simmim_jax.pretrain(unchanged(init_from=str(CLASSIFIER)), tmp_path)
    old = parameters(CLASSIFIER)["encoder"]
    new = jax.device_get(trained.params["encoder"])
    for block in ("blocks_0", "blocks_1"):
        commands.assert_same(new[block], old[block])  # with a table of its own
    said = capsys.readouterr().out
    assert "use_rel_pos_bias=True, use_shared_rel_pos_bias=False" in said
    fresh = said.split("new: ")[1].splitlines()[0].split(", ")
    assert {"encoder/mask_token", "encoder/norm/scale", "decoder/kernel"} <= {*fresh}
    assert "left out: fc_norm/bias, fc_norm/scale, head/bias, head/kernel" in said


def test_starts_from_converted_weights(tmp_path, capsys):
    model = PLAIN_VIT | {"patch_size": (14, 14)}
    made = make(tmp_path / "ours", model, image_size=(28, 28))
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    weights = convert(file, tmp_path / "weights")
    kernel = made["encoder"]["patch_embed"]["kernel"]
    trained = simmim_jax.pretrain(
        unchanged(**{"mask.unit_size": (14, 14)}), tmp_path / "run", init_from=weights
    )
    np.testing.assert_array_equal(
        trained.params["encoder"]["patch_embed"]["kernel"], adapted_channels(kernel, 1)
    )
    assert "averaged from 3 to 1 channels" in capsys.readouterr().out


def write_bands(file, **levels):
    """A NetCDF file of 40 images, a variable for each band."""
    rng = np.random.default_rng(0)
    with netcdf_file(file, "w") as written:
        for axis, length in (("n", 40), ("y", 28), ("x", 28)):
            written.createDimension(axis, length)
        for name, level in levels.items():
            values = written.createVariable(name, "f4", ("n", "y", "x"))
            values[:] = rng.normal(level, 1, (40, 28, 28))


@pytest.mark.parametrize("bands", [("c", "a"), ("c", "new", "a", "b")])
def test_named_bands_keep_what_was_learned_of_them(bands, tmp_path, capsys):
    levels = {"a": 10, "b": 20, "c": 30, "new": 40}
    file = str(tmp_path / "x.nc")
    write_bands(file, **levels)

    def of(bands):
        fields = {"data.dataset": file, "data.dtype": "auto", "data.bands": bands}
        fields |= {"data.mean": (), "data.std": (), "data.channels": len(bands)}
        return unchanged(**fields)

    first = simmim_jax.pretrain(of(("a", "b", "c")), tmp_path / "first")
    capsys.readouterr()
    second = simmim_jax.pretrain(
        of(bands), tmp_path / "x", init_from=tmp_path / "first"
    )
    said = capsys.readouterr().out
    old, new = (
        jax.device_get(run.params["encoder"]["patch_embed"]["kernel"])
        for run in (first, second)
    )
    for place, band in enumerate(bands):
        expected = 0 if band == "new" else old[:, :, "abc".index(band)]
        np.testing.assert_array_equal(new[:, :, place], expected, strict=False)
    data = commands.config(tmp_path / "x")["data"]
    if "new" in bands:
        assert "patch_embed, restored by name: c, a, b; from 0: new\n" in said
    else:
        assert "patch_embed, restored by name: c, a; left out: b\n" in said
        learned = commands.config(tmp_path / "first")["data"]
        assert data["mean"] == [learned["mean"][2], learned["mean"][0]]
    assert data["mean"] == pytest.approx([levels[band] for band in bands], abs=0.1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"data.image_size": (30, 28)}, "cannot be cut into patches of 14x7"),
        ({"mask.unit_size": (7, 7)}, r"unit_size=\(7, 7\) must be a multiple"),
        ({"data.bands": ("B2",)}, "expected as many names|B2"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_compiles(
    fields, says, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "jit", None)
    with pytest.raises(UserError, match=says):
        simmim_jax.pretrain(config(**fields), tmp_path, init_from=BEGUN)


def test_shapes_that_differ_are_refused_without_reading_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "load", None)
    wider = config(init_from=str(BEGUN), **{"model.embed_dim": 32})
    with pytest.raises(UserError, match=r"encoder/.*: \(1, 1, 16\) in the checkpoint"):
        pretrain.build(wider, tmp_path)
    finetune = tiny_config.typed(
        "finetune", init_from=str(BEGUN), **{"model.embed_dim": 32}
    )
    with pytest.raises(UserError, match=r"encoder/.*: \(1, 1, 16\) in the checkpoint"):
        classify.build(finetune, tmp_path)


# ---- Windows of Swin V2 --------------------------------------------------------------

SWIN_V2 = {
    "data": {"image_size": (192, 192)},
    "model": {
        "patch_size": (4, 4),
        "depths": (2, 2, 18, 2),
        "window_size": 12,
        "pretrained_window_sizes": (),
    },
}


def swin_v2(size=192, **model):
    fields = {"data": {"image_size": (size, size)}, "model": SWIN_V2["model"] | model}
    return SWIN_V2 | fields


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (SWIN_V2, swin_v2(), ""),
        (SWIN_V2, swin_v2(224, window_size=14), "_sizes=(12, 12, 12, 6)"),
        (SWIN_V2, swin_v2(384), "(12, 12, 12, 6), stretched to (12, 12, 12, 12)"),
        (
            SWIN_V2,
            swin_v2(224, window_size=14, pretrained_window_sizes=(12, 12, 12, 6)),
            "",
        ),
        (
            swin_v2(224, window_size=14, pretrained_window_sizes=(12, 12, 12, 6)),
            swin_v2(224, window_size=14),
            "_sizes=(12, 12, 12, 6)",
        ),
    ],
)
def test_changed_windows_of_swin_v2_are_logged(old, new, says):
    notice = window_notice(old, new)
    assert says in notice
    assert bool(notice) == bool(says)


def test_vit_has_no_window_notice():
    config = tiny_config.get_config("finetune").to_dict()
    assert window_notice(config, config) == ""
