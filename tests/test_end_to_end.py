"""The whole program, as a user runs it."""

import re

import commands
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from simmim_jax.augment.normalization import Normalization
from simmim_jax.data.sources.registry import open_source
from simmim_jax.models import build_simmim
from simmim_jax.tasks.pretrain_step import pretrain_loss, pretrain_prepare
from simmim_jax.training import steps


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        output = commands.run(
            "--config=configs/quickstart.py:smoke", f"--workdir={workdir}"
        )
    return workdir, output


def test_comparison_ends_with_table_pictures_and_summary(compared):
    workdir, output = compared
    summary = commands.summary(workdir)
    for run, name in (("scratch", "from scratch"), ("simmim", "with SimMIM")):
        top1 = summary[f"{run}_top1"]
        assert top1 == summary[f"{run}_last"]["top1"]
        assert top1 == commands.metrics(workdir / run)[-1]["top1"]
        assert re.search(rf"^{name} +20 +{top1:.2%} +[\d.]+% to [\d.]+%$", output, re.M)
    assert ", 2,000 held-out images\n" in output
    checkpoint = workdir / "simmim" / "checkpoints" / "20"
    assert f"simmim predict {checkpoint} IMAGES" in output
    assert summary["seconds"] > 0
    assert summary["labels"] > 0
    for name in ("reconstructions", "curves", "predictions"):
        assert summary[name] in output
        with Image.open(summary[name]) as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture).std() > 10  # not one colour


def test_comparison_reports_what_fine_tuning_restored(compared):
    _, output = compared
    assert re.search(r"restored \d+ of the encoder's parameters", output)
    assert re.search(r"new: .*head/kernel", output)
    assert re.search(r"left out: .*decoder/kernel", output)


def test_runs_write_config_versions_and_metrics(compared):
    workdir, _ = compared
    for run in ("pretrain", "scratch", "simmim"):
        lines = commands.metrics(workdir / run)
        assert all("step" in line for line in lines)
        assert any("loss" in line for line in lines)
        text = (workdir / run / "config.json").read_text()
        assert '"versions"' in text
        assert '"git_commit"' in text


def test_predict_names_classes_and_draws_them(compared, tmp_path):
    workdir, _ = compared
    data = commands.config(workdir / "simmim")["data"]
    source = open_source(data["dataset"], data["eval_split"])
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.squeeze(source[i]["image"])).save(files[-1])
    picture = tmp_path / "seen.png"
    output = commands.run(
        str(workdir / "simmim"),
        f"--picture={picture}",
        *files,
        module="simmim_jax.predict",
    )
    described, *lines = output.splitlines()
    assert described.startswith(f"{workdir / 'simmim'}: vit, ")
    assert "images of 28x28, 10 classes" in described
    for line, file in zip(lines, files, strict=False):
        assert line.startswith(str(file))
        shares = [float(s) for s in re.findall(r"([\d.]+)%", line)]
        assert shares == sorted(shares, reverse=True)
        assert any(name in line for name in source.class_names)
    assert Image.open(picture).size[0] > 200


def test_predict_reports_and_skips_files_that_are_no_images(compared, tmp_path):
    workdir, _ = compared
    good, bad, missing = (tmp_path / f"{name}.png" for name in ("good", "bad", "none"))
    Image.new("RGB", (28, 28)).save(good)
    bad.write_bytes(b"no image")
    args = (str(workdir / "simmim"), f"--picture={tmp_path / 'seen.png'}")
    predict = {"module": "simmim_jax.predict", "status": 1}
    output = commands.run(*args, bad, good, missing, **predict)
    assert f"left out: {bad}: " in output
    assert re.search(f"left out: .*{missing}", output)
    assert re.search(rf"^{good} .*%", output, re.MULTILINE)
    output = commands.run(*args, bad, **predict)
    assert f"left out: {bad}: " in output.splitlines()[-2]
    assert output.endswith("1 left out, 0 classified\n")
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("checkpoint", "says"),
    [("pretrain", "learns no classes"), ("nothing", "no checkpoint in")],
)
def test_predict_needs_a_classifier(checkpoint, says, compared, tmp_path):
    workdir, _ = compared
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    output = commands.run(
        str(workdir / checkpoint),
        image,
        module="simmim_jax.predict",
        status=1,
    )
    assert says in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_pre_training_overfits_eight_images():
    images = open_source("bundled:climate", "train").images[:8]
    model = build_simmim(
        dtype="float32",
        name="vit",
        patch_size=(8, 8),
        embed_dim=64,
        depth=2,
        num_heads=4,
        init_std=0.06,
        layer_scale=0.0,
        use_abs_pos_emb=True,
    )
    normalization = Normalization(
        images.mean((0, 1, 2)) / 255, images.std((0, 1, 2)) / 255
    )
    prepare = pretrain_prepare(
        patch_size=(8, 8),
        mask_unit=(16, 16),
        mask_ratio=0.6,
        flip=False,
        normalization=normalization,
    )
    mask = np.zeros((1, 8, 8), bool)
    params = model.init(jax.random.key(0), images[:1] / 255, mask)["params"]
    tx = optax.adamw(optax.cosine_decay_schedule(3e-3, 1500))
    step = jax.jit(
        lambda state, batch: steps.train_step(
            state,
            batch,
            prepare=prepare,
            loss=pretrain_loss(model),
            tx=tx,
            seed=0,
        )
    )
    state = steps.TrainState(jnp.int32(0), params, tx.init(params))
    for _ in range(1500):
        state, metrics = step(state, {"image": images})
    assert metrics["loss"] < 0.1


@pytest.mark.slow
def test_ablation_logs_the_distance_of_its_masks_and_draws(tmp_path):
    commands.run(
        "--config=configs/ablations.py:resolution_48,smoke",
        f"--workdir={tmp_path}",
        "--config.mask.kind=block",
        "--config.pictures=2",
    )
    losses = [m["loss"] for m in commands.metrics(tmp_path) if "loss" in m]
    assert losses[-1] < 0.8 * losses[0]
    first, *others = commands.metrics(tmp_path)
    assert first["step"] == 0
    assert 25 < first["avg_dist"] < 34  # blocks; of random units it is 15
    assert not any("avg_dist" in line for line in others)
    with Image.open(tmp_path / "reconstructions" / "0000010.png") as picture:
        assert np.asarray(picture).std() > 10


@pytest.mark.slow
def test_table_of_ablations_has_their_results():
    names = ("random_4_0.8", "bins_8", "all_pixels")
    output = commands.run(*names, "--steps=10", module="benchmarks.ablations")
    rows = [line.strip("| ").split(" | ") for line in output.splitlines()]
    found = {row[0]: row for row in rows}
    assert set(names) < set(found)
    for name in names:
        first, last = map(float, found[name][2:4])
        assert 0 < last < first
    assert float(found["bins_8"][2]) == pytest.approx(np.log(8), abs=0.4)
    assert float(found["random_4_0.8"][4]) == pytest.approx(3.25, abs=0.1)
    assert found["random_4_0.8"][5] == "80.0%"
    assert found["all_pixels"][6] == "81.7 %"
