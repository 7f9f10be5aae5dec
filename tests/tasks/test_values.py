"""What a run finds out about its values before it compiles."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_config

from simmim_jax.checkpoints import layout
from simmim_jax.data.codecs import registry
from simmim_jax.data.codecs.base import Codec, Raster
from simmim_jax.data.sources.base import as_source
from simmim_jax.data.survey.sample import sample
from simmim_jax.data.survey.stats import Accumulator, to_json
from simmim_jax.errors import UserError
from simmim_jax.tasks import values
from simmim_jax.tasks.api import finetune, pretrain
from simmim_jax.tasks.values import assume, normalization, resolve
from simmim_jax.tasks.views import eval_view

OPEN = {"data.dtype": "auto", "data.mean": (), "data.std": ()}


def bands(dtype="uint16", channels=13, count=40):
    """Reflectances of Sentinel-2's order of size."""
    rng = np.random.default_rng(0)
    middle = np.linspace(2500, 6000, channels)
    return rng.normal(middle, 300, (count, 28, 28, channels)).astype(dtype)


def config(channels=13, **fields):
    return tiny_config.typed("pretrain", **OPEN | {"data.channels": channels} | fields)


def resolved(images, **fields):
    """Return config.data as `resolve` does, and what it says."""
    open_config = config(images[0].shape[-1], **fields)
    found, said = resolve(open_config, as_source(images))
    return found.data, " ".join(said)


def test_photographs_get_imagenet_statistics():
    data, said = resolved(bands("uint8", 3))
    assert (data.dtype, data.mean, data.std) == (
        "uint8",
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
    assert said == "values: uint8, 3 bands, ImageNet's mean and standard deviation"


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32"])
def test_other_values_are_measured(dtype):
    images = bands(dtype)
    data, said = resolved(images)
    assert data.dtype == dtype
    np.testing.assert_allclose(data.mean, images.mean((0, 1, 2), np.float64))
    np.testing.assert_allclose(data.std, images.std((0, 1, 2), np.float64), rtol=1e-6)
    assert f"{dtype}, 13 bands, measured on 40 of 40 images (0: 2" in said
    out = normalization(data)(images)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-4)


def test_grey_photographs_are_measured_in_0_to_1():
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 1), np.uint8)
    data, _ = resolved(images)
    np.testing.assert_allclose(data.mean, (images / 255).mean(), rtol=1e-9)
    np.testing.assert_allclose(data.std, (images / 255).std(), rtol=1e-9)


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ({"normalization": "clipped"}, -2, 2),
        ({"normalization": "clipped", "clip": (-1.0, 3.0)}, -1, 3),
        ({"normalization": "percentiles"}, -1, 1),
        ({"normalization": "percentiles", "clip": (2.0, 98.0)}, -1, 1),
        ({"normalization": "range", "clip": (0.0, 4000.0)}, -1, 1),
        ({"normalization": "decibels"}, -np.inf, np.inf),
    ],
)
def test_each_normalization_has_its_range(fields, low, high):
    images = np.exp(np.random.default_rng(0).normal(7, 1, (20, 28, 28, 2)))
    images = images.astype(np.float32)
    data, _ = resolved(images, **{f"data.{k}": v for k, v in fields.items()})
    normalize = normalization(data)
    out = np.asarray(normalize(images))
    assert low <= out.min() < out.max() <= high
    inside = (out > low) & (out < high)
    np.testing.assert_allclose(
        np.asarray(normalize.inverse(out))[inside], images[inside], rtol=1e-4
    )
    kind, clip = fields["normalization"], fields.get("clip")
    if kind == "decibels":
        np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-3)
        np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-3)
    if kind == "percentiles":
        outside = 1 - inside.mean()
        first = (clip or (1, 99))[0]
        assert outside == pytest.approx(2 * first / 100, rel=0.05)


def test_marked_pixels_do_not_count_in_statistics():
    images = bands("int16", 2)
    images[:, :10] = -9999
    data, said = resolved(images, **{"data.nodata": (-9999.0,)})
    np.testing.assert_allclose(data.mean, images[:, 10:].mean((0, 1, 2), np.float64))
    assert "-9999 where there is no data" in said
    assert "; 35.7% without data)" in said


@pytest.mark.parametrize(
    ("images", "fields", "says"),
    [
        (bands(), {"data.channels": 4}, r"uint16 \[28, 28, 13\].*channels=4"),
        (
            np.full((4, 28, 28, 2), np.nan, np.float32),
            {},
            "Band 0 has no valid value",
        ),
        (
            bands(channels=2),
            {"data.mean": (0.5, 0.5), "data.std": (0.2, 0.2)},
            r"pixels in 0\.\.1, but the images are uint16",
        ),
        (bands(channels=2), {"loss.kind": "bins"}, r"kind='bins'.*dtype='uint8'"),
        (bands(channels=2), {"data.nodata": (-1.0,)}, "uint16, which cannot have it"),
        (
            -bands("float32", 2),
            {"data.normalization": "decibels"},
            "band . has no value above 0",
        ),
        (
            bands(channels=2),
            {"data.normalization": "percentiles", "data.clip": (5.0, 95.0)},
            "expected two of",
        ),
    ],
)
def test_contradictions_are_errors_before_anything_compiles(images, fields, says):
    with pytest.raises(UserError, match=says):
        resolve(
            config(**{"data.channels": images.shape[-1]} | fields), as_source(images)
        )


def test_a_few_images_of_another_type_do_not_change_that_of_photographs():
    photos, deep = bands("uint8", 3, count=30), bands("uint16", 3, count=10)
    data, said = resolved([*photos, *deep])
    assert data.dtype == "uint8"
    assert said == (
        "values: uint8, 3 bands, 10 of 40 images left out as uint16, ImageNet's mean "
        "and standard deviation"
    )
    data, said = resolved([*photos[..., :1], *deep[..., :1]])
    assert "10 of 40 images left out as uint16, measured on 30 of 40 images" in said
    expected = photos[..., :1].mean() / 255
    np.testing.assert_allclose(data.mean, [expected])
    # Half of them might as well be the others, which hold these values.
    assert resolved([*photos[:10], *deep])[0].dtype == "uint16"


def test_images_that_cannot_be_read_are_an_error():
    with pytest.raises(UserError, match=r"None of 2 images .* The first: .*b'nothing'"):
        resolve(config(3), as_source([b"nothing", b"nothing"]))


def test_a_file_of_statistics_takes_the_place_of_a_sample(tmp_path):
    images = bands(channels=2)
    sums = Accumulator()
    for each in sample(as_source(images + np.uint16(500)), 40):
        sums.add(each.image, each.index)
    file = tmp_path / "stats.json"
    file.write_text(json.dumps(to_json(sums.result(of=40))))
    data, _ = resolved(images, **{"data.statistics": str(file)})
    expected = images.mean((0, 1, 2), np.float64) + 500
    np.testing.assert_allclose(data.mean, expected)
    with pytest.raises(UserError, match=r"is of 2 bands: expected .*channels=13"):
        resolved(bands(), **{"data.statistics": str(file)})


def test_a_resumed_run_and_later_tasks_keep_what_was_measured(tmp_path, capsys):
    images = bands(channels=2)
    labels = np.arange(40) % 2
    fields = tiny_config.get_config("pretrain")
    fields.data.update({"channels": 2, "dtype": "auto", "mean": (), "std": ()})
    fields.duration, fields.optim.warmup = "2 steps", "1 steps"
    pretrain(fields, tmp_path / "pre", data=images, held_out=images[:8])
    assert "values: uint16, 2 bands, measured on 40 of 40" in capsys.readouterr().out
    measured = layout.read_meta(tmp_path / "pre")["config"]["data"]
    assert measured["dtype"] == "uint16"
    np.testing.assert_allclose(measured["mean"], images.mean((0, 1, 2), np.float64))

    fields.duration = "3 steps"
    pretrain(fields, tmp_path / "pre", data=images + np.uint16(9), held_out=images[:8])
    output = capsys.readouterr().out
    assert "resumed at step 2 of 3" in output
    assert "data.mean" not in output
    later = tiny_config.get_config("finetune")
    later.data.update({"channels": 2, "dtype": "auto", "mean": (), "std": ()})
    later.data.num_labels, later.duration = 0, "1 steps"
    later.init_from = str(tmp_path / "pre")
    pair = (images + np.uint16(9), labels)
    finetune(later, tmp_path / "fine", data=pair, held_out=pair)
    for workdir in ("pre", "fine"):
        kept = layout.read_meta(tmp_path / workdir)["config"]["data"]
        assert kept["mean"] == measured["mean"]
        assert kept["dtype"] == "uint16"


def test_a_later_task_may_lack_bands(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])

    def decoded(data, decoding):
        pixels = np.frombuffer(data[4:], np.uint16).reshape(28, 28, 2)
        return Raster(pixels, ("B4", "B8"))

    registry.register_codec(Codec("bands", b"BAND", decoded))
    files = [b"BAND" + scene.tobytes() for scene in bands(channels=2, count=5)]
    fields = {
        "data.bands": ("B8", "VH", "B4"),
        "data.mean": (4000.0,) * 3,
        "data.std": (300.0,) * 3,
        "data.dtype": "uint16",
    }
    with pytest.raises(UserError, match="no band 'VH': it has B4, B8"):
        resolve(config(3, **fields), as_source(files))
    filled = config(3, **fields | {"data.fill_bands": True, "data.nodata": (0.0,)})
    found, (said,) = resolve(filled, as_source(files))
    assert "without VH in some images" in said
    row = eval_view(found.data)({"image": files[0], "label": 0}, None)["image"]
    out = np.asarray(normalization(found.data)(row))
    assert (out[..., 1] == 0).all()  # the model sees the mean
    assert (out[..., 0] != 0).all()


def test_bands_in_another_order_than_a_checkpoint_are_refused(tmp_path):
    learned = config(2, **{"data.bands": ("B4", "B8")}).data
    later = tiny_config.typed(
        "finetune",
        **OPEN | {"data.channels": 2, "data.bands": ("B8", "B4"), "init_from": "x"},
    )
    with pytest.raises(UserError, match=r"\('B4', 'B8'\) in another order"):
        values._check_bands(later, learned, "config")


def test_values_are_assumed_for_measurements_without_data():
    assert assume(config(3)).data.mean == (0.485, 0.456, 0.406)
    assumed = assume(config(13)).data
    assert (assumed.dtype, len(assumed.mean), len(assumed.std)) == ("uint8", 13, 13)
    given = dataclasses.replace(
        config(1).data, dtype="float32", mean=(3.0,), std=(1.0,)
    )
    assert assume(dataclasses.replace(config(1), data=given)).data == given
