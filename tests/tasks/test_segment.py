"""Runs of segmentation: metrics of all held-out pixels, classes, start, errors."""

import commands
import jax
import numpy as np
import pytest
import tiny_config

import simmim_jax
from simmim_jax.augment.normalization import Normalization
from simmim_jax.config import schema
from simmim_jax.data.sources.base import as_source
from simmim_jax.data.sources.registry import open_source
from simmim_jax.errors import UserError
from simmim_jax.models.segmenter import resized
from simmim_jax.runtime import sharding
from simmim_jax.tasks import segment

CLASSES = tuple("abcde")


def examples(count, ignored=()):
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        mask = rng.integers(0, len(CLASSES), (28, 28))
        mask[rng.random((28, 28)) < 0.1] = 255
        image = rng.integers(0, 256, (28, 28, 1), np.uint8)
        found.append({"image": image} | ({} if i in ignored else {"mask": mask}))
    return as_source(found)


def test_metrics_count_every_pixel_once(tmp_path):
    config = tiny_config.typed("segment", pictures=0, **{"data.num_classes": 5})
    model = segment.model_of(config, 5)
    params = tiny_config.random_params(model, np.zeros((1, 28, 28, 1), np.float32))
    source = examples(21)  # a batch and a part of one
    evaluate = segment.evaluation(
        config, model, tmp_path, source, CLASSES, sharding.make_mesh()
    )
    found = evaluate(params, 0)

    images = np.stack([source[i]["image"] for i in range(21)])
    truth = np.stack([source[i]["mask"] for i in range(21)])
    pixels = Normalization(config.data.mean, config.data.std)(images)
    logits = resized(jax.jit(model.apply)({"params": params}, pixels)[0], (28, 28))
    predicted, counts = np.asarray(logits.argmax(-1)), truth != 255
    iou = [
        (counts & (truth == k) & (predicted == k)).sum()
        / (counts & ((truth == k) | (predicted == k))).sum()
        for k in range(5)
    ]
    log_p = np.asarray(jax.nn.log_softmax(logits))
    chosen = np.take_along_axis(log_p, np.where(counts, truth, 0)[..., None], -1)
    assert found["miou"] == pytest.approx(np.mean(iou))
    assert found["pixel_accuracy"] == pytest.approx((predicted == truth)[counts].mean())
    assert found["eval_loss"] == pytest.approx(-chosen[counts].mean(), rel=1e-5)


def test_classes_are_those_of_the_masks_or_named(tmp_path):
    data = schema.SegmentData()
    assert segment.find_classes(data, examples(3), tmp_path) == tuple("01234")
    named = open_source("bundled:fashion_masks", "validation")
    assert segment.find_classes(data, named, tmp_path)[1] == "T-shirt/top"
    with pytest.raises(UserError, match=r"num_classes=3, but .* has 11 classes"):
        segment.find_classes(schema.SegmentData(num_classes=3), named, tmp_path)
    one = as_source([{"image": np.zeros((4, 4)), "mask": np.zeros((4, 4), np.uint8)}])
    with pytest.raises(UserError, match=r"have 1 classes: .* 255 .* counts as none"):
        segment.find_classes(data, one, tmp_path)


def test_a_class_that_is_ignored_is_named():
    image = np.zeros((4, 4), np.uint8)
    said = [
        segment.ignored_notice(
            schema.SegmentData(num_classes=2),
            as_source([{"image": image, "mask": image + value} for value in values]),
        )
        for values in ([0, 255], [0, 1, 255], [0, 1], [0])
    ]
    assert said[1:] == [(), (), ()]
    assert said[0][0].startswith("the pixels of 2 masks are 0 or 255, which")


def test_images_without_a_mask_are_left_out():
    kept, said = segment.with_masks(examples(4, ignored=(1,)), "config.data.x")
    assert [*kept.indices] == [0, 2, 3]
    assert said == ("config.data.x: 1 of 4 images have no mask, left out",)
    with pytest.raises(UserError, match="none of 2 images has a mask"):
        segment.with_masks(examples(2, ignored=(0, 1)), "config.data.x")


def test_fewer_masks_are_part_of_more():
    chosen = [set(segment.some_of(examples(9), n, 0).indices) for n in (2, 5)]
    assert [len(one) for one in chosen] == [2, 5]
    assert chosen[0] < chosen[1]
    with pytest.raises(UserError, match="num_masks=10: expected at most 9"):
        segment.some_of(examples(9), 10, 0)


@pytest.mark.slow
def test_a_frozen_encoder_stays_as_it_was_pre_trained(tmp_path, capsys):
    pretrained, workdir = tmp_path / "pretrained", tmp_path / "segment"
    config = tiny_config.get_config("pretrain")
    config.duration = "1 steps"
    simmim_jax.pretrain(config, pretrained)
    config = tiny_config.get_config("segment")
    config.freeze_encoder = True
    config.duration = "2 steps"
    config.pictures = 0
    held_out = tiny_config.some_masks()
    trained = simmim_jax.segment(
        config, workdir, init_from=pretrained, held_out=held_out
    )
    before, after = commands.params(pretrained, 1), jax.device_get(trained.params)
    for name in ("blocks_0", "blocks_1"):
        for part in ("mlp", "norm2"):  # attention adds a bias of each block
            commands.assert_same(
                after["encoder"][name][part], before["encoder"][name][part]
            )
    assert "left out: decoder" in capsys.readouterr().out
