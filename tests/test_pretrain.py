"""Pre-training: its held-out loss and its pictures."""

import jax
import numpy as np
import pytest
import tiny_config
from PIL import Image

from simmim_jax import steps
from simmim_jax.data.source import ArraySource
from simmim_jax.models import build_simmim
from simmim_jax.pretrain import evaluation, init


@pytest.fixture(scope="module")
def parts():
    config = tiny_config.get_config("pretrain")
    model = build_simmim(dtype="float32", **config.model)
    prepare = steps.pretrain_prepare(
        patch_size=config.model.patch_size,
        mask_unit=config.mask.unit_size,
        mask_ratio=config.mask.ratio,
        mean=config.data.mean,
        std=config.data.std,
        flip=False,
    )
    params = jax.jit(lambda key: init(config, model, key))(jax.random.key(0))
    return config, model, prepare, params


def evaluate(parts, images, workdir, step=3):
    config, model, prepare, params = parts
    source = ArraySource(images, None, ())
    return evaluation(config, workdir, model, prepare, source)(params, step)


def images(n):
    return np.random.default_rng(n).integers(0, 256, (n, 28, 28, 1), np.uint8)


def test_held_out_loss_uses_the_same_masks_every_time(parts, tmp_path):
    first = evaluate(parts, images(20), tmp_path)
    assert first == evaluate(parts, images(20), tmp_path, step=99)


def test_padding_of_the_last_batch_does_not_count(parts, tmp_path):
    batch = images(16)
    whole = evaluate(parts, batch, tmp_path)["eval_loss"]
    padded = evaluate(parts, batch[:5], tmp_path)["eval_loss"]
    config, model, prepare, params = parts
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    prepared = prepare({"image": batch}, steps.purpose(key, "eval"))
    prediction = model.apply({"params": params}, prepared["image"], prepared["mask"])
    error = np.abs(prediction - prepared["image"])[..., 0]
    mask = np.repeat(np.repeat(prepared["mask"], 14, 1), 7, 2)
    assert whole == pytest.approx(error[mask].mean(), rel=1e-5)
    assert padded == pytest.approx(error[:5][mask[:5]].mean(), rel=1e-5)


def test_picture_shows_the_first_images(parts, tmp_path):
    evaluate(parts, images(20), tmp_path)
    with Image.open(tmp_path / "reconstructions" / "0000003.png") as picture:
        assert picture.size[0] > 400
