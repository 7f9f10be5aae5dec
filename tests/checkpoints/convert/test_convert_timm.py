"""Models of timm and ours give the same outputs."""

import json

import numpy as np
import pytest

from simmim_jax.checkpoints import store
from tests.commands import assert_same
from tests.convert_cases import (
    CLASSES,
    CLS_HEAD,
    GRID,
    MEAN_HEAD,
    PATCH,
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

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SIZES = {"img_size": SIZE, "patch_size": PATCH, "mlp_ratio": 2.0, "num_classes": 5}
SWIN_ARGS = SIZES | {
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
}
VIT_ARGS = SIZES | {"embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN_V2_ARGS = SWIN_ARGS | {
    "depths": (2, 2, 1),
    "num_heads": (2, 4, 4),
    "pretrained_window_sizes": (6, 6, 3),
}
HEADLESS = {"num_classes": 0}
THEIRS = {
    "swin": ("swin_tiny_patch4_window7_224", SWIN_ARGS),
    "swin-clamped": (
        "swin_tiny_patch4_window7_224",
        SWIN_ARGS | {"depths": (2, 2, 2), "num_heads": (2, 4, 4)},
    ),
    "swin-encoder": ("swin_tiny_patch4_window7_224", SWIN_ARGS | HEADLESS),
    "swinv2": ("swinv2_tiny_window8_256", SWIN_V2_ARGS),
    "vit": ("vit_base_patch16_224", VIT_ARGS),
    "vit-mean": (
        "vit_base_patch16_224",
        VIT_ARGS | {"global_pool": "avg", "init_values": 0.1},
    ),
    "vit-mean-unnormed": (
        "vit_base_patch16_224",
        VIT_ARGS | {"global_pool": "avg", "fc_norm": False},
    ),
    "vit-encoder": ("vit_base_patch16_224", VIT_ARGS | HEADLESS),
    "beit": ("beit_base_patch16_224", VIT_ARGS),
    "beit-cls": ("beit_base_patch16_224", VIT_ARGS | {"global_pool": "token"}),
    "beit-encoder": (
        "beit_base_patch16_224",
        VIT_ARGS
        | HEADLESS
        | {
            "global_pool": "token",
            "use_rel_pos_bias": False,
            "use_shared_rel_pos_bias": True,
        },
    ),
}
OURS = {
    "swin": SWIN | {"depths": (2, 2, 2), "num_heads": (2, 4, 4)},
    "swin-classifier": SWIN | SWIN_HEAD,
    "swin_v2": SWIN_V2,
    "swin_v2-classifier": SWIN_V2 | SWIN_HEAD | {"pretrained_window_sizes": ()},
    "vit": VIT,
    "vit-classifier": VIT_CLASSIFIER,
    "plain-classifier": PLAIN_VIT | CLS_HEAD,
    "plain-mean": PLAIN_VIT
    | MEAN_HEAD
    | {"final_norm": False, "layer_scale": 0.1, "drop_path_rate": 0.1},
}


def their_model(name: str):
    architecture, args = THEIRS[name]
    torch.manual_seed(0)
    model = timm.create_model(architecture, **args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def run_theirs(model) -> np.ndarray:
    """Logits, or patch features [b, h, w, d] float."""
    pixels = torch.from_numpy(images().transpose(0, 3, 1, 2))
    with torch.no_grad():
        if model.num_classes:
            return model(pixels).numpy()
        features = model.forward_features(pixels).numpy()
    if features.ndim == 3:  # the class token comes first
        features = features[:, 1:].reshape(2, GRID, GRID, -1)
    return features


@pytest.mark.parametrize("name", THEIRS)
def test_converted_from_timm_the_outputs_agree(name, tmp_path, capsys):
    theirs = their_model(name)
    timm.models.save_for_hf(theirs, str(tmp_path / "timm"), safe_serialization="both")
    ours = convert(tmp_path / "timm", tmp_path / "ours")
    expected = run_theirs(theirs)
    np.testing.assert_allclose(run(ours, images()), expected, **TOLERANCE)
    assert np.abs(expected).max() > 0.1
    report = capsys.readouterr().out
    assert ("attn.k_bias (2)" in report) == name.startswith("vit")


@pytest.mark.parametrize("name", OURS)
def test_converted_to_timm_the_outputs_agree(name, tmp_path, capsys):
    model = OURS[name]
    # timm has no mask token: encoders see unmasked images.
    pretrained = "pool" not in model
    params = make(tmp_path / "ours", model)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    found = run_theirs(theirs)
    back = convert(folder, tmp_path / "back")
    np.testing.assert_allclose(found, run(back, images()), **TOLERANCE)
    expected = dict(params)
    report = capsys.readouterr().out
    assert (
        "left out: decoder.*.bias, decoder.*.weight, encoder.mask_token" in report
    ) == (pretrained)
    if pretrained:
        del expected["decoder"]
        expected["encoder"] = dict(expected["encoder"])
        del expected["encoder"]["mask_token"]
    again, meta = store.load(back)
    assert_same(again, expected)
    data = store.load(tmp_path / "ours")[1]["config"]["data"]
    assert meta["config"]["data"] == data
    assert meta.get("class_names", []) == ([] if pretrained else list(CLASSES))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_single_files_load_strictly(suffix, tmp_path):
    make(tmp_path / "ours", SWIN | SWIN_HEAD)
    file = convert(tmp_path / "ours", tmp_path / f"timm.{suffix}", "--to=timm")
    architecture, args = THEIRS["swin"]
    theirs = timm.create_model(architecture, **args, checkpoint_path=str(file)).eval()
    expected = run(tmp_path / "ours", images())
    np.testing.assert_allclose(run_theirs(theirs), expected, **TOLERANCE)
    # Convert back, with the setting that tensors do not determine.
    back = convert(file, tmp_path / "back", f"--data.image_size=({SIZE}, {SIZE})")
    assert_same(store.load(back)[0], store.load(tmp_path / "ours")[0])


def test_official_files_load_in_timm(tmp_path):
    make(tmp_path / "ours", SWIN | SWIN_HEAD)
    file = convert(tmp_path / "ours", tmp_path / "official.pth", "--to=official")
    theirs = timm.create_model(
        THEIRS["swin"][0],
        **THEIRS["swin"][1],
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "num_classes": 5},
    )
    expected = run(tmp_path / "ours", images())
    np.testing.assert_allclose(run_theirs(theirs.eval()), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (SWIN | {"norm_eps": 1e-6}, "eps=1e-05"),
        (SWIN | {"use_abs_pos_emb": True}, "absolute positions"),
        (VIT | CLS_HEAD | {"final_norm": False}, "final_norm"),
    ],
)
def test_models_that_timm_lacks_raise(model, complaint, tmp_path):
    make(tmp_path / "ours", model)
    with pytest.raises(SystemExit, match=complaint):
        convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")


def change_args(folder, **args):
    """Change model_args in a folder of timm."""
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] |= args
    (folder / "config.json").write_text(json.dumps(config))


def test_unsupported_arguments_raise(tmp_path):
    make(tmp_path / "ours", SWIN_V2 | SWIN_HEAD)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    change_args(folder, act_layer="gelu", always_partition=False, drop_rate=0.1)
    convert(folder, tmp_path / "same")
    change_args(folder, act_layer="relu", always_partition=True, global_pool="max")
    with pytest.raises(SystemExit, match=r"relu.*always_partition.*global_pool.*max"):
        convert(folder, tmp_path / "back")


def test_windows_given_as_height_and_width(tmp_path):
    make(tmp_path / "ours", SWIN_V2 | SWIN_HEAD)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    change_args(folder, window_size=[4, 4])
    meta = store.load(convert(folder, tmp_path / "back"))[1]
    assert meta["config"]["model"]["window_size"] == 4
    change_args(folder, window_size=[4, 2])
    with pytest.raises(SystemExit, match=r"window_size=\(4, 2\): expected int"):
        convert(folder, tmp_path / "other")


def test_malformed_arguments_raise(tmp_path):
    make(tmp_path / "ours", SWIN | SWIN_HEAD)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    change_args(folder, pretrained_window_sizes=4)
    with pytest.raises(SystemExit, match="timm' has a setting of an unexpected type"):
        convert(folder, tmp_path / "back")


def test_other_models_raise(tmp_path):
    model = timm.create_model("resnet18", num_classes=2)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    assert "architecture" in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(SystemExit, match="no ViT, Swin or Swin V2"):
        convert(tmp_path, tmp_path / "ours")
