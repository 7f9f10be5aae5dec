"""Converted encoders as backbones of dense models: stages give our features.

transformers 5.24.0 (UperNet), timm 1.0.31 and torchvision 0.28.0 (FPN).
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from simmim_jax.checkpoints.convert import huggingface
from simmim_jax.checkpoints.convert.model import Model
from simmim_jax.models import build_encoder
from tests.convert_cases import SWIN, SWIN_V2, VIT, convert, images, make

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
torchvision = pytest.importorskip("torchvision")

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
THREE_STAGES = SWIN | {"depths": (2, 2, 2), "num_heads": (2, 4, 4)}
PIXELS = images().transpose(0, 3, 1, 2)  # 32x32: grids of 8x8, 4x4 and 2x2
LARGE_PIXELS = np.kron(PIXELS, np.ones((2, 2), np.float32))


def stages_of(model, params, pixels=PIXELS):
    """Features of each stage of our encoder, [b d h w]."""
    module = build_encoder(**model)
    apply = jax.jit(functools.partial(module.apply, stages=True))
    stages = apply({"params": params["encoder"]}, pixels.transpose(0, 2, 3, 1)).stages
    return [np.asarray(stage).transpose(0, 3, 1, 2) for stage in stages]


def normalised(features, norm=None):
    """LayerNorm over the channels of [b d h w]; norm: its scale and bias."""
    mean = features.mean(1, keepdims=True, dtype=np.float64)
    variance = features.var(1, keepdims=True, dtype=np.float64)
    out = (features - mean) / np.sqrt(variance + 1e-5)
    if norm is None:
        return out
    return out * norm["scale"][:, None, None] + norm["bias"][:, None, None]


@pytest.fixture(scope="module")
def upernet(tmp_path_factory):
    """A Swin with windows of 2x2 in all stages: ours, and under UperNet."""
    folder = tmp_path_factory.mktemp("upernet")
    model = THREE_STAGES | {"window_size": 2}
    params = make(folder / "ours", model)
    hf = convert(folder / "ours", folder / "hf", "--to=huggingface")
    backbone, loading = transformers.SwinBackbone.from_pretrained(
        hf, out_features=["stage1", "stage2", "stage3"], output_loading_info=True
    )
    # Norms of stages are UperNet's own; that of the last one is our encoder's.
    assert all("hidden_states_norms" in key for key in loading["missing_keys"])
    last = backbone.hidden_states_norms["stage3"]
    with torch.no_grad():
        for ours, theirs in (("scale", last.weight), ("bias", last.bias)):
            theirs.copy_(torch.from_numpy(np.array(params["encoder"]["norm"][ours])))
    config = transformers.UperNetConfig(
        backbone_config=backbone.config,
        num_labels=5,
        hidden_size=16,
        auxiliary_in_channels=32,
        auxiliary_channels=8,
    )
    theirs = transformers.UperNetForSemanticSegmentation(config).eval()
    theirs.backbone.load_state_dict(backbone.state_dict())
    return UperNet(model, params, theirs, Model.load(folder / "ours"))


class UperNet(NamedTuple):
    """Our encoder, that of transformers under UperNet, and what was converted."""

    fields: dict[str, Any]
    params: Any
    theirs: Any
    converted: Model


def differences(upernet, pixels):
    """Largest difference of each stage from ours."""
    *finer, last = stages_of(upernet.fields, upernet.params, pixels)
    with torch.no_grad():
        found = upernet.theirs.backbone(torch.from_numpy(pixels)).feature_maps
    expected = [*map(normalised, finer), last]
    return [
        np.abs(each.numpy() - ours).max()
        for each, ours in zip(found, expected, strict=True)
    ]


def test_backbone_of_upernet_in_transformers(upernet):
    assert max(differences(upernet, LARGE_PIXELS)) < 1e-5
    with torch.no_grad():
        logits = upernet.theirs(torch.from_numpy(LARGE_PIXELS)).logits
    assert logits.shape == (2, 5, *LARGE_PIXELS.shape[2:])
    assert np.isfinite(logits.numpy()).all()


def test_their_backbone_shifts_a_grid_of_one_window(upernet):
    # transformers 5.24.0, SwinBackbone.forward: always_partition=True, which leaves out
    # the set_shift_and_window_size of SwinModel.
    *finer, last = differences(upernet, PIXELS)
    assert max(finer) < 1e-5
    assert last > 1e-3
    *_, said = huggingface.notes(upernet.converted)
    assert "SwinBackbone shifts a grid of a single window" in said
    blocks = upernet.theirs.backbone.swin.encoder.layers[-1].blocks
    shifts = [block.shift_size for block in blocks]
    assert shifts == [0, 1]
    for block in blocks:
        block.shift_size = 0
    try:
        assert max(differences(upernet, PIXELS)) < 1e-5
    finally:
        for block, shift in zip(blocks, shifts, strict=True):
            block.shift_size = shift


@pytest.mark.parametrize("model", [THREE_STAGES, SWIN_V2], ids=["swin", "swin_v2"])
def test_stages_of_timm_under_the_fpn_of_torchvision(model, tmp_path):
    params = make(tmp_path / "ours", model)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    backbone = timm.create_model(
        f"local-dir:{folder}", pretrained=True, features_only=True
    ).eval()
    with torch.no_grad():
        found = [x.permute(0, 3, 1, 2) for x in backbone(torch.from_numpy(PIXELS))]
    *finer, last = stages_of(model, params)
    for ours, theirs in zip(finer, found[:-1], strict=True):
        np.testing.assert_allclose(theirs, ours, **TOLERANCE)
    theirs = normalised(found[-1].numpy(), params["encoder"]["norm"])
    np.testing.assert_allclose(theirs, last, **TOLERANCE)
    pyramid = torchvision.ops.FeaturePyramidNetwork([x.shape[1] for x in found], 6)
    with torch.no_grad():
        maps = pyramid({str(i): x for i, x in enumerate(found)})
    assert [m.shape[1:] for m in maps.values()] == [(6, *x.shape[2:]) for x in found]


def test_blocks_of_a_vit_in_timm(tmp_path):
    model = VIT | {
        "use_shared_rel_pos_bias": False,
        "use_abs_pos_emb": True,
        "layer_scale": 0.0,
        "depth": 4,
    }
    params = make(tmp_path / "ours", model)
    folder = convert(tmp_path / "ours", tmp_path / "timm", "--to=timm")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        found = theirs.forward_intermediates(
            torch.from_numpy(PIXELS), indices=[0, 1, 2], intermediates_only=True
        )
    for ours, features in zip(stages_of(model, params)[:-1], found, strict=True):
        np.testing.assert_allclose(features, ours, **TOLERANCE)
