"""Runs on lines of text: from a file to a picture, and what counts in the loss."""

import csv
import dataclasses

import jax
import numpy as np
import pytest
import tiny_config

from simmim_jax import load
from simmim_jax.augment.normalization import Normalization
from simmim_jax.cli import predict
from simmim_jax.config import schema
from simmim_jax.data.views.text import PADDING, TextView
from simmim_jax.mim.objective import Objective
from simmim_jax.tasks import inputs
from simmim_jax.tasks.api import finetune, pretrain
from simmim_jax.tasks.pretrain_step import pretrain_prepare

WORDS = {
    "German": "der die das und nicht mit ein zu von sich",
    "French": "le la les et ne avec un de se dans",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """40 lines in two languages."""
    path = tmp_path_factory.mktemp("text") / "lines.csv"
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(40):
            name = sorted(WORDS)[i % 2]
            rows.writerow([" ".join(rng.choice(WORDS[name].split(), 6)), name])
    return path


def config(mode, dataset):
    config = tiny_config.get_config(mode)
    config.data.update(
        dataset=str(dataset), view="text", image_size=(8, 128), flip=False
    )
    config.data.update(mean=(), std=(), dtype="auto", batch_size=4)
    config.model.patch_size = (8, 8)
    config.duration, config.eval_every = "3 steps", "3 steps"
    config.optim.warmup = "1 steps"
    if mode == "pretrain":
        config.mask.update(kind="span", unit_size=(8, 8), ratio=0.25)
    else:
        config.data.num_labels = 0
    return config


@pytest.fixture(scope="module")
def workdir(table):
    pretrain(config("pretrain", table), table.parent / "pretrained")
    return table.parent / "pretrained"


def test_pretraining_draws_lines_below_each_other(workdir):
    from PIL import Image

    meta = schema.single(schema.parse(load_json(workdir / "config.json")["config"]))
    assert meta.data.nodata == (PADDING,)  # found by the view, kept with the run
    width, height = Image.open(workdir / "reconstructions/0000003.png").size
    assert width > 128 * 4
    assert height > 2 * 4 * 32  # two lines of four panels


def load_json(path):
    import json

    return json.loads(path.read_text())


def test_finetuning_and_predictions_of_lines(workdir, table, tmp_path, capsys):
    run = config("finetune", table)
    run.init_from = str(workdir)
    finetune(run, tmp_path / "languages")
    classifier = load(tmp_path / "languages")
    found = classifier.predict(["der die das"])
    assert sorted(found[0]) == ["French", "German"]
    assert classifier.embed(["der die das", "le la"]).shape == (2, 16)
    (tmp_path / "lines.txt").write_text("le la les\n\nder\n")
    argv = [str(tmp_path / "languages"), f"--picture={tmp_path / 'p.png'}"]
    predict.main([*argv, "der die das", str(tmp_path / "lines.txt")])
    printed = capsys.readouterr().out
    for line in ("der die das  ", "le la les  ", "der        "):
        assert line in printed
    assert (tmp_path / "p.png").exists()


def test_padding_is_neither_masked_nor_counted():
    view = TextView(size=(8, 64))
    lines = [view({"image": "abcdef", "label": 0}, None)["image"]] * 64
    images = np.stack(lines)  # 24 of 64 columns
    normalization = Normalization((0.9,), (0.3,), nodata=PADDING)
    prepare = pretrain_prepare(
        patch_size=(8, 8),
        mask_unit=(8, 8),
        mask_ratio=0.5,
        mask_kind="span",
        normalization=normalization,
        flip=False,
    )
    inputs = jax.jit(prepare)({"image": images}, jax.random.key(0))
    assert (inputs["mask"].sum((1, 2)) == 2).all()  # of three patches
    assert not inputs["mask"][:, :, 3:].any()
    rng = np.random.default_rng(0)
    prediction = rng.normal(size=(64, 8, 64, 1)).astype(np.float32)
    objective = Objective(normalization=normalization)

    def loss(prediction):
        args = (inputs["image"], inputs["mask"])
        return objective(prediction, *args, valid=inputs["valid"])

    value, pixels = loss(prediction)
    assert pixels == 64 * 2 * 8 * 8
    prediction[:, :, 24:] = 1e6
    assert loss(prediction)[0] == value


def test_a_run_says_which_characters_have_no_glyph(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"漢字 {i} 漢\n" for i in range(10, 40)))
    data = dataclasses.replace(
        schema.parse(config("pretrain", path)).data, train_split="train"
    )
    source = inputs.open_split(data, "train")
    said = inputs.describe(data, source, source)
    n = len(source)
    assert f"{3 * n:,} of {7 * n:,} characters have no glyph" in said
    assert f"漢 (U+6F22) x {2 * n}" in said


def test_images_with_the_view_of_text_and_lines_without_it(table):
    run = config("pretrain", "bundled:climate")
    with pytest.raises(ValueError, match="examples are no lines of text"):
        pretrain(run, table.parent / "images")
    run = config("pretrain", "bundled:languages")
    run.data.view = "image"
    with pytest.raises(ValueError, match=r"--config\.data\.view=text"):
        pretrain(run, table.parent / "lines")


def test_mirrored_text_is_refused(table):
    run = config("pretrain", table)
    run.data.flip = True
    with pytest.raises(ValueError, match=r"config\.data\.flip=True mirrors text"):
        schema.parse(run)
