"""Pre-training: its held-out loss and its pictures."""

import jax
import numpy as np
import pytest
import tiny_config
from PIL import Image

from simmim_jax.data.sources.base import ArraySource
from simmim_jax.mim import masking
from simmim_jax.tasks.pretrain import evaluation, init, model_of, objective_of, pretrain
from simmim_jax.training import steps


def parts_of(**overrides):
    config = tiny_config.get_config("pretrain")
    config.update_from_flattened_dict(overrides)
    model = model_of(config)
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


@pytest.fixture(scope="module")
def parts():
    return parts_of()


def evaluate(parts, images, workdir, step=3):
    config, _, _, params = parts
    source = ArraySource(images, None, ())
    return evaluation(config, workdir, source)(params, step)


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


def test_without_pictures_none_is_drawn(parts, tmp_path):
    config, *rest = parts
    config = config.copy_and_resolve_references()
    config.pictures = 0
    evaluate((config, *rest), images(4), tmp_path)
    assert not list(tmp_path.iterdir())


def test_picture_shows_the_first_images(parts, tmp_path):
    evaluate(parts, images(20), tmp_path)
    with Image.open(tmp_path / "reconstructions" / "0000003.png") as picture:
        assert picture.size[0] > 400


def first_batch(parts, images):
    """What the first batch of an evaluation is turned into, and its prediction."""
    config, model, prepare, params = parts
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    prepared = prepare({"image": images}, steps.purpose(key, "eval"))
    images, mask = prepared["image"], prepared["mask"]
    return model.apply({"params": params}, images, mask), images, mask


def test_avg_dist_is_that_of_the_held_out_masks(parts, tmp_path):
    batch = images(16)
    _, _, mask = first_batch(parts, batch)
    expected = np.asarray(masking.avg_dist(mask, (14, 7)))
    found = evaluate(parts, batch[:5], tmp_path)["avg_dist"]
    np.testing.assert_allclose(found, expected[:5].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"target.kind": "normalized", "target.window": 5, "loss.kind": "l2"},
        {"target.downsample": 7, "loss.area": "all"},
        {"loss.kind": "bins", "loss.bins": 4, "decoder.kind": "mlp"},
    ],
)
def test_every_objective_has_its_held_out_loss_and_pictures(fields, tmp_path):
    parts = parts_of(**fields)
    batch = images(16)
    found = evaluate(parts, batch, tmp_path)["eval_loss"]
    value, _ = objective_of(parts[0])(*first_batch(parts, batch))
    np.testing.assert_allclose(found, value, rtol=1e-5)
    with Image.open(tmp_path / "reconstructions" / "0000003.png") as picture:
        assert np.asarray(picture).std() > 10


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("mask.kind", "grid", "config.mask.kind='grid': expected one of"),
        ("mask.ratio", 0.99, "hides all 8 units of an image"),
        ("mask.ratio", 0.0, "hides nothing.* or config.loss.area='all'"),
        ("target.kind", "hog", "config.target.kind='hog': expected one of"),
        ("target.window", 46, "config.target.window=46: expected an odd number"),
        ("target.window", 1, "config.target.window=1: expected an odd number"),
        ("target.downsample", 2, "must divide both sides of config.mask.unit_size"),
        ("loss.kind", "huber", "config.loss.kind='huber': expected one of"),
        ("loss.area", "visible", "config.loss.area='visible': expected one of"),
        ("decoder.kind", "unet", "config.decoder.kind='unet': expected"),
        ("log_every", "often", "'often' is no length of time"),
    ],
)
def test_mistakes_end_before_anything_is_compiled(field, value, says, tmp_path):
    config = tiny_config.get_config("pretrain")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=says):
        pretrain(config, tmp_path)
    assert not any(tmp_path.iterdir())
