"""`simmim predict`: folders, many files, and files that are no images."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_jax import load
from simmim_jax.cli import predict
from simmim_jax.monitoring import pictures
from simmim_jax.tasks import predict as prediction

CHECKPOINT = Path(__file__).parents[1] / "workdirs" / "e0607c8" / "finetune"


@pytest.fixture(scope="module")
def predictor():
    return load(CHECKPOINT)


@pytest.fixture
def folder(tmp_path):
    """Five images in folders, and other files beside them."""
    rng = np.random.default_rng(0)
    for name in ("b/2.png", "b/1.PNG", "a.jpg", "b/c/3.png", "z.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(path)
    (tmp_path / "images" / "readme.txt").write_text("about")
    (tmp_path / "images" / ".thumbnail.png").write_text("hidden")
    return tmp_path / "images"


@pytest.fixture
def drawn(monkeypatch):
    """Titles of the images in the picture."""
    titles = []
    monkeypatch.setattr(
        pictures,
        "prediction_grid",
        lambda images, *_, titles, into=titles: into.extend(titles),
    )
    return titles


def run(*args, status=0):
    argv = [f"--checkpoint={CHECKPOINT}", *map(str, args)]
    if not status:
        return predict.main(argv)
    with pytest.raises(SystemExit) as exit_:
        predict.main(argv)
    return exit_.value.code


def named(output, folder):
    """Paths below the folder that lines begin with."""
    lines = [line for line in output.splitlines() if line.startswith(f"{folder}/")]
    return [line.split("  ")[0].removeprefix(f"{folder}/") for line in lines]


def test_a_folder_stands_for_the_images_in_it(folder, drawn, capsys):
    run(folder, folder / "z.png")
    names = named(capsys.readouterr().out, folder)
    assert names == ["a.jpg", "b/1.PNG", "b/2.png", "b/c/3.png", "z.png"]
    assert drawn == ["a.jpg", "1.PNG", "2.png", "3.png", "z.png"]


@pytest.mark.parametrize(
    ("flags", "count", "says"),
    [
        ((), 64, "(the first 64; --pictures=70 draws all 70)"),
        (("--pictures=70",), 70, "predictions.png\n"),
        (("--pictures=0",), 0, ""),
    ],
)
def test_many_images_are_not_all_drawn(flags, count, says, tmp_path, drawn, capsys):
    for i in range(70):
        Image.new("L", (28, 28), i).save(tmp_path / f"{i}.png")
    run(tmp_path, *flags)
    output = capsys.readouterr().out
    assert len(named(output, tmp_path)) == 70
    assert len(drawn) == count
    assert says in output
    assert ("picture:" in output) == bool(count)


def test_table_has_the_probability_of_every_class(folder, drawn, predictor, tmp_path):
    run(folder, f"--table={tmp_path / 't.csv'}")
    rows = list(csv.reader((tmp_path / "t.csv").open()))
    assert rows[0] == ["file", "class", "probability", *predictor.class_names]
    assert len(rows) == 6
    for file, best, probability, *all_of_them in rows[1:]:
        (expected,) = predictor.predict([file])
        found = dict(zip(predictor.class_names, map(float, all_of_them), strict=True))
        assert found == pytest.approx(expected, rel=1e-5)
        assert (best, float(probability)) == (max(found, key=found.get), found[best])


def test_bad_files_are_named_and_the_others_classified(folder, drawn, tmp_path, capsys):
    (folder / "b" / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    files = (folder, tmp_path / "none.png", tmp_path / "empty")
    assert run(*files, status=1) == 1
    output, said = capsys.readouterr()
    assert len(named(output, folder)) == 5
    assert f"left out: {folder}/b/broken.png: 8 bytes" in said
    assert f"left out: {tmp_path}/none.png: No such file or directory" in said
    assert f"left out: {tmp_path}/empty: a folder without images" in said
    assert said.endswith("3 left out, 5 classified\n")


def test_nothing_to_classify(tmp_path, capsys):
    missing, empty = tmp_path / "no.png", tmp_path
    assert run(missing, status=1) == 1
    once = f"left out: {missing}: No such file or directory\n"
    assert capsys.readouterr().err == once
    assert run(missing, empty, status=1) == "none of 2 classified"


def test_a_table_that_cannot_be_written(folder, tmp_path):
    said = run(folder, f"--table={tmp_path / 'none' / 't.csv'}", status=1)
    assert said == (
        f"cannot read or write '{tmp_path}/none/t.csv': No such file or directory"
    )


def test_a_folder_of_runs_as_checkpoint_names_them(tmp_path):
    said = run(tmp_path, f"--checkpoint={CHECKPOINT.parent}", status=1)
    assert "has no checkpoint in it. Expected the workdir of a run" in said
    assert f"It has those of other runs: {CHECKPOINT}, " in said


def test_names_that_are_not_utf_8(drawn, tmp_path, capsys):
    path = tmp_path / "caf\udce9.png"  # é in Latin-1
    Image.new("L", (28, 28)).save(path)
    run(tmp_path, f"--table={tmp_path / 't.csv'}")
    assert "caf\\udce9.png" in capsys.readouterr().out
    assert b"caf\xe9.png" in (tmp_path / "t.csv").read_bytes()
    assert drawn == ["caf\\udce9.png"]


def test_files_are_read_batch_by_batch(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "BATCH", 2)
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for path in paths:
        Image.new("L", (28, 28)).save(path)
    left = []
    stream = predictor.stream(paths, lambda path, error: left.append(path))
    assert next(stream)[0] == paths[0]
    Path(paths[1]).unlink()  # read with the first
    Path(paths[2]).unlink()
    assert [path for path, *_ in stream] == [paths[1], paths[3], paths[4]]
    assert left == [paths[2]]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_padding_changes_no_probability(count, predictor):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    alone = np.concatenate([predictor(images[i : i + 1]) for i in range(count)])
    np.testing.assert_allclose(predictor(images[:count]), alone, rtol=1e-5)


def test_a_run_without_classes_is_refused(tmp_path):
    said = run(tmp_path, f"--checkpoint={CHECKPOINT.parent / 'pretrain'}", status=1)
    assert "learns no classes" in said
