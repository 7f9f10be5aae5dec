"""A run and its masks: what evaluation counts is what prediction writes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tifffile
import tiny_config
from PIL import Image

import simmim_jax
from simmim_jax.checkpoints import layout
from simmim_jax.cli import masks, predict
from simmim_jax.data.sources.base import as_source
from simmim_jax.data.sources.windows import tile
from simmim_jax.errors import UserError
from simmim_jax.monitoring.pictures import mask_palette
from simmim_jax.monitoring.writer import read_metrics
from simmim_jax.runtime import sharding
from simmim_jax.tasks import segment
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.parts import Split
from simmim_jax.tasks.predict import Predictor, open_images
from simmim_jax.tasks.segment_predict import SegmentPredictor

CLASSES = tuple("abcde")


@pytest.fixture(scope="module")
def model():
    """Untrained, on whole images of 28x28."""
    config = tiny_config.typed("segment", pictures=0, **{"data.num_classes": 5})
    module = segment.model_of(config, 5)
    params = tiny_config.random_params(module, np.zeros((1, 28, 28, 1), np.float32))
    return SegmentPredictor(module, params, config, CLASSES, 0)


@pytest.fixture(scope="module")
def in_windows(model):
    """The same in windows of 28x28."""
    data = dataclasses.replace(model.config.data, eval_windows=True)
    config = dataclasses.replace(model.config, data=data)
    return SegmentPredictor(model.model, model.params, config, CLASSES, 0)


def scene(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 1), np.uint8)


def test_whole_images_are_resized_and_their_masks_back(model):
    small, large = scene(28, 28), np.kron(scene(28, 28), np.ones((2, 3, 1), np.uint8))
    found = [*model.predict([small, large])]
    assert [mask.shape for mask in found] == [(28, 28), (56, 84)]
    assert found[0].dtype == np.uint16
    # Nearest neighbours: a block of 2x3 pixels has one class.
    blocks = found[1].reshape(28, 2, 28, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_windows_are_predicted_at_their_own_resolution(model, in_windows):
    image = scene(40, 61)
    mask = next(in_windows.predict([image]))
    for window in tile((40, 61), (28, 28)):
        cut = image[window.top : window.top + 28, window.left : window.left + 28]
        alone = next(model.predict([cut]))
        np.testing.assert_array_equal(
            mask[window.rows, window.columns], alone[window.own()]
        )


def test_evaluation_counts_what_prediction_writes(in_windows, tmp_path):
    size, rng = (40, 61), np.random.default_rng(0)
    pairs = [
        {"image": scene(*size, seed), "mask": rng.integers(0, 5, size)}
        for seed in range(3)
    ]
    evaluate = segment.evaluation(
        in_windows.config,
        in_windows.model,
        tmp_path,
        as_source(pairs),
        CLASSES,
        sharding.make_mesh(),
    )
    predicted = in_windows.predict(pair["image"] for pair in pairs)
    hits = [
        (mask == pair["mask"]).mean()
        for mask, pair in zip(predicted, pairs, strict=True)
    ]
    found = evaluate(in_windows.params, 0)
    assert found["pixel_accuracy"] == pytest.approx(np.mean(hits))


# ---- Files ---------------------------------------------------------------------------


def write(model, images, folder):
    """What `simmim predict` does with a model: (masks, images left out)."""
    splits = open_images(model.config.data, [*map(str, images)])
    plan = {"images": [*map(str, images)]}
    return masks.write(model, splits, Path(folder), plan)


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_masks_have_a_palette(model, tmp_path, capsys):
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("1.png", "a/2.png"):
        Image.fromarray(scene(20, 30)[..., 0]).save(tmp_path / "in" / name)
    (tmp_path / "in" / "3.png").write_bytes(b"no image")
    assert write(model, [tmp_path / "in"], tmp_path / "out") == (2, 1)
    assert f"left out: {tmp_path / 'in' / '3.png'}: " in capsys.readouterr().err
    expected = next(model.predict([tmp_path / "in" / "1.png"]))
    with Image.open(tmp_path / "out" / "1.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), expected)
        colours = np.asarray(mask.convert("RGB"))
    np.testing.assert_array_equal(colours, mask_palette()[expected])
    assert (tmp_path / "out" / "a" / "2.png").exists()


def test_two_images_of_one_mask_are_an_error(model, tmp_path):
    for name in ("1.png", "1.bmp"):
        Image.fromarray(scene(20, 30)[..., 0]).save(tmp_path / name)
    with pytest.raises(UserError, match=r"have the same mask, '.*/out/1.png'"):
        write(model, [tmp_path], tmp_path / "out")


def test_images_without_a_file_of_their_own_are_numbered(model, tmp_path):
    pages = np.stack([scene(20, 30, seed)[..., 0] for seed in range(2)])
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    np.save(tmp_path / "many.npy", pages[..., None])
    names = (tmp_path / "pages.tif", tmp_path / "many.npy")
    write(model, names, tmp_path / "out")
    found = sorted(p.relative_to(tmp_path / "out") for p in tmp_path.rglob("*.png"))
    assert [str(path) for path in found] == [
        *("all/000000.png", "all/000001.png"),
        *("pages.tif:0.png", "pages.tif:1.png"),
    ]
    expected = list(model.predict(pages[..., None]))
    for path, mask in zip(found, [*expected, *expected], strict=True):
        np.testing.assert_array_equal(read(tmp_path / "out" / path), mask)


def test_an_interrupted_command_resumes(model, tmp_path, monkeypatch, capsys):
    images = [tmp_path / f"{name}.png" for name in range(3)]
    for seed, image in enumerate(images):
        Image.fromarray(scene(20, 30, seed)[..., 0]).save(image)
    out, predicted, whole = tmp_path / "out", [], SegmentPredictor.predict

    def interrupted(self, images):
        predicted.append(images)
        if len(predicted) == 3:
            raise KeyboardInterrupt
        return whole(self, images)

    monkeypatch.setattr(SegmentPredictor, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(model, images, out)
    assert sorted(file.name for file in out.glob("*.png")) == ["0.png", "1.png"]
    capsys.readouterr()
    assert write(model, images, out) == (3, 0)
    assert len(predicted) == 4  # the last image alone is predicted
    printed = capsys.readouterr().out.splitlines()
    for image, mask, line in zip(images, model.predict(images), printed, strict=True):
        np.testing.assert_array_equal(read(out / image.name), mask)
        most = np.bincount(mask.ravel()).max() / mask.size
        assert line.startswith(f"{image}  {out / image.name}: ")
        assert f"{most:.1%}" in line
    with pytest.raises(UserError, match="was begun with"):
        write(model, images[:1], out)


def test_masks_replace_no_files_of_others(model, tmp_path):
    image = tmp_path / "1.png"
    Image.fromarray(scene(20, 30)[..., 0]).save(image)
    before = image.read_bytes()
    with pytest.raises(UserError, match="has other files: expected a new or an empty"):
        write(model, [image], tmp_path)
    assert image.read_bytes() == before


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
    assert masks.mask_file(split, path, 7) == Path(expected)


# ---- A run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("segment")
    config = tiny_config.get_config("segment")
    config.duration = "1 steps"
    simmim_jax.segment(config, workdir, held_out=tiny_config.some_masks())
    return workdir


@pytest.mark.slow
def test_a_run_leaves_metrics_pictures_and_a_table(trained):
    last = read_metrics(trained / "metrics.jsonl")[-1]
    assert 0 <= last["miou"] <= last["pixel_accuracy"] <= 1
    assert layout.read_record(trained)["mask_classes"][:2] == [
        "background",
        "T-shirt/top",
    ]
    with Image.open(trained / "segmentations" / "0000001.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10
    header, *rows = (trained / "iou.tsv").read_text().splitlines()
    assert header == "class\tiou\tshare of pixels"
    assert len(rows) == 11
    assert sum(float(row.split("\t")[2]) for row in rows) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_an_encoder_comes_from_the_checkpoint(trained):
    encoder = Encoder.load(trained)
    vectors = encoder.embed(np.zeros((1, 28, 28, 1), np.uint8))
    assert vectors.shape == (1, 16)
    assert np.isfinite(vectors).all()


@pytest.mark.slow
def test_the_command_writes_masks(trained, tmp_path, capsys):
    Image.fromarray(scene(20, 30)[..., 0]).save(tmp_path / "1.png")
    images = (tmp_path / "1.png", tmp_path / "2.png")  # which does not exist
    with pytest.raises(SystemExit) as ended:
        segment_files(trained, *images, f"--masks={tmp_path / 'out'}")
    assert ended.value.code == 1
    assert "1 left out, 1 segmented" in capsys.readouterr().err
    assert read(tmp_path / "out" / "1.png").shape == (20, 30)


def segment_files(trained, *args):
    predict.main([str(trained), *map(str, args)])


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--table=t.csv", "--picture=p.png", "--every_class"])
def test_flags_of_other_runs_are_refused(trained, flag):
    with pytest.raises(SystemExit, match=r"is for runs that learned classes.*masks"):
        segment_files(trained, "1.png", flag)


@pytest.mark.slow
def test_other_formats_have_no_place_for_masks(trained, tmp_path):
    from simmim_jax.cli import convert

    with pytest.raises(SystemExit, match="is a segment run, whose head other formats"):
        convert.main([str(trained), str(tmp_path / "x"), "--to=timm"])


@pytest.mark.slow
def test_a_segmentation_model_is_not_exported(trained, tmp_path):
    with pytest.raises(UserError, match="cannot be exported as a whole"):
        simmim_jax.export(simmim_jax.load(trained), tmp_path / "model.safetensors")


@pytest.mark.slow
def test_other_runs_are_told_apart(trained):
    assert isinstance(simmim_jax.load(trained), SegmentPredictor)
    with pytest.raises(UserError, match="learns no classes"):
        Predictor.load(trained)
