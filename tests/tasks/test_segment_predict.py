"""Masks of files: what evaluation counts is what prediction writes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile
import tiny_config
from PIL import Image

import simmim_jax
from simmim_jax.cli import predict
from simmim_jax.data.sources.base import as_source
from simmim_jax.data.sources.windows import tile
from simmim_jax.errors import UserError
from simmim_jax.monitoring.pictures import mask_palette
from simmim_jax.runtime import sharding
from simmim_jax.tasks import segment
from simmim_jax.tasks.parts import Split
from simmim_jax.tasks.predict import Predictor
from simmim_jax.tasks.segment_predict import SegmentPredictor

CLASSES = tuple("abcde")


@pytest.fixture(scope="module")
def model():
    """Untrained, on whole images of 28x28."""
    config = tiny_config.typed("segment", pictures=0, **{"data.num_classes": 5})
    module = segment.model_of(config, 5)
    images = np.zeros((1, 28, 28, 1), np.float32)
    params = jax.jit(module.init)(jax.random.key(1), images)["params"]
    return SegmentPredictor(module, params, config, CLASSES, 0)


def in_windows(model):
    data = dataclasses.replace(model.config.data, eval_windows=True)
    config = dataclasses.replace(model.config, data=data)
    return SegmentPredictor(model.model, model.params, config, CLASSES, 0)


def scene(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 1), np.uint8)


def test_whole_images_are_resized_and_their_masks_back(model):
    small, large = scene(28, 28), np.kron(scene(28, 28), np.ones((2, 3, 1), np.uint8))
    masks = [*model.predict([small, large])]
    assert [mask.shape for mask in masks] == [(28, 28), (56, 84)]
    assert masks[0].dtype == np.uint16
    # Nearest neighbours: a block of 2x3 pixels has one class.
    blocks = masks[1].reshape(28, 2, 28, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_windows_are_predicted_at_their_own_resolution(model):
    image = scene(40, 61)
    mask = next(in_windows(model).predict([image]))
    for window in tile((40, 61), (28, 28)):
        cut = image[window.top : window.top + 28, window.left : window.left + 28]
        alone = next(model.predict([cut]))
        np.testing.assert_array_equal(
            mask[window.rows, window.columns], alone[window.own()]
        )


@pytest.mark.parametrize("size", [(28, 28), (40, 61)], ids=["whole", "windows"])
def test_evaluation_counts_what_prediction_writes(model, size, tmp_path):
    model = in_windows(model) if size != (28, 28) else model
    rng = np.random.default_rng(0)
    pairs = [
        {"image": scene(*size, seed), "mask": rng.integers(0, 5, size)}
        for seed in range(3)
    ]
    evaluate = segment.evaluation(
        model.config,
        model.model,
        tmp_path,
        as_source(pairs),
        CLASSES,
        sharding.make_mesh(),
    )
    hits = [
        (mask == pair["mask"]).mean()
        for mask, pair in zip(
            model.predict(pair["image"] for pair in pairs), pairs, strict=True
        )
    ]
    found = evaluate(model.params, 0)
    assert found["pixel_accuracy"] == pytest.approx(np.mean(hits))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("segment")
    config = tiny_config.get_config("segment")
    config.duration = "1 steps"
    config.pictures = 0
    simmim_jax.segment(config, workdir, held_out=tiny_config.some_masks())
    return workdir


def test_the_command_writes_masks_with_a_palette(trained, tmp_path, capsys):
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("1.png", "a/2.png"):
        Image.fromarray(scene(20, 30)[..., 0]).save(tmp_path / "in" / name)
    (tmp_path / "in" / "3.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as ended:
        segment_files(trained, tmp_path / "in", f"--masks={tmp_path / 'out'}")
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "1 left out, 2 segmented" in said.err
    expected = next(simmim_jax.load(trained).predict([tmp_path / "in" / "1.png"]))
    with Image.open(tmp_path / "out" / "1.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), expected)
        colours = np.asarray(mask.convert("RGB"))
    np.testing.assert_array_equal(colours, mask_palette()[expected])
    assert (tmp_path / "out" / "a" / "2.png").exists()


def segment_files(trained, *args):
    predict.main([f"--checkpoint={trained}", *map(str, args)])


def test_two_images_of_one_mask_are_an_error(trained, tmp_path):
    for name in ("1.png", "1.bmp"):
        Image.fromarray(scene(20, 30)[..., 0]).save(tmp_path / name)
    with pytest.raises(SystemExit, match=r"have the same mask, '.*/out/1.png'"):
        segment_files(trained, tmp_path, f"--masks={tmp_path / 'out'}")


def test_images_without_a_file_of_their_own_are_numbered(trained, tmp_path):
    pages = np.stack([scene(20, 30, seed)[..., 0] for seed in range(2)])
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    np.save(tmp_path / "many.npy", pages[..., None])
    names = (tmp_path / "pages.tif", tmp_path / "many.npy")
    segment_files(trained, *names, f"--masks={tmp_path / 'out'}")
    found = sorted(p.relative_to(tmp_path / "out") for p in tmp_path.rglob("*.png"))
    assert [str(path) for path in found] == [
        *("all/000000.png", "all/000001.png"),
        *("pages.tif:0.png", "pages.tif:1.png"),
    ]
    expected = list(simmim_jax.load(trained).predict(pages[..., None]))
    for path, mask in zip(found, [*expected, *expected], strict=True):
        with Image.open(tmp_path / "out" / path) as image:
            np.testing.assert_array_equal(np.asarray(image), mask)


@pytest.mark.parametrize(
    ("dataset", "path", "expected"),
    [
        ("", "a/1.jpg", "1.png"),
        ("", "a/without_ending.2", "without_ending.2.png"),
        ("set", "set/train/images/1.JPG", "train/images/1.png"),
        ("set/", "set/a/1.npy", "a/1.png"),
        ("a/set.tar", "a/set.tar/b/1.png", "b/1.png"),
        ("a/set.tar", "a/set.tar/../../1.png", "1.png"),
        ("a/set.tar", "a/set.tar//etc/1.png", "etc/1.png"),
        ("a/list.csv", "a/b/1.png", "b/1.png"),
        ("a/list.csv", "/elsewhere/1.png", "1.png"),
        ("a/scene.tif:@512", "a/scene.tif:0,0,512", "scene.tif:0,0,512.png"),
        ("bundled:fashion_masks", "", "test/000007.png"),
    ],
)
def test_masks_have_the_places_of_their_images(dataset, path, expected):
    split = Split(dataset, "test", [])
    assert predict._mask_file(split, path, 7) == Path(expected)


def test_tables_and_pictures_are_for_classifiers(trained):
    with pytest.raises(SystemExit, match="--table and --picture are for classifiers"):
        segment_files(trained, "1.png", "--table=t.csv")


def test_a_segmentation_model_is_not_exported(trained, tmp_path):
    with pytest.raises(UserError, match="cannot be exported yet"):
        simmim_jax.export(simmim_jax.load(trained), tmp_path / "model.safetensors")


def test_other_runs_are_told_apart(trained):
    assert isinstance(simmim_jax.load(trained), SegmentPredictor)
    with pytest.raises(UserError, match="learns no classes"):
        Predictor.load(trained)
