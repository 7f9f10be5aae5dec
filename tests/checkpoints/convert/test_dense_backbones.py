"""Converted encoders as backbones of dense models: stages give our features.

transformers 5.24.0 (UperNet), timm 1.0.31 and torchvision 0.28.0 (FPN).
"""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from simmim_jax.models import build_encoder
from tests.convert_cases import SWIN, SWIN_V2, VIT, convert, images, make

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
torchvision = pytest.importorskip("torchvision")

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
THREE_STAGES = SWIN | {"depths": (2, 2, 2), "num_heads": (2, 4, 4)}
PIXELS = images().transpose(0, 3, 1, 2)


def stages_of(model, params):
    """Features of each stage of our encoder, [b d h w]."""
    module = build_encoder(**model)
    apply = jax.jit(functools.partial(module.apply, stages=True))
    stages = apply({"params": params["encoder"]}, images()).stages
    return [np.asarray(stage).transpose(0, 3, 1, 2) for stage in stages]


def normalised(features, eps, scale=1.0, bias=0.0):
    """LayerNorm over the channels of [b d h w]."""
    norm = nn.LayerNorm(eps, use_bias=False, use_scale=False)
    out = np.asarray(norm.apply({}, features.transpose(0, 2, 3, 1)))
    return (out * scale + bias).transpose(0, 3, 1, 2)


def test_backbone_of_upernet_in_transformers(tmp_path):
    # Theirs has the same window in all stages: 2x2 fits the last grid.
    small_windows = THREE_STAGES | {"window_size": 2}
    params = make(tmp_path / "ours", small_windows)
    hf = convert(tmp_path / "ours", tmp_path / "hf", "--to=huggingface")
    names = ["stage1", "stage2", "stage3"]
    backbone, loading = transformers.SwinBackbone.from_pretrained(
        hf, out_features=names, output_loading_info=True
    )
    # UperNet's own norms of the stages are new.
    assert all("hidden_states_norms" in key for key in loading["missing_keys"])
    config = transformers.UperNetConfig(
        backbone_config=backbone.config,
        num_labels=5,
        hidden_size=16,
        auxiliary_in_channels=32,
        auxiliary_channels=8,
    )
    model = transformers.UperNetForSemanticSegmentation(config).eval()
    model.backbone.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        found = model.backbone(torch.from_numpy(PIXELS)).feature_maps
        logits = model(torch.from_numpy(PIXELS)).logits
    finer = stages_of(small_windows, params)[:-1]
    for ours, theirs in zip(finer, found[:-1], strict=True):
        np.testing.assert_allclose(theirs, normalised(ours, 1e-5), **TOLERANCE)
    assert logits.shape == (2, 5, *PIXELS.shape[2:])
    assert np.isfinite(logits.numpy()).all()


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
    norm = params["encoder"]["norm"]
    theirs = normalised(found[-1].numpy(), 1e-5, norm["scale"], norm["bias"])
    np.testing.assert_allclose(theirs, last, rtol=1e-4, atol=1e-4)
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
