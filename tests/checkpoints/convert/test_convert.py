"""The convert command, official files, and checkpoints of ours."""

import json
import math
import random
import re

import jax
import numpy as np
import pytest
from PIL import Image

from simmim_jax.checkpoints import layout, store
from simmim_jax.checkpoints.convert import files, formats, infer, microsoft
from simmim_jax.checkpoints.convert.model import Model
from simmim_jax.checkpoints.convert.official import to_official
from simmim_jax.checkpoints.convert.overrides import OFFICIAL_DATA, Overrides
from simmim_jax.checkpoints.convert.settings import Settings
from simmim_jax.errors import UserError
from simmim_jax.tasks.api import load
from simmim_jax.tasks.predict import Predictor
from tests import commands
from tests.commands import assert_same
from tests.convert_cases import (
    CLASSES,
    CLS_HEAD,
    DATA,
    MEAN_HEAD,
    PLAIN_VIT,
    SIZE,
    SWIN,
    SWIN_HEAD,
    SWIN_V2,
    VIT,
    VIT_CLASSIFIER,
    convert,
    images,
    make,
    run,
)

MODELS = {
    "vit": VIT,
    "plain": PLAIN_VIT,
    "vit-classifier": VIT_CLASSIFIER,
    "cls-classifier": PLAIN_VIT | CLS_HEAD,
    "swin": SWIN,
    "swin-clamped": SWIN
    | {"depths": (1, 2, 2), "num_heads": (2, 4, 4), "use_abs_pos_emb": True},
    "swin-classifier": SWIN | SWIN_HEAD | {"qkv_bias": False, "patch_norm": False},
    "swin_v2": SWIN_V2,
    "swin_v2-classifier": SWIN_V2 | SWIN_HEAD | {"pretrained_window_sizes": ()},
}
SIZE_FLAG = f"--data.image_size=({SIZE}, {SIZE})"


def error_message(source, target, *flags) -> str:
    """Message with which the command fails."""
    with pytest.raises(SystemExit) as error:
        convert(source, target, *flags)
    assert not target.exists()
    return str(error.value)


def rewrite(path, target, change, **rest):
    """Write the changed tensors of a file to `target`, without its other content."""
    tensors = files.read(path)[0]
    change(tensors)
    files.write(target, tensors, **rest)
    return target


# ---- Official files ------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(name, suffix, tmp_path):
    if suffix == "pth":
        pytest.importorskip("torch")
    params = make(tmp_path / "ours", MODELS[name])
    file = convert(tmp_path / "ours", tmp_path / f"x.{suffix}", "--to=official")
    back = convert(file, tmp_path / "back")
    found, meta = store.load(back)
    assert_same(found, params)
    before = store.load(tmp_path / "ours")[1]
    # Only init_cut is lost, which matters for initial weights only.
    for part in ("model", "data"):
        for field, value in before["config"][part].items():
            expected = 1.0 if field == "init_cut" else value
            assert meta["config"][part][field] == expected, field
    assert meta.get("class_names") == before.get("class_names")
    assert meta["converted_from"] == str(file)
    again = convert(back, tmp_path / f"again.{suffix}", "--to=official")
    first, second = (files.read(path) for path in (file, again))
    assert first[1] == second[1]
    assert_same(second[0], first[0])


def test_swin_base_has_the_official_names(tmp_path):
    """365 tensors, 35 of them buffers, with the depths and windows of Swin-B."""
    sizes = {"depths": (2, 2, 18, 2), "num_heads": (1, 2, 4, 8), "window_size": 6}
    make(tmp_path / "ours", SWIN | sizes, image_size=(192, 192))
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    found = files.read(file)[0]
    assert len(found) == 365
    buffers = [n for n in found if n.endswith(("position_index", "attn_mask"))]
    assert len(buffers) == 35


def test_official_buffers():
    model = Model({}, SWIN_V2, DATA)
    buffers = microsoft._buffers(model)
    index = buffers["layers.0.blocks.1.attn.relative_position_index"]
    assert (index.shape, index.dtype) == ((16, 16), np.int64)
    assert (index[0, 0], index[0, 15], index[15, 0]) == (24, 0, 48)
    masks = {name for name in buffers if name.endswith("attn_mask")}
    assert masks == {"layers.0.blocks.1.attn_mask"}  # one window in later stages
    mask = buffers["layers.0.blocks.1.attn_mask"]
    assert mask.shape == (4, 16, 16)
    assert set(np.unique(mask)) == {-100, 0}
    table = buffers["layers.2.blocks.0.attn.relative_coords_table"]
    assert table.shape == (1, 3, 3, 2)


def test_official_vit_has_its_index(tmp_path):
    make(tmp_path / "ours", VIT)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    index = files.read(file)[0]["encoder.rel_pos_bias.relative_position_index"]
    assert index.shape == (65, 65)
    assert index[0, 0] == 15 * 15 + 2


def test_first_files_of_swin_v2_have_another_name_for_the_position_mlp(tmp_path):
    params = make(tmp_path / "ours", SWIN_V2)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")

    def rename(tensors):
        for name in [name for name in tensors if "cpb_mlp" in name]:
            tensors[name.replace("cpb_mlp", "rpe_mlp")] = tensors.pop(name)

    config = files.read(file)[1]["config"]
    old = rewrite(file, tmp_path / "old.safetensors", rename, config=config)
    assert any("rpe_mlp" in name for name in files.read(old)[0])
    assert_same(store.load(convert(old, tmp_path / "back"))[0], params)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_official_checkpoint_with_a_yacs_config(zipped, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    yacs = pytest.importorskip("yacs.config")
    params = make(tmp_path / "ours", SWIN_V2)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    tensors = files.read(file)[0]
    section = {"WINDOW_SIZE": 4, "PRETRAINED_WINDOW_SIZES": [6, 6, 3]}
    config = yacs.CfgNode(
        {
            "MODEL": {"TYPE": "swinv2", "DROP_PATH_RATE": 0.2, "SWINV2": section},
            "DATA": {"IMG_SIZE": SIZE, "INTERPOLATION": "bicubic"},
            "TEST": {"CROP": False},
        }
    )
    content = {
        "model": {name: torch.from_numpy(value) for name, value in tensors.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "max_accuracy": 82.8,
        "epoch": 99,
        "config": config,
    }
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    back, meta = store.load(convert(path, tmp_path / "back"))
    assert_same(back, params)
    model, data = meta["config"]["model"], meta["config"]["data"]
    assert (model["window_size"], model["drop_path_rate"]) == (4, 0.2)
    assert model["pretrained_window_sizes"] == [6, 6, 3]
    assert (data["interpolation"], data["eval_crop"]) == ("bicubic", 1.0)
    assert data["mean"] == [0.485, 0.456, 0.406]
    assert "encoder.layers.*.blocks.*.attn.relative_coords_table (5)" in (
        capsys.readouterr().out
    )


def test_the_objective_of_pre_training_is_kept(tmp_path):
    """Swin V2 predicts normalised pixels, of which reconstructions are pictures."""
    make(tmp_path / "made", SWIN)
    params, meta = store.load(tmp_path / "made")
    meta["config"]["mask"] = {"kind": "random", "unit_size": [8, 8], "ratio": 0.5}
    store.write(tmp_path / "pixels", params, meta)
    meta["config"]["target"] = {"kind": "normalized", "window": 5}
    store.write(tmp_path / "ours", params, meta)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    config = json.loads(files.read(file)[1]["config"])
    assert config["MODEL"]["SIMMIM"]["NORM_TARGET"] == {"ENABLE": True, "PATCH_SIZE": 5}
    assert config["DATA"]["MASK_PATCH_SIZE"] == 8
    convert(file, tmp_path / "back")
    photo = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    found, expected, others = (
        load(tmp_path / name).reconstruct([photo])
        for name in ("back", "ours", "pixels")
    )
    np.testing.assert_array_equal(found.masks, expected.masks)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.masks.mean() == 0.5
    assert np.abs(found.pixels - others.pixels).max() > 1


def test_what_official_files_cannot_hold_is_said(tmp_path, capsys):
    make(tmp_path / "photos", SWIN)
    params, meta = store.load(tmp_path / "photos")
    meta["config"]["mask"] = {"kind": "block", "unit_size": [8, 8], "ratio": 0.5}
    meta["config"]["data"] |= {"dtype": "uint16", "value_range": [0, 4095]}
    store.write(tmp_path / "other", params, meta)
    for name in ("photos", "other"):
        convert(tmp_path / name, tmp_path / f"{name}.safetensors", "--to=official")
        notes = capsys.readouterr().out
        said = "prepare data.dtype='uint16', data.value_range=(0, 4095) yourself"
        assert (said in notes) == (name == "other")
        assert ("config.mask.kind='block' in units of" in notes) == (name == "other")


@pytest.mark.parametrize("to", ["official", "huggingface", "timm"])
@pytest.mark.parametrize(
    "positions", [{"use_sincos_pos_emb": True}, {"conv_pos_width": 3}]
)
def test_positions_that_other_formats_do_not_store_raise(positions, to, tmp_path):
    make(tmp_path / "ours", PLAIN_VIT | positions)
    target = tmp_path / ("x.safetensors" if to == "official" else "x")
    message = error_message(tmp_path / "ours", target, f"--to={to}")
    assert f"config.model.{next(iter(positions))}=" in message
    assert "no such positions" in message
    convert(tmp_path / "ours", tmp_path / "copy", "--to=simmim_jax")


def test_averages_are_left_out_and_reported(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    params = make(tmp_path / "ours", PLAIN_VIT)
    file = convert(tmp_path / "ours", tmp_path / "x.pth", "--to=official")
    content = torch.load(file, weights_only=True)
    averages = {name: value + 1 for name, value in content["model"].items()}
    torch.save(content | {"model_ema": averages}, file)
    capsys.readouterr()
    assert_same(store.load(convert(file, tmp_path / "back"))[0], params)
    assert "left out: model_ema\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"MODEL": {"TYPE": "swin"}}, "lacks the setting 'SWIN'"),
        ({"DATA": {}}, "lacks the setting 'IMG_SIZE'"),
        ({"DATA": {"IMG_SIZE": 32, "MASK_RATIO": 60}}, "MASK_RATIO=60: expected a nu"),
        ({"MODEL": {"SIMMIM": {"X": 1}}}, "has X=1, but this converter"),
        ({"MODEL": {"TYPE": "swin_moe"}}, "TYPE='swin_moe': expected one of"),
        ({"MODEL": []}, "in 'MODEL' is []. Expected an object"),
        ({"MODEL": {"TYPE": "swin", "SWIN": {"QK_SCALE": 0.5}}}, "has QK_SCALE=0.5"),
        ({"MODEL": {"TYPE": "swin", "SWIN": {"X": 1}}}, "has X=1, but this converter"),
        ({"DATA": {"IMG_SIZE": 32, "CROP": 1}}, "has CROP=1, but this converter"),
        ({"DATA": {"IMG_SIZE": 32, "INTERPOLATION": "random"}}, "INTERPOLATION="),
        ([], "is []. Expected an object"),
        ("{", "not JSON"),
    ],
)
def test_malformed_configs_raise(config, complaint, tmp_path):
    make(tmp_path / "ours", SWIN)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    config = config if isinstance(config, str) else json.dumps(config)
    bad = rewrite(file, tmp_path / "bad.safetensors", lambda _: None, config=config)
    message = error_message(bad, tmp_path / "back")
    assert "bad.safetensors'" in message
    assert complaint in message


# ---- Settings that a file lacks ------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_inferred_from_shapes(name, tmp_path):
    state = to_official(make(tmp_path / "ours", MODELS[name]))
    given = {"swin_v2": "window_size", "vit": "num_heads"}.get(MODELS[name]["name"])
    known = {given: MODELS[name][given]} if given else {}
    if MODELS[name]["name"] == "swin_v2":
        known["pretrained_window_sizes"] = MODELS[name]["pretrained_window_sizes"]
    fields = infer.model_fields(state, known)
    assert len(fields) >= 10
    for field, value in fields.items():
        assert value == MODELS[name][field], field


def test_fields_that_shapes_do_not_determine_are_required(tmp_path):
    make(tmp_path / "ours", PLAIN_VIT)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    bare = rewrite(file, tmp_path / "bare.safetensors", lambda _: None)
    message = error_message(bare, tmp_path / "back")
    assert "does not determine ['num_heads']: add --model.num_heads=" in message
    back = convert(bare, tmp_path / "back", "--model.num_heads=2", "--data.eval_crop=1")
    expected = run(tmp_path / "ours", images(), np.zeros((2, 8, 8), bool))
    found = run(back, images(), np.zeros((2, 8, 8), bool))
    np.testing.assert_array_equal(found, expected)
    assert store.load(back)[1]["config"]["data"]["eval_crop"] == 1

    make(tmp_path / "v2", SWIN_V2)
    file = convert(tmp_path / "v2", tmp_path / "v2.safetensors", "--to=official")
    bare = rewrite(file, tmp_path / "v2-bare.safetensors", lambda _: None)
    message = error_message(bare, tmp_path / "v2-back")
    assert "['window_size', 'pretrained_window_sizes']: add --model.win" in message
    flags = ["--model.window_size=4", "--model.pretrained_window_sizes=(6, 6, 3)"]
    message = error_message(bare, tmp_path / "v2-back", *flags)
    assert "image size: add --data.image_size=" in message
    convert(bare, tmp_path / "v2-back", *flags, SIZE_FLAG)


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--model.head=2", "--model.head: expected one of attention, conv_pos"),
        ("--data.size=2", "--data.size: expected one of eval_center, eval_crop, eval"),
        ("--data.image_size=2", r"data.image_size=2: expected a height and a width"),
        ("--data.image_size=(33, 32)", r"\(33, 32\): expected multiples of the patch"),
        (
            "--data.mean=grey",
            "data.mean='grey': expected a number, such as --data.mean=",
        ),
        ("--data.std=(1, 0, 1)", "data.std=.*: expected a number above 0"),
        ("--data.eval_crop=2", "data.eval_crop=2: expected a share above 0, up to 1"),
        ("--data.interpolation=cubic", "data.interpolation='cubic': expected one of"),
        ("--model.num_heads=0", "model.num_heads=0: expected int, such as 12"),
        ("--data.mean=(0.5,)", r"data.mean=\(0.5,\): expected a number for each of 3"),
        ("--colour=2", "--colour=2: expected --model.FIELD=VALUE"),
        ("--model.depth", "--model.depth: expected --model.FIELD=VALUE"),
        ("--model.depth=2.5", "model.depth=2.5: expected int, such as 12"),
        ("--model.depth=3", "blocks.2.norm1.weight is missing"),
        ("--leave_out=(", r"--leave_out=\(: expected a regular expression"),
    ],
)
def test_flags_are_checked(flag, complaint, tmp_path):
    make(tmp_path / "ours", VIT)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    with pytest.raises(SystemExit, match=complaint):
        convert(file, tmp_path / "back", flag)


# ---- Errors --------------------------------------------------------------------------


def test_all_mismatches_are_listed(tmp_path, capsys):
    make(tmp_path / "ours", SWIN)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")

    def spoil(tensors):
        del tensors["encoder.layers.1.blocks.0.mlp.fc2.bias"]
        tensors["encoder.norm.bias"] = np.zeros(3, np.float32)
        tensors["encoder.layers.0.new.weight"] = np.zeros(3, np.float32)

    bad = rewrite(file, tmp_path / "bad.safetensors", spoil)
    lines = error_message(bad, tmp_path / "back", SIZE_FLAG).splitlines()
    assert set(lines[1:]) == {
        "  encoder.layers.1.blocks.0.mlp.fc2.bias is missing",
        "  encoder.norm.bias has shape (3,), expected (16,)",
        "  encoder.layers.0.new.weight is not in the model",
    }
    only_new = rewrite(
        file,
        tmp_path / "new.safetensors",
        lambda t: t.update({"encoder.layers.0.new.weight": np.zeros(3, np.float32)}),
    )
    capsys.readouterr()
    convert(only_new, tmp_path / "back", SIZE_FLAG, "--leave_out=new")
    assert "encoder.layers.*.new.weight" in capsys.readouterr().out


def test_unrelated_tensors_raise(tmp_path):
    files.write(tmp_path / "x.safetensors", {"conv1.weight": np.zeros(3, np.float32)})
    message = error_message(tmp_path / "x.safetensors", tmp_path / "back")
    assert "no ViT, Swin or Swin V2" in message
    assert "conv1.weight" in message


def test_targets_are_checked(tmp_path):
    source, target = tmp_path / "ours", tmp_path / "x.safetensors"
    make(source, VIT)
    assert "with --to=huggingface: expected a folder" in error_message(
        source, target, "--to=huggingface"
    )
    assert "expected a file" in error_message(
        source, tmp_path / "folder", "--to=official"
    )
    target.write_text("mine")
    with pytest.raises(SystemExit, match=r"exists\. Choose another target"):
        convert(source, target, "--to=official")
    assert target.read_text() == "mine"


def test_sources_are_checked(tmp_path):
    target = tmp_path / "target"
    assert "no checkpoint in" in error_message(tmp_path / "none", target)
    make(tmp_path / "ours", VIT)
    message = error_message(tmp_path / "ours", target, "--model.depth=3")
    assert "takes no flags but --to" in message


@pytest.mark.parametrize(
    ("model", "data", "complaint"),
    [
        (VIT | {"norm_eps": 1e-12}, {}, "its model.norm_eps is 1e-06, not 1e-12"),
        # The case of an official Swin that cannot be built.
        (SWIN, {"image_size": (68, 100)}, "square images, not 68x100"),
        (
            SWIN | SWIN_HEAD,
            {"image_size": (68, 100)},
            "windows of 4 do not divide the grid of 17x25",
        ),
        (
            SWIN_V2 | SWIN_HEAD | {"window_size": 3},
            {"image_size": (36, 36)},
            "images of 36x36 have an odd grid of 9x9 in stage 0",
        ),
        (SWIN | {"window_size": 8}, {"image_size": (48, 48)}, "of 8 .* grid of 12x12"),
        (VIT, {"image_size": (32, 64)}, "pre-trains on square images, not 32x64"),
        (VIT | {"patch_size": (4, 8)}, {}, "pre-trains on square patches, not 4x8"),
        (VIT_CLASSIFIER | {"pool": "cls"}, {}, r"= \('cls', True, False\)"),
        (SWIN | SWIN_HEAD | {"pool_norm": True}, {}, r"= \('mean', True, True\)"),
        (VIT | {"final_norm": False}, {}, "final_norm=True, not False"),
        (SWIN, {"interpolation": "box"}, "resize with data.interpolation='box'"),
    ],
)
def test_models_that_the_official_code_lacks_raise(model, data, complaint, tmp_path):
    make(tmp_path / "ours", model, **data)
    message = error_message(tmp_path / "ours", tmp_path / "x.pth", "--to=official")
    assert re.search(complaint, message)
    assert "the official code has no such model" in message
    assert "--to=huggingface or --to=timm" in message


def test_a_swin_with_windows_that_divide_is_written_for_other_proportions(tmp_path):
    make(tmp_path / "ours", SWIN | SWIN_HEAD, image_size=(32, 64))
    convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")


# ---- Prefixes ------------------------------------------------------------------------


def prefixed(file, target, prefix, **others):
    """Write a file whose tensors have a prefix, and other tensors."""

    def rename(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)
        tensors.update(others)

    return rewrite(file, target, rename)


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod.", "backbone.", "net."])
@pytest.mark.parametrize("model", [SWIN, SWIN | SWIN_HEAD], ids=["pretrain", "classes"])
def test_prefixes_are_removed(prefix, model, tmp_path, capsys):
    params = make(tmp_path / "ours", model)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    other = prefixed(file, tmp_path / "y.safetensors", prefix)
    assert_same(store.load(convert(other, tmp_path / "back", SIZE_FLAG))[0], params)
    note = f"note: removed '{prefix}' from the names of tensors"
    assert note in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("model", [PLAIN_VIT, SWIN], ids=["vit", "swin"])
def test_a_decoder_may_be_left_out(prefix, model, tmp_path):
    params = make(tmp_path / "ours", model)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    other = prefixed(file, tmp_path / "y.safetensors", prefix)
    flags = [SIZE_FLAG, "--model.num_heads=2"] if model is PLAIN_VIT else [SIZE_FLAG]
    for name, pattern in (("a", "^decoder"), ("b", rf"^{prefix}decoder\.")):
        back = convert(other, tmp_path / name, f"--leave_out={pattern}", *flags)
        assert_same(store.load(back)[0], {"encoder": params["encoder"]})


def test_tensors_without_the_prefix_raise_with_the_flag_that_works(tmp_path):
    params = make(tmp_path / "ours", SWIN, encoder_only=True)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    probe = {"head.weight": np.zeros((5, 16), np.float32), "step": np.zeros(1)}
    other = prefixed(file, tmp_path / "y.safetensors", "backbone.", **probe)
    message = error_message(other, tmp_path / "back", SIZE_FLAG)
    assert "start with 'backbone.', but these do not: head.weight, step" in message
    assert r"--leave_out='^(head|step)\b'" in message
    flag = r"--leave_out=^(head|step)\b"
    back = convert(other, tmp_path / "back", SIZE_FLAG, flag)
    assert_same(store.load(back)[0], params)


def test_two_encoders_raise_with_the_flag_that_works(tmp_path):
    make(tmp_path / "ours", SWIN, encoder_only=True)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    tensors = files.read(file)[0]
    both = {f"student.{n}": v for n, v in tensors.items()}
    both |= {f"teacher.{n}": v for n, v in tensors.items()}
    files.write(tmp_path / "both.safetensors", both)
    message = error_message(tmp_path / "both.safetensors", tmp_path / "back")
    assert "2 encoders, named student., teacher." in message
    assert r"--leave_out='^teacher\.'" in message
    flag = r"--leave_out=^teacher\."
    convert(tmp_path / "both.safetensors", tmp_path / "back", SIZE_FLAG, flag)


def test_names_of_mmpretrain_raise(tmp_path):
    state = {"backbone.patch_embed.projection.weight": np.zeros((8, 3, 4, 4))}
    files.write(tmp_path / "x.safetensors", state)
    message = error_message(tmp_path / "x.safetensors", tmp_path / "back")
    assert "of mmpretrain, which is not supported" in message


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_run_that_starts_from_foreign_weights_is_told_to_convert(kind, tmp_path):
    files.write(tmp_path / "model.safetensors", {"x": np.zeros(1, np.float32)})
    path = tmp_path if kind == "folder" else tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError) as error:
        layout.find(path)
    assert f"`simmim convert {path} runs/converted`" in str(error.value)


# ---- Descriptions --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "config.json' is not JSON"),
        ("[" * 100_000, "config.json' is not JSON"),
        ("\xff", "config.json' is not JSON"),
        ("[1]", "has neither 'model_type'"),
        ('{"a": 1}', "has neither 'model_type'"),
        ('{"model_type": 3}', "model_type=3: expected one of"),
        ('{"architecture": []}', "architecture=.*: expected a text"),
    ],
)
def test_malformed_descriptions_raise(text, complaint, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert re.search(complaint, error_message(tmp_path, tmp_path / "ours"))


def test_a_folder_of_tensors_alone_raises_with_the_command(tmp_path):
    files.write(tmp_path / "x.safetensors", {"x": np.zeros(1, np.float32)})
    message = error_message(tmp_path, tmp_path / "ours")
    assert f"`simmim convert {tmp_path / 'x.safetensors'} …`" in message


VALUES = (
    None, True, False, 0, 1, -1, 3, 10**30, 0.5, -2.5, 1e300, math.nan, math.inf, "",
    "x", "\ud800", "224", [], [1], [0, 0], [4, 4], [1, 2, 3], [None], ["a", 1], {},
    {"a": 1}, {"height": 32}, {"shortest_edge": -1}, {"0": "a", "1": 2}, {"x": "y"},
)  # fmt: skip


def mutated(value, rng: random.Random):
    """The value with one of its parts replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(8):
            case 0:
                del changed[name]
            case 1:
                changed[name + "_"] = changed.pop(name)
            case _:
                changed[name] = mutated(value[name], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(value[place], rng), *value[place + 1 :]]
    return rng.choice(VALUES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("huggingface", "config.json"),
        ("huggingface", "preprocessor_config.json"),
        ("timm", "config.json"),
        ("official", ""),
    ],
)
def test_mutated_descriptions_are_read_or_refused_in_a_sentence(to, name, tmp_path):
    make(tmp_path / "ours", SWIN_V2 | SWIN_HEAD | {"pretrained_window_sizes": ()})
    path = tmp_path / ("x" if name else "x.safetensors")
    convert(tmp_path / "ours", path, f"--to={to}")
    if name:
        description = json.loads((path / name).read_text())
    else:
        tensors, rest = files.read(path)
        description = json.loads(rest["config"])
    messages = []
    for seed in range(150):
        changed = mutated(description, random.Random(seed))
        if name:
            (path / name).write_text(json.dumps(changed))
        else:
            path.unlink()
            files.write(path, tensors, config=json.dumps(changed))
        try:
            formats.read(path, Overrides()).params()
        except UserError as error:
            messages.append(str(error))
    assert 50 < len(messages) < 150
    way_out = re.compile(r"[Ee]xpected|Remove it|[Aa]dd (--|it)|Correct sizes with --")
    assert [text for text in messages if not way_out.search(text)] == []


# ---- Checkpoints of ours -------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        {"eval_crop": 0.9, "eval_fit": "squash"},
        {"eval_crop": 1.0, "eval_fit": "cover", "eval_center": "floor"},
        {"eval_crop": 0.9, "interpolation": "lanczos"},
    ],
)
def test_official_files_keep_how_evaluation_fits_images(data, tmp_path):
    make(tmp_path / "ours", SWIN | SWIN_HEAD, **data)
    params, meta = store.load(tmp_path / "ours")
    meta["config"]["loss"] = "sigmoid"
    store.write(tmp_path / "sigmoid", params, meta)
    file = convert(tmp_path / "sigmoid", tmp_path / "x.safetensors", "--to=official")
    config = store.load(convert(file, tmp_path / "back"))[1]["config"]
    assert config["data"] == meta["config"]["data"]
    assert config["loss"] == "sigmoid"


@pytest.mark.parametrize(
    ("official", "data"),
    [
        ({"IMG_SIZE": 224}, {"interpolation": "bicubic"}),
        ({"IMG_SIZE": 192, "INTERPOLATION": "nearest"}, {"interpolation": "bilinear"}),
        ({"IMG_SIZE": 192, "INTERPOLATION": "lanczos"}, {"interpolation": "lanczos"}),
        # Images of CIFAR are neither resized nor cropped.
        ({"IMG_SIZE": 32}, {"interpolation": "bicubic", "eval_crop": 1.0}),
    ],
)
def test_official_preprocessing(official, data):
    test = Settings({"CROP": True}, "TEST")
    found = microsoft._data_fields(Settings(official, "DATA"), test)
    assert found == data | {"image_size": (official["IMG_SIZE"],) * 2}


def test_the_official_short_side_is_ours():
    """Official: int((256 / 224) * size); ours: int(size / eval_crop)."""
    for size in range(1, 1025):
        assert int((256 / 224) * size) == int(size / OFFICIAL_DATA["eval_crop"]), size


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_predict_runs_on_a_converted_classifier(tmp_path, photo):
    make(tmp_path / "ours", VIT_CLASSIFIER)
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    bare = rewrite(file, tmp_path / "bare.safetensors", lambda _: None)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["one", "two", "three", "four", "five"]))
    named = convert(bare, tmp_path / "named", f"--classes={names}")
    output = commands.run(
        str(named),
        f"--picture={tmp_path / 'out.png'}",
        photo,
        module="simmim_jax.predict",
    )
    assert all(name in output for name in ("one", "two", "three", "four", "five"))
    numbered = Predictor.load(convert(bare, tmp_path / "numbered"))
    assert numbered.class_names == tuple(f"class {i}" for i in range(5))
    images = numbered.prepare(photo.read_bytes())[None]
    original = Predictor.load(tmp_path / "ours")
    # Without mean and standard deviation in the file, the official ones are used.
    assert original.config.data.mean != numbered.config.data.mean
    assert numbered(images).shape == (1, 5)
    names.write_text("one\ntwo")
    message = error_message(bare, tmp_path / "wrong", f"--classes={names}")
    assert "2 class names for a head with 5 classes" in message


def test_finetuning_starts_from_a_converted_encoder(tmp_path):
    """End to end: a file is converted, restored and trained for a step."""
    model = PLAIN_VIT | {"patch_size": (14, 14)}
    make(tmp_path / "ours", model, image_size=(28, 28))
    file = convert(tmp_path / "ours", tmp_path / "x.safetensors", "--to=official")
    pretrained = convert(file, tmp_path / "pretrained")
    same = ("init_cut", "remat", "scan_layers")
    flags = {name: model[name] for name in model if name not in same}
    flags |= {"use_rel_pos_bias": False, "final_norm": False}
    output = commands.run(
        *commands.tiny("finetune", tmp_path / "run", "duration=1 steps"),
        f"--config.init_from={pretrained}",
        "--config.data.dataset=bundled:climate",
        "--config.data.channels=3",
        "--config.data.mean=(0.5, 0.5, 0.5)",
        "--config.data.std=(0.5, 0.5, 0.5)",
        *(f"--config.model.{name}={value}" for name, value in flags.items()),
    )
    assert "restored" in output
    assert "encoder/patch_embed" not in output.split("new:")[1].splitlines()[0]


@pytest.mark.parametrize(
    "other",
    [{"decoder": {"kind": "mlp"}}, {"target": {"downsample": 2}}],
    ids=["mlp", "downsample"],
)
def test_only_the_encoder_is_converted_with_another_decoder(other, tmp_path, capsys):
    params = make(tmp_path / "ours", SWIN)
    meta = store.load(tmp_path / "ours")[1]
    params["decoder_hidden"] = {"kernel": np.zeros((16, 16)), "bias": np.zeros(16)}
    store.write(tmp_path / "other", params, meta | {"config": meta["config"] | other})
    file = convert(tmp_path / "other", tmp_path / "x.safetensors", "--to=official")
    assert "left out: decoder.*.bias, decoder.*.weight, decoder_hidden.bias" in (
        capsys.readouterr().out
    )
    back = convert(file, tmp_path / "back")
    assert_same(store.load(back)[0], {"encoder": params["encoder"]})


def test_a_checkpoint_is_never_overwritten(tmp_path):
    make(tmp_path / "ours", VIT)
    before = store.load(tmp_path / "ours")[0]
    with pytest.raises(ValueError, match="holds a checkpoint already"):
        store.write(tmp_path / "ours", {"x": np.zeros(3)}, {})
    assert_same(store.load(tmp_path / "ours")[0], before)


def test_the_command_line(tmp_path):
    make(tmp_path / "ours", SWIN | SWIN_HEAD)
    output = commands.run(
        tmp_path / "ours",
        tmp_path / "x.safetensors",
        "--to=official",
        module="simmim_jax.convert",
    )
    size = sum(p.size for p in jax.tree.leaves(store.load(tmp_path / "ours")[0]))
    assert f"ours: classifier, swin, {size:,} parameters" in output
    config = json.loads(files.read(tmp_path / "x.safetensors")[1]["config"])
    assert config["MODEL"]["TYPE"] == "swin"
    assert config["MODEL"]["SWIN"]["WINDOW_SIZE"] == 4
    assert MEAN_HEAD["pool"] == "mean"
    assert len(CLASSES) == config["MODEL"]["NUM_CLASSES"]
