"""Scores by class and what is confused, beside scikit-learn."""

import csv
import json
import shutil

import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from simmim_jax import load
from simmim_jax.cli import evaluate as command
from simmim_jax.cli import predict
from simmim_jax.data.sources.registry import open_source
from simmim_jax.tasks.evaluate import (
    class_scores,
    confused,
    confusion_matrix,
    evaluate,
    macro_f1,
)
from simmim_jax.tasks.parts import Split
from tests.cli.test_predict import CHECKPOINT

FASHION = "bundled:fashion_mnist_10k"


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    predicted = np.where(rng.random(200) < 0.6, labels, rng.integers(0, 4, 200))
    found = confusion_matrix(labels, predicted, 4)
    # scikit-learn 1.7.
    np.testing.assert_array_equal(
        found, sklearn.metrics.confusion_matrix(labels, predicted)
    )
    expected = sklearn.metrics.precision_recall_fscore_support(labels, predicted)
    scores = class_scores(found, ("a", "b", "c", "d"))
    np.testing.assert_allclose(
        [(s.precision, s.recall, s.f1, s.images) for s in scores], np.array(expected).T
    )
    assert macro_f1(scores) == pytest.approx(
        sklearn.metrics.f1_score(labels, predicted, average="macro")
    )
    for score in scores:
        assert score.recall_low < score.recall < score.recall_high


def test_what_has_no_image_has_no_score():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 0]])
    first, second, third = class_scores(matrix, ("a", "b", "c"))
    assert (first.precision, first.recall, first.images) == (0.6, 0.75, 4)
    assert (second.images, second.predicted, second.precision) == (0, 1, 0)
    assert (second.recall, second.recall_low, second.recall_high) == (None,) * 3
    assert (third.recall, third.precision, third.f1) == (0, None, 0)
    # Over classes with images, as scikit-learn does over labels that occur.
    assert macro_f1([first, second, third]) == pytest.approx(first.f1 / 2)
    assert confused(matrix, 2) == [(2, 0, 2), (0, 1, 1)]
    assert confused(np.eye(3, dtype=int), 2) == []


@pytest.fixture
def run(tmp_path):
    """A copy of a run, to be calibrated."""
    return shutil.copytree(CHECKPOINT, tmp_path / "run")


def test_the_command_writes_tables_and_pictures(run, tmp_path, capsys):
    out = tmp_path / "out"
    command.main([str(run), FASHION, f"--out={out}", "--calibrate"])
    printed = capsys.readouterr().out
    source = open_source(FASHION, "validation")
    predictor = load(run)
    shares = predictor(source.images)
    predicted = shares.argmax(1)
    accuracy = (predicted == source.labels).mean()
    assert f"2,000 images, top-1 {accuracy:.2%}, 95 % interval" in printed
    expected = sklearn.metrics.confusion_matrix(source.labels, predicted)
    header, *rows = csv.reader((out / "confusion.csv").open())
    assert header == ["true class", *source.class_names]
    assert [row[0] for row in rows] == list(source.class_names)
    assert np.array([row[1:] for row in rows], int).tolist() == expected.tolist()
    summary = json.loads((out / "evaluation.json").read_text())
    assert summary["top1"] == pytest.approx(accuracy)
    classes = list(csv.DictReader((out / "classes.csv").open()))
    assert [float(row["recall"]) for row in classes] == pytest.approx(
        sklearn.metrics.recall_score(source.labels, predicted, average=None)
    )
    for name in ("confusion.png", "calibration.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 600
    # Prediction shows both probabilities from here on.
    fitted = predictor.calibration
    assert fitted is not None
    assert f"calibration.json: {fitted.describe()}" in printed
    image = tmp_path / "a.png"
    Image.fromarray(source.images[0, ..., 0]).save(image)
    files = [str(image), f"--table={tmp_path / 't.csv'}"]
    predict.main([str(run), *files])
    (row,) = csv.DictReader((tmp_path / "t.csv").open())
    assert float(row["probability"]) == pytest.approx(shares[0].max(), rel=1e-5)
    tempered = shares[0].astype(float) ** (1 / fitted.temperature)
    tempered /= tempered.sum()
    assert float(row["calibrated"]) == pytest.approx(tempered.max(), rel=1e-4)
    assert float(row["calibrated_2"]) == pytest.approx(sorted(tempered)[-2], rel=1e-4)
    capsys.readouterr()
    predict.main([str(run), str(image), "--top=1"])
    printed = capsys.readouterr().out
    assert f"calibrated: {fitted.describe()}" in printed
    assert printed.endswith(f" {shares[0].max():.1%} / {tempered.max():.1%}\n")


def test_classes_are_found_by_name(tmp_path):
    """A folder with two of ten classes, in another order."""
    source = open_source(FASHION, "validation")
    for i in range(40):
        image, label = source.images[i], source.labels[i]
        name = source.class_names[label].replace("/", "-")
        if name in ("Sneaker", "Dress"):
            file = tmp_path / "set" / "val" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(file)
    place = str(tmp_path / "set")
    found = evaluate(
        load(CHECKPOINT), Split(place, "validation", open_source(place, "validation"))
    )
    assert set(found.labels) == {3, 7}
    assert found.confusion[[3, 7]].sum() == len(found.labels)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["bundled:climate"], "has the class 'tropical', which the classifier does"),
        (["COLOURS"], "none of 2 images can be read: "),
        ([FASHION, "--split=train", "--calibrate"], "the run learned from these"),
        (["UNLABELLED"], "has no labels in its split 'validation': expected class"),
    ],
)
def test_mistakes_are_sentences(args, says, tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "0.png")
    for name in ("Bag", "Coat"):
        file = tmp_path / "set" / "val" / name / "0.npy"
        file.parent.mkdir(parents=True)
        np.save(file, np.zeros((28, 28, 5), np.uint8))
    places = {"UNLABELLED": str(tmp_path), "COLOURS": str(tmp_path / "set")}
    args = [places.get(arg, arg) for arg in args]
    with pytest.raises(SystemExit) as stopped:
        command.main([str(CHECKPOINT), *args, f"--out={tmp_path / 'out'}"])
    assert says in str(stopped.value)
    assert not (tmp_path / "out").exists()
