"""Pre-training: held-out loss and pictures."""

import jax
import numpy as np
import pytest
import tiny_config
from PIL import Image

from simmim_jax.augment.normalization import Normalization
from simmim_jax.data.sources.base import ArraySource
from simmim_jax.mim import masking
from simmim_jax.runtime import sharding
from simmim_jax.tasks.api import pretrain
from simmim_jax.tasks.pretrain import Parts, constants, evaluation
from simmim_jax.tasks.pretrain_step import pretrain_prepare
from simmim_jax.training import steps


def parts_of(**overrides):
    """Return the parts of a config, and fresh parameters."""
    parts = Parts(tiny_config.typed("pretrain", **overrides))
    return parts, jax.jit(parts.learner(1000).init)(jax.random.key(0))


@pytest.fixture(scope="module")
def parts():
    return parts_of()


def evaluate(parts, images, workdir, step=3):
    parts, params = parts
    source = ArraySource(images, None, ())
    return evaluation(parts, workdir, source, sharding.make_mesh())(params, step)


def images(n):
    return np.random.default_rng(n).integers(0, 256, (n, 28, 28, 1), np.uint8)


def test_held_out_loss_uses_the_same_masks_every_time(parts, tmp_path):
    first = evaluate(parts, images(20), tmp_path)
    assert first == evaluate(parts, images(20), tmp_path, step=99)


def test_padding_of_the_last_batch_does_not_count(parts, tmp_path):
    batch = images(16)
    whole = evaluate(parts, batch, tmp_path)["eval_loss"]
    padded = evaluate(parts, batch[:5], tmp_path)["eval_loss"]
    prediction, prepared, mask = first_batch(parts, batch)
    error = np.abs(prediction - prepared)[..., 0]
    mask = np.repeat(np.repeat(mask, 14, 1), 7, 2)
    assert whole == pytest.approx(error[mask].mean(), rel=1e-5)
    assert padded == pytest.approx(error[:5][mask[:5]].mean(), rel=1e-5)


def test_pictures_0_draws_nothing(parts, tmp_path):
    _, params = parts
    without = Parts(tiny_config.typed("pretrain", pictures=0))
    evaluate((without, params), images(4), tmp_path)
    assert not list(tmp_path.iterdir())


def test_evaluation_draws_a_picture(parts, tmp_path):
    evaluate(parts, images(20), tmp_path)
    with Image.open(tmp_path / "reconstructions" / "0000003.png") as picture:
        assert picture.size[0] > 400


def first_batch(parts, images):
    """Return prediction, images and masks of the first batch of an evaluation."""
    parts, params = parts
    config = parts.config
    prepare = pretrain_prepare(
        patch_size=config.model.patch_size,
        mask_unit=config.mask.unit_size,
        mask_ratio=config.mask.ratio,
        normalization=Normalization(config.data.mean, config.data.std),
        flip=False,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    prepared = prepare({"image": images}, steps.purpose(key, "eval"))
    images, mask = prepared["image"], prepared["mask"]
    return parts.model.apply({"params": params}, images, mask), images, mask


def test_avg_dist_is_of_the_held_out_masks(parts):
    batch = images(16)
    _, _, mask = first_batch(parts, batch)
    expected = np.asarray(masking.avg_dist(mask, (14, 7)))
    for count in (5, 16):
        found = constants(parts[0], count)["avg_dist"]
        np.testing.assert_allclose(found, expected[:count].mean(), rtol=1e-5)
    assert constants(parts[0], 32)["avg_dist"] != found  # each batch has its own masks


@pytest.mark.parametrize(
    "fields",
    [
        {"target.kind": "normalized", "target.window": 5, "loss.kind": "l2"},
        {"target.downsample": 7, "loss.area": "all"},
        {"loss.kind": "bins", "loss.bins": 4, "decoder.kind": "mlp"},
    ],
)
def test_every_objective_has_a_held_out_loss_and_pictures(fields, tmp_path):
    parts = parts_of(**fields)
    batch = images(16)
    found = evaluate(parts, batch, tmp_path)["eval_loss"]
    value, _ = parts[0].objective(*first_batch(parts, batch))
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
        ("log_every", "often", "config.log_every='often': invalid duration"),
    ],
)
def test_mistakes_raise_before_anything_is_compiled(field, value, says, tmp_path):
    config = tiny_config.get_config("pretrain")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=says):
        pretrain(config, tmp_path)
    assert not any(tmp_path.iterdir())
