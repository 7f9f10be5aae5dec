"""Exported models give the results of ours, in other runtimes."""

import json
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.errors import UserError
from simmim_jax.models import build_classifier
from simmim_jax.tasks import export as exporting
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.export import export
from simmim_jax.tasks.predict import Predictor

SWIN = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 3}
# Windows do not divide the grid of 28 pixels.
FIELDS = {
    "vit_base": {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": (14, 7)},
    "swin_base": SWIN,
    "swin_v2_base": SWIN,
}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CLASSES = ("ant", "bee", "cat")


def classifier(name):
    """A classifier of random parameters, none of which is zero."""
    fields = common.finetune(name, **FIELDS[name])
    fields.data.update(image_size=(28, 28), dtype="uint8", mean=MEAN, std=STD)
    config = schema.parse(fields)
    model = build_classifier(
        num_classes=len(CLASSES), dtype="bfloat16", **schema.to_dict(config.model)
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), shapes["params"]
    )
    return Predictor(model, params, config, CLASSES, step=7)


@pytest.fixture(scope="module", params=FIELDS)
def model(request):
    return classifier(request.param)


def images(count):
    return np.random.default_rng(1).integers(0, 256, (count, 28, 28, 3), np.uint8)


def expected(model, count):
    """Probabilities in float32; the model itself computes in bfloat16."""
    float32 = {"dtype": jnp.float32, "activation_dtype": jnp.float32}
    encoder = model.model.encoder.clone(**float32)
    logits = model.model.clone(encoder=encoder).apply(
        {"params": model.params},
        (images(count) / 255 - np.array(MEAN)) / np.array(STD),
    )
    return np.asarray(jax.nn.softmax(logits))


def test_stablehlo(model, tmp_path):
    pytest.importorskip("flatbuffers")
    said = export(model, tmp_path / "model.stablehlo", "stablehlo")
    assert "StableHLO for cpu, cuda, tpu, uint8 [b, 28, 28, 3] -> prob" in said
    content = (tmp_path / "model.stablehlo").read_bytes()
    read = jax.export.deserialize(bytearray(content))
    assert read.platforms == ("cpu", "cuda", "tpu")
    for count in (1, 5):
        found = read.call(images(count))
        np.testing.assert_allclose(found, expected(model, count), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["model.stablehlo"]


def test_onnx(model, tmp_path):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    said = export(model, tmp_path / "model.onnx", "onnx")
    assert "uint8 [b, 28, 28, 3] -> probabilities [b, 3]" in said
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for count in (1, 5):
        (found,) = session.run(["probabilities"], {"images": images(count)})
        np.testing.assert_allclose(found, expected(model, count), atol=1e-5)


def test_vectors(tmp_path):
    pytest.importorskip("flatbuffers")
    model = classifier("vit_base")
    encoder = Encoder.of(model.params, model.config, 7)
    said = export(encoder, tmp_path / "a.stablehlo", "stablehlo")
    assert "-> vectors [b, 16]" in said
    read = jax.export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    found = read.call(images(2))
    float32 = encoder.apply(encoder.params, images(2))
    np.testing.assert_allclose(found, float32, atol=1e-5)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    model = classifier("vit_base")
    export(model, tmp_path / "a.safetensors", "safetensors")
    read = safetensors.load_file(tmp_path / "a.safetensors")
    kernel = model.params["encoder"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(read["encoder.blocks_0.mlp.fc1.kernel"], kernel)
    assert len(read) == len(jax.tree.leaves(model.params))
    beside = json.loads((tmp_path / "a.json").read_text())
    assert beside["class_names"] == list(CLASSES)
    assert beside["config"]["model"]["embed_dim"] == 16
    # The mode that the umask says, not the 0600 of safetensors' own writer.
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {stat.S_IMODE((tmp_path / "a.json").stat().st_mode)}


def test_a_file_with_other_results_is_removed(tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"jax.export differs from our results by"):
        export(classifier("vit_base"), tmp_path / "a.stablehlo", "stablehlo")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="format='pt': expected one of stablehlo, onn"):
        export(classifier("vit_base"), tmp_path / "a.pt", "pt")
