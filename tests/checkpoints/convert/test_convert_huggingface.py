"""Models of Hugging Face transformers and ours give the same outputs."""

import json

import numpy as np
import pytest

from simmim_jax.checkpoints import store
from simmim_jax.checkpoints.convert.huggingface_names import to_official
from simmim_jax.checkpoints.convert.huggingface_processor import (
    crop_share,
    data_fields,
    lost_settings,
)
from simmim_jax.checkpoints.convert.model import Model
from simmim_jax.checkpoints.convert.settings import Settings
from simmim_jax.tasks.predict import Predictor
from tests.commands import assert_same
from tests.convert_cases import (
    CLASSES,
    CLS_HEAD,
    DATA,
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
    mask,
    masked_loss,
    picture,
    prepared,
    run,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SWIN_CONFIG = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "encoder_stride": 2 * PATCH,
    "id2label": dict(enumerate(CLASSES)),
}
VIT_CONFIG = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "encoder_stride": PATCH,
    "layer_norm_eps": 0.01,  # large enough to matter
    "id2label": dict(enumerate(CLASSES)),
}
BEIT_CONFIG = VIT_CONFIG | {
    "use_relative_position_bias": True,
    "use_shared_relative_position_bias": True,
    "use_absolute_position_embeddings": True,
}
SWIN_V2_CONFIG = SWIN_CONFIG | {
    "depths": [2, 2, 1],
    "num_heads": [2, 4, 4],
    "encoder_stride": 4 * PATCH,
    "pretrained_window_sizes": [6, 6, 3],
}
# A grid of 8 does not divide into windows of 3.
ODD_WINDOW = {"window_size": 3}
# Models of transformers: class, config class, settings.
THEIRS = {
    "swin": ("SwinForMaskedImageModeling", "SwinConfig", SWIN_CONFIG),
    "swin-odd": (
        "SwinForMaskedImageModeling",
        "SwinConfig",
        SWIN_CONFIG | ODD_WINDOW | {"use_absolute_embeddings": True, "qkv_bias": False},
    ),
    "swin-classifier": ("SwinForImageClassification", "SwinConfig", SWIN_CONFIG),
    "swin-encoder": ("SwinModel", "SwinConfig", SWIN_CONFIG),
    "swinv2": ("Swinv2ForMaskedImageModeling", "Swinv2Config", SWIN_V2_CONFIG),
    "swinv2-classifier": (
        "Swinv2ForImageClassification",
        "Swinv2Config",
        SWIN_V2_CONFIG | {"pretrained_window_sizes": [0, 0, 0]},
    ),
    "vit": ("ViTForMaskedImageModeling", "ViTConfig", VIT_CONFIG),
    "vit-classifier": ("ViTForImageClassification", "ViTConfig", VIT_CONFIG),
    "beit-encoder": (
        "BeitModel",
        "BeitConfig",
        BEIT_CONFIG | {"use_mean_pooling": False, "use_mask_token": True},
    ),
    "beit-classifier": ("BeitForImageClassification", "BeitConfig", BEIT_CONFIG),
    "beit-cls": (
        "BeitForImageClassification",
        "BeitConfig",
        VIT_CONFIG | {"use_mean_pooling": False, "layer_scale_init_value": 0.0},
    ),
}
# Our models, and the class of transformers that each becomes.
OURS = {
    "swin": (SWIN, "SwinForMaskedImageModeling"),
    "swin-classifier": (SWIN | SWIN_HEAD, "SwinForImageClassification"),
    "swin_v2": (SWIN_V2, "Swinv2ForMaskedImageModeling"),
    "swin_v2-classifier": (SWIN_V2 | SWIN_HEAD, "Swinv2ForImageClassification"),
    "plain": (PLAIN_VIT, "ViTForMaskedImageModeling"),
    "plain-classifier": (PLAIN_VIT | CLS_HEAD, "ViTForImageClassification"),
    "plain-mean": (
        PLAIN_VIT | MEAN_HEAD | {"final_norm": False},
        "BeitForImageClassification",
    ),
    "vit-classifier": (VIT_CLASSIFIER, "BeitForImageClassification"),
    "vit": (VIT, "BeitModel"),
}


def their_model(name: str):
    kind, config, settings = THEIRS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def run_theirs(model, masked: bool) -> tuple[np.ndarray, float | None]:
    """Logits, pixels or patch features in our layout, and the loss if `masked`."""
    pixels = torch.from_numpy(images().transpose(0, 3, 1, 2))
    hidden = torch.from_numpy(mask().reshape(2, -1)) if masked else None
    with torch.no_grad():
        out = model(pixels, **({"bool_masked_pos": hidden} if masked else {}))
    if "logits" in out:
        return out.logits.numpy(), None
    if "reconstruction" in out:
        return out.reconstruction.numpy().transpose(0, 2, 3, 1), float(out.loss)
    features = out.last_hidden_state.numpy()
    if features.shape[1] == GRID**2 + 1:  # the class token comes first
        features = features[:, 1:]
    side = int(features.shape[1] ** 0.5)
    return features.reshape(2, side, side, -1), None


@pytest.mark.parametrize("name", THEIRS)
def test_converted_from_transformers_the_outputs_agree(name, tmp_path, capsys):
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path / "hf")
    ours = convert(tmp_path / "hf", tmp_path / "ours")
    masked = "Masked" in THEIRS[name][0] or name == "beit-encoder"
    expected, loss = run_theirs(theirs, masked)
    found = run(ours, images(), mask() if masked else None)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert np.abs(expected).max() > 0.1
    if loss is not None:
        assert masked_loss(found, images(), mask()) == pytest.approx(loss, rel=1e-5)
    # Only biases of keys may be left out, and they are listed.
    report = capsys.readouterr().out
    assert ("left out" in report) == name.startswith("vit")
    assert "left out: " not in report or "attn.k_bias (2)" in report
    meta = store.load(ours)[1]
    classes = list(CLASSES) if "classifier" in name or name == "beit-cls" else None
    assert meta.get("class_names") == classes


@pytest.mark.parametrize("name", OURS)
def test_converted_to_transformers_the_outputs_agree(name, tmp_path):
    model, kind = OURS[name]
    params = make(tmp_path / "ours", model)
    hf = convert(tmp_path / "ours", tmp_path / "hf", "--to=huggingface")
    theirs, loading = getattr(transformers, kind).from_pretrained(
        hf, output_loading_info=True
    )
    assert json.loads((hf / "config.json").read_text())["architectures"] == [kind]
    # The pixel decoder is in the file, but not in BeitModel.
    decoder = {"decoder.0.weight", "decoder.0.bias"} if kind == "BeitModel" else set()
    assert set(loading["unexpected_keys"]) == decoder
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
    masked = "pool" not in model
    found, loss = run_theirs(theirs.eval(), masked)
    expected = run(tmp_path / "ours", images(), mask() if masked else None)
    if kind == "BeitModel":
        weight, bias = params["decoder"]["kernel"], params["decoder"]["bias"]
        pixels = (found @ weight + bias).reshape(2, GRID, GRID, 3, PATCH, PATCH)
        found = pixels.transpose(0, 1, 4, 2, 5, 3).reshape(2, SIZE, SIZE, 3)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    if loss is not None:
        assert masked_loss(expected, images(), mask()) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_round_trip_is_exact(name, tmp_path):
    model, _ = OURS[name]
    params = make(tmp_path / "ours", model)
    convert(tmp_path / "ours", tmp_path / "hf", "--to=huggingface")
    back = convert(tmp_path / "hf", tmp_path / "back")
    found, meta = store.load(back)
    assert_same(found, params)
    before = store.load(tmp_path / "ours")[1]
    lost = {"init_cut", "drop_path_rate"} if model["name"] == "vit" else set()
    for part in ("model", "data"):
        for field, value in before["config"][part].items():
            assert field in lost or meta["config"][part][field] == value, field
    assert meta.get("class_names") == before.get("class_names")


def test_files_of_transformers_come_back_exactly(tmp_path):
    theirs = their_model("swinv2")
    theirs.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "again", "--to=huggingface")
    again = type(theirs).from_pretrained(tmp_path / "again").state_dict()
    assert again.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(again[name], value), name


# ---- Image processors ----------------------------------------------------------------

SQUARE = {"size": {"height": SIZE, "width": SIZE}}
COVER = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 37},
    "crop_size": {"height": SIZE, "width": SIZE},
}
# preprocessor_config.json, and the `model_type` of its model.
PROCESSORS = {
    "defaults": ({}, "swin"),
    "defaults of BEiT": ({"image_processor_type": "BeitImageProcessor"}, "beit"),
    "defaults of DeiT": ({"image_processor_type": "DeiTImageProcessorFast"}, "vit"),
    "defaults of CLIP": ({"image_processor_type": "CLIPImageProcessor"}, "vit"),
    "defaults of BiT": ({"image_processor_type": "BitImageProcessor"}, "vit"),
    "old file": (
        {"feature_extractor_type": "ViTFeatureExtractor", "size": SIZE},
        "vit",
    ),
    "not normalised": (SQUARE | {"do_normalize": False}, "vit"),
    "not rescaled": (SQUARE | {"do_rescale": False, "image_mean": [99, 9, 9]}, "vit"),
    "neither": (SQUARE | {"do_rescale": False, "do_normalize": False}, "vit"),
    "other factor": (SQUARE | {"rescale_factor": 1 / 127.5}, "vit"),
    "one mean": (SQUARE | {"image_mean": 0.4, "image_std": 0.3}, "vit"),
    "height and width": ({"size": [24, 40]}, "swin"),
    "crop": (COVER, "swin"),
    "crop of all": (COVER | {"size": {"shortest_edge": SIZE}}, "swin"),
    "crop of an int": (COVER | {"size": 40}, "swin"),
    "crop of a square": (COVER | {"size": 40, "default_to_square": True}, "swin"),
    "switched off": (SQUARE | {"do_center_crop": False, "do_pad": False}, "swin"),
    **{f"filter {n}": (SQUARE | {"resample": n}, "swin") for n in range(6)},
}


@pytest.mark.parametrize("size", [(61, 47), (40, 75), (SIZE, SIZE)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_evaluation_gives_the_pixels_of_the_image_processor(name, size):
    config, model_type = PROCESSORS[name]
    kind = config.get("image_processor_type", "ViTImageProcessor").removesuffix("Fast")
    settings = {k: v for k, v in config.items() if not k.endswith("_type")}
    theirs = getattr(transformers, f"{kind}Pil")(**settings)
    image = picture(size)
    expected = theirs(image, return_tensors="np")["pixel_values"][0]
    data = data_fields(Settings(config, "the file"), model_type)
    data |= {name: data[name] * 3 for name in ("mean", "std") if len(data[name]) == 1}
    found = prepared(image, **data).transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"do_resize": False}, "do_resize=False, but we resize every image"),
        ({"do_pad": True}, "do_pad=True"),
        ({"size": {"longest_edge": 32}}, "expected height and width, or shortest_edge"),
        ({"size": {"shortest_edge": 32}}, "without a crop, images keep their shape"),
        ({"resample": 6}, r"resample=6: expected one of \[0, 1"),
        ({"rescale_factor": 0}, "rescale_factor=0: expected a number above 0"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std=.*: expected a number above 0"),
        ({"do_normalize": "no"}, "do_normalize='no': expected true or false"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "image_processor_type="),
        ({"rescale_offset": True}, "rescale_offset=True, .* does not know the setting"),
        (COVER | {"crop_size": 40}, "crop_size=.*at most"),
        (COVER | {"crop_size": [20, 30]}, "crop_size=.*we crop squares"),
        (COVER | {"size": [40, 60]}, "crop_size=.*the same share of both sides"),
    ],
)
def test_image_processors_that_we_lack_raise(setting, complaint):
    with pytest.raises(ValueError, match=complaint):
        data_fields(Settings(setting, "the file"), "vit")


def score_theirs(folder, path) -> dict[str, float]:
    """Scores of their pipeline for a file, with Pillow's image processor."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    classify = transformers.pipeline(
        "image-classification", model=model, image_processor=processor
    )
    return {x["label"]: x["score"] for x in classify(str(path), top_k=None)}


@pytest.mark.parametrize(
    ("settings", "processor"),
    [
        ({}, COVER),
        ({}, SQUARE | {"do_normalize": False}),
        ({"problem_type": "multi_label_classification"}, SQUARE),
        ({"problem_type": "single_label_classification"}, SQUARE | {"resample": 0}),
        ({"id2label": {0: "ant"}}, COVER | {"size": {"shortest_edge": SIZE}}),
    ],
    ids=["crop", "not normalised", "many labels", "one label", "one class"],
)
def test_from_a_file_to_scores(settings, processor, tmp_path):
    """The whole pipeline of theirs, and ours of the converted folder."""
    kind, config, sizes = THEIRS["swin-classifier"]
    config = getattr(transformers, config)(**sizes | settings)
    torch.manual_seed(0)
    theirs = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/preprocessor_config.json").write_text(json.dumps(processor))
    path = tmp_path / "photo.png"
    picture().save(path)
    expected = score_theirs(tmp_path / "hf", path)
    ours = Predictor.load(convert(tmp_path / "hf", tmp_path / "ours"))
    [found] = ours.predict([path])
    assert list(found) == list(expected)
    np.testing.assert_allclose([*found.values()], [*expected.values()], atol=1e-5)
    assert len(found) == 1 or max(found.values()) - min(found.values()) > 0.1
    # And back.
    again = convert(tmp_path / "ours", tmp_path / "again", "--to=huggingface")
    assert score_theirs(again, path) == pytest.approx(expected, abs=1e-5)


def test_a_nested_image_processor_takes_precedence(tmp_path):
    their_model("swin-classifier").save_pretrained(tmp_path / "hf")
    nested = {"image_processor": SQUARE | {"image_mean": 0.25}}
    for name, content in (("processor", nested), ("preprocessor", SQUARE)):
        (tmp_path / f"hf/{name}_config.json").write_text(json.dumps(content))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert processor.image_mean == 0.25
    convert(tmp_path / "hf", tmp_path / "ours")
    data = store.load(tmp_path / "ours")[1]["config"]["data"]
    assert data["mean"] == [0.25] * 3


def test_without_an_image_processor_a_note_says_what_is_assumed(tmp_path, capsys):
    their_model("swin-classifier").save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ours")
    assert "note: the folder has no preprocessor_config.json: assumed" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "data",
    [
        {"eval_crop": 0.875},
        {"eval_crop": 1.0},
        {"eval_crop": 1.0, "eval_fit": "cover"},
        {"eval_crop": 0.8, "eval_fit": "squash", "interpolation": "lanczos"},
    ],
)
def test_image_processor_prepares_images_like_predict(data, tmp_path, capsys):
    make(tmp_path / "ours", SWIN | SWIN_HEAD, **data)
    hf = convert(tmp_path / "ours", tmp_path / "hf", "--to=huggingface")
    rounds = data["eval_crop"] < 1 or "eval_fit" in data
    assert ("transformers rounds down" in capsys.readouterr().out) == rounds
    image = picture((60, 47))  # no offset depends on rounding
    processor = transformers.AutoImageProcessor.from_pretrained(hf, backend="pil")
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    ours = prepared(image, **DATA | data)
    np.testing.assert_allclose(theirs.transpose(1, 2, 0), ours, rtol=1e-6, atol=1e-6)
    convert(hf, tmp_path / "back")
    back = store.load(tmp_path / "back")[1]["config"]["data"]
    floor = {"eval_center": "floor"} if rounds else {}
    assert back == json.loads(json.dumps(DATA | data | floor))


@pytest.mark.parametrize("size", [32, 192, 224, 384])
def test_crop_fractions_give_the_short_side_back(size):
    for short_side in range(size, 2 * size):
        assert int(size / crop_share(size, short_side)) == short_side


def test_pytorch_files_and_shards(tmp_path):
    theirs = their_model("swin")
    theirs.save_pretrained(tmp_path / "whole")
    convert(tmp_path / "whole", tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    convert(tmp_path / "parts", tmp_path / "ours-parts")
    config = (tmp_path / "whole" / "config.json").read_text()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_text(config)
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    expected = store.load(tmp_path / "ours")[0]
    assert_same(store.load(tmp_path / "ours-parts")[0], expected)


def test_all_mismatches_are_listed(tmp_path, capsys):
    config = transformers.BeitConfig(**BEIT_CONFIG, use_mask_token=True)
    transformers.BeitForMaskedImageModeling(config).save_pretrained(tmp_path / "hf")
    with pytest.raises(SystemExit) as error:
        convert(tmp_path / "hf", tmp_path / "ours")
    assert set(str(error.value).splitlines()[1:]) == {
        "  lm_head.weight is not in the model",
        "  lm_head.bias is not in the model",
    }
    convert(tmp_path / "hf", tmp_path / "ours", "--leave_out=lm_head")
    assert "left out: lm_head.bias, lm_head.weight" in capsys.readouterr().out


def test_two_norms_that_would_coincide_raise(tmp_path):
    """With use_mean_pooling=False, BEiT has a second norm before its head."""
    config = transformers.BeitConfig(**BEIT_CONFIG, use_mean_pooling=False)
    transformers.BeitForMaskedImageModeling(config).save_pretrained(tmp_path / "hf")
    with pytest.raises(SystemExit, match=r"layernorm.* becomes norm\..*, and so does"):
        convert(tmp_path / "hf", tmp_path / "ours")


def test_unknown_names_are_kept():
    state = {"swin.encoder.layers.0.blocks.0.new.weight": np.zeros(1), "x": np.ones(2)}
    official = to_official(state, "swin")
    assert set(official) == {"layers.0.blocks.0.new.weight", "x"}


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06"),
        ({"model_type": "dinov2"}, "'dinov2'"),
        ({"image_size": {"shortest_edge": 32}}, "image_size=.*a whole number"),
        ({"drop_path_rate": "high"}, "drop_path_rate='high': expected a number"),
        ({"window_size": [4, 4]}, r"window_size=\[4, 4\]: expected a whole number"),
        ({"problem_type": "regression"}, "problem_type='regression': expected one of"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads=.*no such variant"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map="),
        ({"rope_theta": 1e4}, "rope_theta=10000.0, .* does not know the setting"),
        ({"id2label": {"1": "ant", "2": "bee"}}, "id2label=.*ids that count from 0"),
    ],
)
def test_models_that_we_lack_raise(setting, complaint, tmp_path):
    their_model("swin").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | setting
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=complaint):
        convert(tmp_path, tmp_path / "ours")


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (SWIN | {"depths": (1, 1, 1), "num_heads": (2, 2, 2)}, "for a smaller one"),
        (SWIN | {"norm_eps": 1e-6}, "norm_eps"),
        (SWIN | {"patch_norm": False}, "patch_norm"),
        (VIT | CLS_HEAD | {"final_norm": False}, "final_norm"),
        (SWIN | SWIN_HEAD | {"patch_size": (4, 8)}, "square patches"),
    ],
)
def test_models_that_transformers_lacks_raise(model, complaint, tmp_path):
    make(tmp_path / "ours", model)
    with pytest.raises(SystemExit, match=complaint):
        convert(tmp_path / "ours", tmp_path / "hf", "--to=huggingface")
    assert not (tmp_path / "hf").exists()


def test_swin_of_transformers_fails_with_a_smaller_last_window():
    """The error above is justified: the model fails on images of its own size."""
    config = SWIN_CONFIG | {"depths": [1, 1, 1], "num_heads": [2, 2, 2]}
    model = transformers.SwinModel(transformers.SwinConfig(**config)).eval()
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 3, SIZE, SIZE))


def test_kind_of_an_encoder(tmp_path):
    make(tmp_path / "ours", VIT, encoder_only=True)
    model = Model.load(tmp_path / "ours")
    assert model.kind == "encoder"


def test_values_that_image_processors_do_not_know_are_named():
    data = {"eval_crop": 1.0, "dtype": "uint16", "normalization": "percentiles"}
    (said,) = lost_settings(data | {"bands": ("red", "nir"), "nodata": ()})
    assert said == (
        "image processors are for photographs: prepare data.dtype='uint16', "
        "data.bands=('red', 'nir'), data.normalization='percentiles' yourself"
    )
    assert not lost_settings({"eval_crop": 1.0})


def test_a_target_that_transformers_lacks_is_named(tmp_path, capsys):
    params = make(tmp_path / "pixels", SWIN)
    meta = store.load(tmp_path / "pixels")[1]
    meta["config"]["target"] = {"kind": "normalized", "window": 5}
    store.write(tmp_path / "normalized", params, meta)
    for kind in ("pixels", "normalized"):
        convert(tmp_path / kind, tmp_path / f"{kind}-hf", "--to=huggingface")
        note = "note: the decoder predicts config.target.kind='normalized'"
        assert (note in capsys.readouterr().out) == (kind == "normalized")
