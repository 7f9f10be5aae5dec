"""Models of timm and ours give the same outputs."""

import inspect
import json

import numpy as np
import pytest
from PIL import Image

from simmim_jax.checkpoints import store
from simmim_jax.checkpoints.convert import timm as ours
from simmim_jax.checkpoints.convert.overrides import OFFICIAL_DATA
from simmim_jax.checkpoints.convert.settings import Settings
from simmim_jax.tasks.predict import Predictor
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
    picture,
    prepared,
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


def test_arguments_that_are_off_are_accepted(tmp_path):
    make(tmp_path / "ours", SWIN_V2 | SWIN_HEAD)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    off = {"always_partition": False, "act_layer": "gelu", "window_size": [4, 4]}
    change_args(folder, **off, drop_rate=0.1, norm_layer=None)
    meta = store.load(convert(folder, tmp_path / "back"))[1]
    assert meta["config"]["model"]["window_size"] == 4


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({"act_layer": "relu"}, "act_layer='relu', but our MLPs use the exact 'gelu'"),
        ({"always_partition": True}, "always_partition=True, .* no such variant"),
        ({"pool_include_prefix": True}, "pool_include_prefix=True"),
        ({"norm_layer": "rmsnorm"}, "norm_layer='rmsnorm'"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"new": 1}, "new=1, but this converter does not know the setting"),
        ({"window_size": [4, 2]}, r"window_size=\[4, 2\], but our windows are square"),
        ({"window_size": [7, 7, 14, 7]}, "window_size=.*: expected a height and"),
        ({"pretrained_window_sizes": 4}, "pretrained_window_sizes=4: expected a list"),
        ({"img_size": "32"}, "img_size='32': expected a whole number"),
    ],
)
def test_unsupported_arguments_raise(args, complaint, tmp_path):
    make(tmp_path / "ours", SWIN_V2 | SWIN_HEAD)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    change_args(folder, **args)
    with pytest.raises(SystemExit, match=complaint):
        convert(folder, tmp_path / "back")


def test_all_arguments_of_timm_are_known():
    """Else a model with a new argument would be refused, or another one is missing."""
    classes = (
        timm.models.vision_transformer.VisionTransformer,
        timm.models.beit.Beit,
        timm.models.swin_transformer.SwinTransformer,
        timm.models.swin_transformer_v2.SwinTransformerV2,
    )
    read = {"img_size", "num_heads", "drop_path_rate", "init_values", "window_size"}
    read |= {"pretrained_window_sizes", "act_layer", "global_pool"}
    known = read | {*ours._IGNORED, *ours._OFF}
    for each in classes:
        arguments = {*inspect.signature(each.__init__).parameters} - {"self"}
        assert arguments <= known, each
    # What is off by default may be off; for the others "off" would be a choice.
    for each in classes:
        for name, parameter in inspect.signature(each.__init__).parameters.items():
            assert name not in ours._OFF or parameter.default is not True, name


def arithmetic(model) -> tuple[set, set]:
    """What tensors do not determine: activations, and epsilons of norms."""
    acts = {
        (type(m).__name__, getattr(m, "approximate", "none"))
        for name, m in model.named_modules()
        if name.endswith(".act")
    }
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    return acts, {norm.eps for norm in norms}


@pytest.mark.slow
def test_known_architectures_compute_what_ours_do():
    """All that timm has: those with other activations or epsilons are not known."""
    known = [n for n in timm.list_models() if ours._KNOWN.fullmatch(n)]
    assert len(known) > 60
    for name in known:
        with torch.device("meta"):
            model = timm.create_model(name)
        acts, eps = arithmetic(model)
        assert acts == {("GELU", "none")}, name
        assert eps == {1e-5 if name.startswith("swin") else 1e-6}, name
        if name.startswith("swinv2"):
            attention = [b.attn for stage in model.layers for b in stage.blocks]
            fields = ours._model_fields(Settings({}, ""), name)
            blocks = [len(stage.blocks) for stage in model.layers]
            expected = fields["pretrained_window_sizes"] or (0,) * 4
            expected = [
                w for w, n in zip(expected, blocks, strict=True) for _ in range(n)
            ]
            assert [a.pretrained_window_size[0] for a in attention] == expected, name
            assert attention[0].window_size[0] == fields["window_size"], name


@pytest.mark.parametrize(
    "architecture",
    ["vit_base_patch16_clip_quickgelu_224", "swin_s3_tiny_224", "swinv2_cr_tiny_224"],
)
def test_architectures_with_another_arithmetic_raise(architecture, tmp_path):
    make(tmp_path / "ours", PLAIN_VIT | CLS_HEAD)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    config = json.loads((folder / "config.json").read_text())
    config["architecture"] = architecture
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=f"architecture='{architecture}'"):
        convert(folder, tmp_path / "back")


# ---- Swin V2 with the positions of another window ------------------------------------


def small_12to16(tmp_path):
    """A folder of a small Swin V2, with the description of "12to16" weights."""
    args = SWIN_V2_ARGS | {"img_size": 64, "window_size": 16, "depths": (1, 1, 1, 1)}
    args |= {"num_heads": (2, 2, 2, 2), "pretrained_window_sizes": (12, 12, 12, 6)}
    torch.manual_seed(0)
    theirs = timm.create_model("swinv2_base_window12to16_192to256", **args).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    folder = tmp_path / "timm"
    timm.models.save_for_hf(theirs, str(folder), safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    # As on the hub: the name alone tells the windows.
    config.pop("model_args", None)
    config["pretrained_cfg"] |= {"input_size": [3, 64, 64]}
    (folder / "config.json").write_text(json.dumps(config))
    pixels = torch.from_numpy(images((64, 64)).transpose(0, 3, 1, 2))
    with torch.no_grad():
        return folder, theirs(pixels).numpy()


def test_windows_of_pre_training_follow_from_the_name(tmp_path):
    folder, expected = small_12to16(tmp_path)
    found = run(convert(folder, tmp_path / "ours"), images((64, 64)))
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    # A file has no name.
    file, size = folder / "model.safetensors", "--data.image_size=(64, 64)"
    with pytest.raises(SystemExit) as error:
        convert(file, tmp_path / "file", size)
    assert "['window_size', 'pretrained_window_sizes']: add" in str(error.value)
    flags = ["--model.window_size=16"]
    flags += ["--model.pretrained_window_sizes=(12, 12, 12, 6)"]
    found = run(convert(file, tmp_path / "file", size, *flags), images((64, 64)))
    np.testing.assert_allclose(found, expected, **TOLERANCE)


# ---- Windows that do not divide the grid ---------------------------------------------


@pytest.mark.parametrize("version", ["swin", "swinv2"])
@pytest.mark.parametrize("size", [(36, 36), (40, 44)])
def test_grids_that_windows_do_not_divide(version, size, tmp_path):
    """timm pads after the shift; a grid of 9 has odd sides as well."""
    architecture, args = THEIRS[version]
    sizes = {"img_size": size, "depths": (2, 2), "num_heads": (2, 4)}
    args = (
        args | sizes | ({"pretrained_window_sizes": (6, 6)} if "2" in version else {})
    )
    torch.manual_seed(0)
    theirs = timm.create_model(architecture, **args).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    timm.models.save_for_hf(theirs, str(tmp_path / "timm"), safe_serialization=True)
    config = json.loads((tmp_path / "timm/config.json").read_text())
    config["model_args"] = args
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    converted = convert(tmp_path / "timm", tmp_path / "ours")
    pixels = torch.from_numpy(images(size).transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = theirs(pixels).numpy()
    np.testing.assert_allclose(run(converted, images(size)), expected, **TOLERANCE)
    params, meta = store.load(converted)
    meta["config"]["model"]["pad_after_shift"] = False
    store.write(tmp_path / "before", params, meta)
    assert np.abs(run(tmp_path / "before", images(size)) - expected).max() > 1e-3
    # What cannot be held is refused, in all directions.
    for source, to, reason in (
        ("ours", "huggingface", "pads before the shift|square images"),
        ("ours", "official", "does not pad"),
        ("before", "timm", "pads it after the shift|square images"),
    ):
        target = tmp_path / f"{source}{'.pth' if to == 'official' else ''}.{to}"
        target = target.with_suffix(".pth") if to == "official" else target
        with pytest.raises(SystemExit, match=reason):
            convert(tmp_path / source, target, f"--to={to}")
        assert not target.exists()


@pytest.mark.parametrize("classes", [0, 5])
def test_tensors_alone_of_a_swin_are_padded_in_timms_order(classes, tmp_path):
    """Windows of 4 do not divide the grid of 9x9."""
    architecture, args = THEIRS["swin"]
    torch.manual_seed(0)
    args = args | {"img_size": 36, "num_classes": classes}
    theirs = timm.create_model(architecture, **args).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    size = "--data.image_size=(36, 36)"
    pixels = torch.from_numpy(images((36, 36)).transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = theirs(pixels) if classes else theirs.forward_features(pixels)
    found = run(convert(tmp_path / "x.pth", tmp_path / "a", size), images((36, 36)))
    np.testing.assert_allclose(found, expected.numpy(), **TOLERANCE)
    flags = [size, "--model.pad_after_shift=False"]
    other = run(convert(tmp_path / "x.pth", tmp_path / "b", *flags), images((36, 36)))
    assert np.abs(other - expected.numpy()).max() > 1e-3


def test_windows_that_timm_fits_to_each_side_raise(tmp_path):
    """The second stage's grid is 4x6: timm shifts windows of 4 along one side."""
    architecture, args = THEIRS["swin"]
    args = args | {"img_size": (32, 48)}
    theirs = timm.create_model(architecture, **args)
    timm.models.save_for_hf(theirs, str(tmp_path / "timm"), safe_serialization=True)
    config = json.loads((tmp_path / "timm/config.json").read_text())
    config["model_args"] = args
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="img_size 32x48 gives a grid of 4x6"):
        convert(tmp_path / "timm", tmp_path / "ours")
    file, size = tmp_path / "timm/model.safetensors", "--data.image_size=(32, 48)"
    with pytest.raises(SystemExit, match="img_size 32x48 gives a grid of 4x6"):
        convert(file, tmp_path / "ours", size)


# ---- Preprocessing -------------------------------------------------------------------


def described() -> dict[str, dict]:
    """Image settings of all weights whose architectures we know."""
    found = {}
    for name in timm.list_pretrained():
        if ours._KNOWN.fullmatch(name.partition(".")[0]):
            config = timm.models.get_pretrained_cfg(name).to_dict()
            names = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
            found.setdefault(str([config.get(n) for n in names]), config)
    return found


@pytest.mark.parametrize("size", [(61, 47), (96, 160), (SIZE, SIZE)])
def test_evaluation_gives_the_pixels_of_all_published_weights(size):
    configs = described()
    assert len(configs) >= 8
    for config in configs.values():
        check_pixels(config | {"input_size": (3, SIZE, SIZE)}, size)


@pytest.mark.parametrize("size", [(61, 47), (40, 75), (SIZE, SIZE), (300, 17)])
@pytest.mark.parametrize("target", [(SIZE, SIZE), (24, 40)])
@pytest.mark.parametrize("mode", ["center", "squash", "border", None])
@pytest.mark.parametrize("share", [1.0, 0.9, None])
def test_evaluation_gives_the_pixels_of_timms_transform(mode, share, target, size):
    config = {"input_size": (3, *target), "crop_pct": share, "crop_mode": mode}
    check_pixels(config, size)


@pytest.mark.parametrize("name", ours.FILTERS)
def test_all_filters_of_timm(name):
    check_pixels({"input_size": (3, SIZE, SIZE), "interpolation": name}, (61, 47))


def test_one_mean_is_that_of_all_channels():
    config = {"input_size": (3, SIZE, SIZE), "mean": [0.4] * 3, "std": [0.3] * 3}
    check_pixels(config, (61, 47))


def check_pixels(config, size):
    """Compare the transform that timm makes of a pretrained_cfg with our evaluation."""
    resolved = timm.data.resolve_data_config({}, pretrained_cfg=config)
    theirs = timm.data.create_transform(**resolved)(picture(size)).numpy()
    settings = Settings(config, "the file")
    data = ours._data_fields(settings)
    settings.ignore([*ours._IGNORED_IMAGES, "fixed_input_size"])
    settings.finish()
    found = prepared(picture(size), **OFFICIAL_DATA | data).transpose(2, 0, 1)
    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-5, err_msg=str(config))


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"crop_mode": "corner"}, "crop_mode='corner': expected one of"),
        ({"crop_pct": 1.1}, "crop_pct=1.1: expected a share from 0 to 1"),
        ({"interpolation": "random"}, "interpolation='random': expected one of"),
        (
            {"input_size": [224, 224]},
            "input_size=.*expected channels, height and width",
        ),
        ({"std": [0, 1, 1]}, "std=.*expected a number above 0"),
        ({"crop_border_pixels": 3}, "crop_border_pixels=3, .* does not know"),
    ],
)
def test_preprocessing_that_we_lack_raises(setting, complaint, tmp_path):
    make(tmp_path / "ours", SWIN | SWIN_HEAD)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= setting
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=complaint):
        convert(folder, tmp_path / "back")


@pytest.mark.parametrize(
    "data",
    [{"eval_crop": 1.0, "eval_fit": "cover"}, {"eval_crop": 0.9, "eval_fit": "pad"}],
)
def test_from_a_file_to_probabilities(data, tmp_path):
    """The whole pipeline of theirs, and ours of the folder converted there and back."""
    make(tmp_path / "ours", SWIN | SWIN_HEAD, **data)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(theirs)
    transform = timm.data.create_transform(**settings, is_training=False)
    path = tmp_path / "photo.png"
    picture((96, 160)).save(path)
    with Image.open(path) as image, torch.no_grad():
        logits = theirs(transform(image.convert("RGB"))[None])
    expected = torch.softmax(logits, 1)[0].numpy()
    assert expected.max() - expected.min() > 0.1
    for model in (tmp_path / "ours", convert(folder, tmp_path / "back")):
        [found] = Predictor.load(model).predict([path])
        found = [found[name] for name in CLASSES]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_what_timm_cannot_hold_is_said(tmp_path, capsys):
    make(tmp_path / "ours", SWIN | SWIN_HEAD, eval_center="floor")
    params, meta = store.load(tmp_path / "ours")
    meta["config"]["loss"] = "sigmoid"
    store.write(tmp_path / "sigmoid", params, meta)
    convert(tmp_path / "sigmoid", tmp_path / "timm", "--to=timm")
    notes = capsys.readouterr().out
    assert "note: timm has no setting for loss='sigmoid'" in notes
    assert "note: timm rounds where a crop begins" in notes


def test_other_models_raise(tmp_path):
    model = timm.create_model("resnet18", num_classes=2)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    assert "architecture" in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(
        SystemExit, match="'resnet18', but it is no ViT, Swin or Swin V2"
    ):
        convert(tmp_path, tmp_path / "ours")
