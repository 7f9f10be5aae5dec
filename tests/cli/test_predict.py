"""`simmim predict`: folders, many files, and files that are no images."""

import csv
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
from PIL import Image

from simmim_jax import load
from simmim_jax.cli import predict
from simmim_jax.monitoring import pictures
from simmim_jax.tasks import examples, parts
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


def run(*args, checkpoint=CHECKPOINT, status=0):
    argv = [str(checkpoint), *map(str, args)]
    if not status:
        return predict.main(argv)
    with pytest.raises(SystemExit) as exit_:
        predict.main(argv)
    return exit_.value.code


def named(output, folder):
    """Paths below the folder that lines begin with."""
    lines = [line for line in output.splitlines() if line.startswith(f"{folder}/")]
    return [line.split("  ")[0].removeprefix(f"{folder}/") for line in lines]


def test_a_folder_stands_for_the_images_in_it(folder, tmp_path, capsys):
    run(folder, tmp_path / "images" / "z.png", tmp_path / "images" / "z.png")
    names = named(capsys.readouterr().out, folder)
    assert names == ["a.jpg", "b/1.PNG", "b/2.png", "b/c/3.png", "z.png", "z.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_the_most_probable_classes_come_first(folder, predictor, capsys):
    run(folder / "z.png", "--top=2")
    (expected,) = predictor.predict([folder / "z.png"])
    ranked = [f"{name} {share:.1%}" for name, share in list(expected.items())[:2]]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"{folder}/z.png  {', '.join(ranked)}"


def write_sources(folder):
    """Write ten images in each way that the trainer reads; yield names and counts."""
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 1), np.uint8)
    for i, image in enumerate(images):
        (folder / "split" / "train").mkdir(parents=True, exist_ok=True)
        (folder / "split" / "val").mkdir(exist_ok=True)
        part = "train" if i < 7 else "val"
        Image.fromarray(image[..., 0]).save(folder / "split" / part / f"{i}.png")
    yield folder / "split", 10
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "split" / "train", "photos")
    yield folder / "a.tar", 7
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(folder / "split" / "train" / "0.png", "0.png")
    yield folder / "a.zip", 1
    (folder / "list.csv").write_text(
        "path,label\nsplit/val/8.png,3\nsplit/val/9.png,4\n"
    )
    yield folder / "list.csv", 2
    np.save(folder / "many.npy", images)
    yield folder / "many.npy", 10
    np.save(folder / "one.npy", images[0])
    yield folder / "one.npy", 1
    (folder / "arrays").mkdir()
    np.save(folder / "arrays" / "a.npy", images[0])
    yield folder / "arrays", 1
    tifffile.imwrite(folder / "pages.tif", images[:3, ..., 0], photometric="minisblack")
    yield folder / "pages.tif", 3
    tifffile.imwrite(folder / "one.tif", images[0, ..., 0], photometric="minisblack")
    yield folder / "one.tif", 1
    (folder / "without_ending").write_bytes((folder / "split/val/7.png").read_bytes())
    yield folder / "without_ending", 1


def test_every_source_of_the_trainer_is_read(predictor, tmp_path):
    (tmp_path / "data").mkdir()
    names, counts = zip(*write_sources(tmp_path / "data"), strict=True)
    table = tmp_path / "t.parquet"
    run(*names, f"--table={table}")
    rows = pyarrow.parquet.read_table(table).to_pylist()
    assert len(rows) == sum(counts)
    assert [row["split"] for row in rows[:11]] == ["train"] * 7 + ["validation"] * 3 + [
        "all"
    ]
    (tar,) = {row["path"] for row in rows if row["path"].endswith("a.tar/photos/3.png")}
    assert tar == f"{names[1]}/photos/3.png"
    many = [row for row in rows if row["path"] == str(names[4])]
    assert [row["index"] for row in many] == list(range(10))
    listed = [row["true_class"] for row in rows if row["true_class"]]
    assert listed == ["photos"] * 7 + ["3", "4"]  # of a.tar and list.csv
    # The same images, however they are stored.
    files = sorted((tmp_path / "data" / "split").rglob("*.png"))
    expected = [max(each.values()) for each in predictor.predict(files)]
    for kind, images in {
        "split": range(10), "a.tar": range(7), "a.zip": (0,), "list.csv": (8, 9),
        "many.npy": range(10), "one.npy": (0,), "arrays": (0,), "pages.tif": range(3),
        "one.tif": (0,), "without_ending": (7,),
    }.items():  # fmt: skip
        count = len(images)
        found, rows = rows[:count], rows[count:]
        shares = [row["probability"] for row in found]
        assert shares == pytest.approx([expected[i] for i in images], rel=1e-5), kind


def test_splits_may_be_chosen(tmp_path, capsys):
    next(write_sources(tmp_path))
    run(tmp_path / "split", "--split=validation")
    assert len(named(capsys.readouterr().out, tmp_path)) == 3


@pytest.mark.parametrize("count", [65, 3])
def test_a_picture_is_drawn_when_it_is_asked_for(count, tmp_path, monkeypatch, capsys):
    titles = []
    monkeypatch.setattr(
        pictures, "prediction_grid", lambda *_, titles, into=titles: into.extend(titles)
    )
    for i in range(count):
        Image.new("L", (28, 28), i).save(tmp_path / f"{i:02}.png")
    run(tmp_path)
    assert not titles
    run(tmp_path, f"--picture={tmp_path}/p.png")
    assert titles == [f"{i:02}.png" for i in range(min(count, 64))]
    assert f"picture: {tmp_path}/p.png, {min(count, 64)} images" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_tables_have_the_most_probable_classes(ending, folder, predictor, tmp_path):
    out = tmp_path / f"t.{ending}"
    run(folder, f"--table={out}", "--top=2", "--every_class")
    if ending == "parquet":
        rows = pyarrow.parquet.read_table(out).to_pylist()
    elif ending == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = list(csv.DictReader(out.open()))
    every = [f"probability of {name}" for name in predictor.class_names]
    assert list(rows[0]) == [
        *("path", "split", "index", "true_class"),
        *("class", "probability", "class_2", "probability_2"),
        *every,
    ]
    assert len(rows) == 5
    for row in rows:
        (expected,) = predictor.predict([row["path"]])
        (first, share), (second, next_share), *_ = expected.items()
        assert (row["class"], row["class_2"]) == (first, second)
        assert float(row["probability"]) == pytest.approx(share, rel=1e-5)
        assert float(row["probability_2"]) == pytest.approx(next_share, rel=1e-5)
        found = [float(row[name]) for name in every]
        ordered = [expected[name] for name in predictor.class_names]
        assert found == pytest.approx(ordered, rel=1e-5)
        assert not row["true_class"]  # images are not in class folders alone


def test_bad_files_are_named_and_the_others_classified(folder, tmp_path, capsys):
    (folder / "b" / "broken.png").write_bytes(b"no image")
    assert run(folder, tmp_path / "none.png", status=1) == 1
    output, said = capsys.readouterr()
    assert len(named(output, folder)) == 5
    assert f"left out: {folder}/b/broken.png: 8 bytes" in said
    assert f"left out: {tmp_path}/none.png: No such file or directory" in said
    assert said.endswith("2 left out, 5 classified\n")
    table = tmp_path / "t.csv"
    assert run(folder, tmp_path / "none.png", f"--table={table}", status=1) == 1
    said = capsys.readouterr().err
    assert said == f"2 left out, 5 classified, see {table}.left_out.tsv\n"
    listed = (tmp_path / "t.csv.left_out.tsv").read_text().splitlines()
    assert listed == [
        "split\tindex\tpath\treason",
        f"all\t3\t{folder}/b/broken.png\tnot an image",
        f"\t0\t{tmp_path}/none.png\tmissing",
    ]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["EMPTY"], "has no images: expected .jpg"),
        (["nowhere"], "dataset='nowhere' does not exist: expected"),
        (["bundled:climat"], "'bundled:climat' does not exist"),
        (["bundled:climate", "--split=tests"], "split='tests' of 'bundled:climate'"),
        (["bundled:climate", "--top=0"], "--top=0: expected 1 or more"),
        (["bundled:climate", "--srt=s"], "is for runs that learned speech to text"),
        (["bundled:climate", "--table=t.txt"], "in .csv or .parquet or .jsonl"),
    ],
)
def test_mistakes_are_sentences(args, says, tmp_path):
    assert says in run(*[tmp_path if arg == "EMPTY" else arg for arg in args], status=1)


def test_an_interrupted_table_resumes(predictor, tmp_path, monkeypatch):
    for i in range(10):
        Image.new("L", (28, 28), i).save(tmp_path / f"{i:02}.png")
    monkeypatch.setattr(parts, "PART", 4)
    write, calls = parts._write, []

    def interrupt(file, table):
        calls.append(file.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(file, table)

    monkeypatch.setattr(parts, "_write", interrupt)
    files = [f"--table={tmp_path}/t.csv", tmp_path]
    said = run(*files, status=1)
    assert said == "Interrupted. Run the same command again to resume."
    assert "was begun with top=5, and now it is 2" in run(*files, "--top=2", status=1)
    run(*files)
    assert calls[2:] == ["0-000000008.parquet"] * 2
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [Path(row["path"]).name for row in rows] == [
        f"{i:02}.png" for i in range(10)
    ]
    assert "exists already" in run(*files, status=1)


def test_a_table_that_cannot_be_written(folder, without_root, tmp_path):
    (tmp_path / "file").write_text("")
    said = run(folder, f"--table={tmp_path / 'file' / 't.csv'}", status=1)
    assert said.endswith("Not a directory")


def test_a_folder_of_runs_as_checkpoint_names_them(tmp_path):
    said = run(tmp_path, checkpoint=CHECKPOINT.parent, status=1)
    assert "has no checkpoint in it. Expected the workdir of a run" in said
    assert f"It has those of other runs: {CHECKPOINT}, " in said


def test_names_that_are_not_utf_8(tmp_path, capsys):
    path = tmp_path / "caf\udce9.png"  # é in Latin-1
    Image.new("L", (28, 28)).save(path)
    run(tmp_path)
    assert "caf\\udce9.png" in capsys.readouterr().out
    run(tmp_path, f"--table={tmp_path / 't.csv'}")
    assert "caf\\udce9.png" in (tmp_path / "t.csv").read_text()


def test_images_are_read_batch_by_batch(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "BATCH", 2)
    paths = [str(tmp_path / f"{i}.png") for i in range(7)]
    for path in paths:
        Image.new("L", (28, 28)).save(path)
    (split,) = prediction.open_images(predictor.config.data, paths)
    batches = predictor.classify(split.source)
    assert next(batches).paths == paths[:2]
    Path(paths[3]).unlink()  # read with the first ones
    Path(paths[4]).unlink()
    rest = list(batches)
    assert [path for batch in rest for path in batch.paths][:2] == paths[2:4]
    assert [batch.bad[0][:2] for batch in rest if batch.bad] == [(4, paths[4])]


def test_batches_of_all_sizes_are_one_program(tmp_path):
    predictor = load(CHECKPOINT)
    images = np.zeros((150, 28, 28, 1), np.uint8)
    (split,) = prediction.open_images(
        predictor.config.data, ["bundled:fashion_mnist_10k"], ["train"]
    )
    source = type(split.source)(images, None, ())
    sizes = [len(batch.logits) for batch in predictor.classify(source)]
    assert sizes == [64, 64, 22]
    assert predictor._jitted._cache_size() == 1


@pytest.mark.parametrize("count", [1, 3, 5])
def test_padding_changes_no_probability(count, predictor):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    alone = np.concatenate([predictor(images[i : i + 1]) for i in range(count)])
    np.testing.assert_allclose(predictor(images[:count]), alone, rtol=1e-5)


def test_a_run_without_classes_is_refused(tmp_path):
    said = run(tmp_path, checkpoint=CHECKPOINT.parent / "pretrain", status=1)
    assert "learns no classes" in said
