"""Runs that learn several classes an image, or numbers: from labels to answers."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_config
from PIL import Image

import simmim_jax
from simmim_jax.cli import evaluate as evaluate_command
from simmim_jax.cli import predict as predict_command
from simmim_jax.config import schema
from simmim_jax.data.sources.targets import as_source
from simmim_jax.errors import UserError
from simmim_jax.mim import losses
from simmim_jax.tasks import classify, targets
from simmim_jax.tasks.classify_step import number_targets, several_targets

NUMBERS = {"loss": "l2", "label_smoothing": 0}


def typed(**fields):
    """Runs of 120 steps, which is enough for brightness; sides are not swapped."""
    options = {"optim.lr": 0.3, "duration": "120 steps", "eval_every": "120 steps"}
    options |= {"optim.warmup": "10 steps", "data.num_labels": 0}
    options |= {"data.flip": False, "data.crop_scale": ()}
    return tiny_config.typed("finetune", **options | fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two brightnesses, left and right, and lists of what they show."""
    path = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(200):
        left, right = rng.integers(0, 256, 2).tolist()
        pixels = np.zeros((28, 28), np.uint8)
        pixels[:, :14], pixels[:, 14:] = left, right
        Image.fromarray(pixels).save(path / f"{i}.png")
        shown = [n for n, b in (("left", left), ("right", right)) if b > 127]
        split = "validation" if i % 4 == 0 else "train"
        rows.append((f"{i}.png", split, ";".join(shown), 1000 + left, right / 1000))
    header = ("path", "split", "labels", "left", "right")
    with (path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def several(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("several")
    config = typed(loss="sigmoid", **{"data.dataset": str(folder / "list.csv")})
    simmim_jax.finetune(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def numbers(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("numbers")
    fields = {"data.dataset": str(folder / "list.csv")}
    config = typed(**NUMBERS, **fields, **{"targets.columns": ("left", "right")})
    simmim_jax.finetune(config, workdir)
    return workdir


def held_out(folder):
    """Rows of the held-out images, and their pixels [n, 28, 28]."""
    rows = [
        row
        for row in csv.DictReader((folder / "list.csv").open())
        if row["split"] == "validation"
    ]
    pixels = [np.asarray(Image.open(folder / row["path"])) for row in rows]
    return rows, np.array(pixels)


def test_losses_are_those_of_optax():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 20, (5, 3)).astype(np.float32)
    t = rng.random((5, 3)).astype(np.float32)
    bce = optax.sigmoid_binary_cross_entropy(x, t).mean(1)
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(x, t), bce, rtol=1e-5)
    np.testing.assert_allclose(losses.absolute_error(x, t), np.abs(x - t).mean(1), 1e-5)
    np.testing.assert_allclose(losses.squared_error(x, t), ((x - t) ** 2).mean(1), 1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "l1", "l2"])
def test_what_is_not_known_has_no_loss_and_no_gradient(kind):
    x = jnp.array([[0.5, 2.0], [0.5, 3.0], [1.0, 1.0]])
    t = jnp.array([[1.0, np.nan], [1.0, 0.0], [np.nan, np.nan]])
    error = losses.HEAD_LOSSES[kind]
    found = error(x, t)
    assert found[0] == error(x[:1, :1], t[:1, :1])[0]
    assert found[2] == 0
    gradient = jax.grad(lambda x: error(x, t).sum())(x)
    assert gradient[0, 1] == 0
    assert (gradient[2] == 0).all()
    assert np.isfinite(gradient).all()
    assert (gradient[1] != 0).all()


def test_targets_are_smoothed_or_standardised():
    batch = {"target": jnp.array([[1.0, 0.0, np.nan]])}
    found = several_targets(0.2)(batch)
    np.testing.assert_allclose(found, [[0.9, 0.1, np.nan]], rtol=1e-6)
    found = number_targets((1, 2, 0), (2, 4, 1))(batch)
    np.testing.assert_allclose(found, [[0, -0.5, np.nan]])


@pytest.mark.slow
def test_several_classes_are_learned(several, folder, tmp_path, capsys):
    workdir = several
    *_, metrics = map(json.loads, (workdir / "metrics.jsonl").open())
    assert metrics["mAP"] > 0.9
    out = tmp_path / "out"
    data = str(folder / "list.csv")
    evaluate_command.main([str(workdir), data, f"--out={out}"])
    printed = capsys.readouterr().out
    summary = json.loads((out / "evaluation.json").read_text())
    assert summary["images"] == 50
    for name in ("mAP", "f1", "exact_match"):
        assert summary[name] == pytest.approx(metrics[name], rel=1e-5)
    assert f"50 images, mean average precision {summary['mAP']:.2%}; " in printed
    names = [row["name"] for row in csv.DictReader((out / "classes.csv").open())]
    assert names == ["left", "right"]
    with pytest.raises(SystemExit, match="--calibrate fits probabilities of one"):
        evaluate_command.main([str(workdir), data, f"--out={out}", "--calibrate"])


def test_classes_above_the_threshold_are_printed(several, folder, tmp_path, capsys):
    workdir = several
    rows, pixels = held_out(folder)
    predictor = simmim_jax.load(workdir)
    shares = predictor(pixels[:10, ..., None])
    files = [str(folder / row["path"]) for row in rows[:10]]
    predict_command.main([str(workdir), *files, "--threshold=0.3"])
    _, *lines = capsys.readouterr().out.splitlines()
    tables = {}
    for threshold in (0.3, 0.999999):
        table = tmp_path / f"{threshold}.csv"
        flags = [f"--threshold={threshold}", f"--table={table}"]
        predict_command.main([str(workdir), *files, *flags])
        tables[threshold] = [row["classes"] for row in csv.DictReader(table.open())]
    for line, row, listed in zip(lines, shares, tables[0.3], strict=True):
        expected = [i for i in np.argsort(-row) if row[i] >= 0.3]
        names = [("left", "right")[i] for i in expected]
        said = [f"{name} {row[i]:.1%}" for name, i in zip(names, expected, strict=True)]
        assert line.endswith(f"  {', '.join(said) or 'no class of 30% or more'}")
        assert listed == ";".join(names)
    assert tables[0.999999] == [""] * 10
    with pytest.raises(SystemExit, match="did not learn several"):
        predict_command.main(
            ["tests/workdirs/e0607c8/finetune", *files, "--threshold=0.3"]
        )


@pytest.mark.slow
def test_numbers_are_learned(numbers, folder, tmp_path, capsys):
    workdir = numbers
    rows, pixels = held_out(folder)
    true = np.array([[float(row["left"]), float(row["right"])] for row in rows])
    config = json.loads((workdir / "config.json").read_text())["config"]
    every = list(csv.DictReader((folder / "list.csv").open()))
    train = [row for row in every if row["split"] == "train"]
    for i, name in enumerate(("left", "right")):
        column = np.array([float(row[name]) for row in train], np.float32)
        assert config["targets"]["mean"][i] == pytest.approx(column.mean(), rel=1e-5)
        assert config["targets"]["std"][i] == pytest.approx(column.std(), rel=1e-5)
    predictor = simmim_jax.load(workdir)
    found = predictor(pixels[..., None])
    errors = np.abs(found - true).mean(0)
    *_, metrics = map(json.loads, (workdir / "metrics.jsonl").open())
    for error, name in zip(errors, ("left", "right"), strict=True):
        assert metrics[f"mae/{name}"] == pytest.approx(error, rel=1e-4)
        assert metrics[f"r2/{name}"] > 0.4  # 0 for the mean of all
    assert predictor.predict([pixels[0][..., None]])[0] == pytest.approx(
        {"left": found[0, 0], "right": found[0, 1]}, rel=1e-5
    )
    out = tmp_path / "out"
    evaluate_command.main([str(workdir), str(folder / "list.csv"), f"--out={out}"])
    printed = capsys.readouterr().out
    assert "left   50 images, mean absolute error" in printed
    scores = json.loads((out / "evaluation.json").read_text())["numbers"]
    assert scores[0]["mae"] == pytest.approx(errors[0], rel=1e-4)
    assert scores[0]["mae_low"] < scores[0]["mae"] < scores[0]["mae_high"]
    table = tmp_path / "t.csv"
    image = str(folder / rows[0]["path"])
    predict_command.main([str(workdir), image, f"--table={table}"])
    (row,) = csv.DictReader(table.open())
    assert float(row["predicted left"]) == pytest.approx(found[0, 0], rel=1e-5)
    capsys.readouterr()
    predict_command.main([str(workdir), image])
    said = f"left {found[0, 0]:.6g}, right {found[0, 1]:.6g}\n"
    assert capsys.readouterr().out.endswith(said)
    with pytest.raises(SystemExit, match="learned numbers, which have no"):
        predict_command.main([str(workdir), image, "--every_class"])


@pytest.mark.slow
def test_exports_numbers(numbers, folder, tmp_path):
    pytest.importorskip("flatbuffers")
    predictor = simmim_jax.load(numbers)
    said = simmim_jax.export(predictor, tmp_path / "x.stablehlo")
    assert "-> numbers [b, 2]" in said
    from jax import export

    read = export.deserialize(bytearray((tmp_path / "x.stablehlo").read_bytes()))
    pixels = held_out(folder)[1][:3, ..., None]
    np.testing.assert_allclose(read.call(pixels), predictor(pixels), rtol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_mean(numbers, folder, tmp_path):
    workdir = numbers
    fields = {"data.dataset": str(folder / "list.csv"), "data.num_labels": 20}
    config = typed(**NUMBERS, **fields, **{"targets.columns": ("left", "right")})
    run = classify.build(config, workdir)
    kept = json.loads((workdir / "config.json").read_text())["config"]["targets"]
    assert list(run.record["config"]["targets"]["mean"]) == kept["mean"]
    fresh = classify.build(config, tmp_path)
    assert list(fresh.record["config"]["targets"]["mean"]) != kept["mean"]


@pytest.mark.slow
def test_a_run_keeps_its_loss(numbers, folder):
    fields = {"data.dataset": str(folder / "list.csv"), "loss": "l1"}
    config = typed(**NUMBERS | fields, **{"targets.columns": ("left", "right")})
    with pytest.raises(UserError, match="loss was 'l2', is 'l1'"):
        classify.build(config, numbers).changes(16)


@pytest.mark.slow
def test_other_formats_have_no_numbers(numbers, tmp_path):
    from simmim_jax.cli import convert

    with pytest.raises(SystemExit, match="which other formats have no setting for"):
        convert.main([str(numbers), str(tmp_path / "x.pth"), "--to=official"])


@pytest.mark.slow
def test_from_python(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28, 1), np.uint8)
    config = tiny_config.typed("finetune", **NUMBERS, **{"data.num_labels": 0})
    trained = simmim_jax.finetune(
        config, tmp_path / "l2", data=(images, images.mean((1, 2, 3)))
    )
    assert "mae/0" in trained.last
    several = tiny_config.typed("finetune", loss="sigmoid", **{"data.num_labels": 0})
    labels = (rng.random((60, 2)) < 0.5).astype(int)
    trained = simmim_jax.finetune(several, tmp_path / "bce", data=(images, labels))
    assert 0 <= trained.last["mAP"] <= 1
    for wrong, chosen, says in (
        (labels, tiny_config.typed("finetune"), "loss='softmax' learns one class"),
        (images.mean((1, 2, 3)), several, "targets of 'train' are from"),
        (labels[:, 0], several, "has one of 2 classes an image"),
        (labels[:, 0], config, "config.loss='l2' learns numbers"),
    ):
        with pytest.raises(UserError, match=says):
            simmim_jax.finetune(chosen, tmp_path / "wrong", data=(images, wrong))


@pytest.mark.filterwarnings("ignore:overflow")
def test_numbers_that_float32_does_not_have():
    source = as_source(np.zeros((2, 8, 8, 1), np.uint8), [1.0, 1e39])
    with pytest.raises(UserError, match="too large for float32"):
        targets.check(tiny_config.typed("finetune", **NUMBERS), source, "train")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"loss": "l2"}, "expected --config.label_smoothing=0"),
        ({"targets.columns": ("a",)}, "learns one class an image"),
        ({**NUMBERS, "targets.mean": (1.0,)}, "expected one number of each"),
        ({"loss": "hinge"}, "expected one of"),
    ],
)
def test_fields_that_do_not_go_together(fields, says):
    with pytest.raises(UserError, match=says):
        tiny_config.typed("finetune", **fields)


def test_old_runs_name_it_probabilities():
    config = tiny_config.get_config("finetune").to_dict()
    del config["loss"]
    stored = config | {"probabilities": "sigmoid"}
    assert schema.parse(stored, stored=True).loss == "sigmoid"
    assert schema.parse(config, stored=True).loss == "softmax"
