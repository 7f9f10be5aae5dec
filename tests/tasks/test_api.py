"""Training from Python: arrays, sources and .npy files, float32 ones end to end."""

import importlib
import json
from pathlib import Path

import commands
import numpy as np
import pytest
import tiny_config

import simmim_jax
from simmim_jax.checkpoints import store
from simmim_jax.checkpoints.layout import read_record
from simmim_jax.config import schema
from simmim_jax.errors import UserError
from simmim_jax.monitoring.writer import read_metrics
from simmim_jax.tasks import api


def measured(count, seed=0):
    """Float32 fields [n 28 28 2] far from 0..255, of two kinds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    slope = np.linspace(-1, 1, 28)[:, None] * (1 - 2 * labels)[:, None, None]
    fields = 29_000 + 10 * slope[..., None] + rng.standard_normal((count, 28, 28, 2))
    return fields.astype(np.float32), labels


def config(mode):
    fields = tiny_config.get_config(mode)
    fields.data.dtype = "float32"
    fields.data.channels = 2
    fields.data.mean, fields.data.std = (29_000.0,) * 2, (6.0,) * 2
    fields.duration, fields.optim.warmup = "4 steps", "1 steps"
    if mode == "finetune":
        fields.data.num_labels = 0
    return fields


def test_float32_arrays_in_memory_pre_train_and_classify(tmp_path):
    images, labels = measured(80)
    trained = simmim_jax.pretrain(config("pretrain"), tmp_path / "pre", data=images)
    # In units of their standard deviation; were they divided by 255, it would be 30.
    assert 0.3 < trained.last["eval_loss"] < 2
    assert (tmp_path / "pre/reconstructions/0000004.png").exists()
    fields = config("finetune")
    fields.init_from = str(tmp_path / "pre")
    fields.duration, fields.optim.lr, fields.pictures = "60 steps", 0.1, 4
    trained = simmim_jax.finetune(
        fields, tmp_path / "fine", data=(images, labels), held_out=measured(40, seed=1)
    )
    assert trained.last["top1"] == 1
    assert (tmp_path / "fine/augmented.png").exists()
    classifier = simmim_jax.load(tmp_path / "fine")
    (first, second) = classifier.predict(list(measured(2, seed=2)[0]))
    assert first["0"] > 0.5 > first["1"]
    assert second["1"] > 0.5 > second["0"]


@pytest.mark.parametrize(
    "kind", ["folder", pytest.param("file", marks=pytest.mark.slow)]
)
def test_npy_files_give_what_arrays_in_memory_give(kind, tmp_path):
    images, _ = measured(60)
    if kind == "file":
        np.save(tmp_path / "images.npy", images)
        dataset = tmp_path / "images.npy"
    else:
        dataset = tmp_path / "images"
        for split, part in (("train", images[:50]), ("val", images[50:])):
            (dataset / split).mkdir(parents=True)
            for i, image in enumerate(part):
                np.save(dataset / split / f"{i:03}.npy", image)
    fields = config("pretrain")
    fields.data.dataset = str(dataset)
    fields.pictures = 0
    from_files = simmim_jax.pretrain(fields, tmp_path / "files")
    assert 0.3 < from_files.last["eval_loss"] < 2
    if kind == "folder":
        from_memory = simmim_jax.pretrain(
            fields, tmp_path / "memory", data=images[:50], held_out=images[50:]
        )
        assert from_memory.last == from_files.last
        losses = [
            [
                line.get("loss")
                for line in read_metrics(tmp_path / run / "metrics.jsonl")
            ]
            for run in ("files", "memory")
        ]
        assert losses[0] == losses[1]


def test_float32_values_in_a_run_of_uint8_are_refused(tmp_path):
    images, _ = measured(40)
    fields = config("pretrain")
    fields.data.dtype = "uint8"
    with pytest.raises(UserError, match=r"other values.*config\.data\.dtype has to"):
        simmim_jax.pretrain(fields, tmp_path, data=images)


@pytest.mark.slow
def test_any_random_access_source_will_do(tmp_path):
    class Slices:
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return {"image": np.full((28, 28, 1), index, np.uint8), "label": index % 3}

    fields = tiny_config.get_config("pretrain")
    fields.duration, fields.pictures = "2 steps", 0
    trained = simmim_jax.pretrain(fields, tmp_path, data=Slices())
    assert trained.step == 2
    # A hash of the position holds about one in 20 out, and at least one.
    position = json.loads((tmp_path / "checkpoints/2/data/metadata").read_text())
    assert position["num_examples"] == 39


@pytest.mark.parametrize("part", ["data", "held_out"])
def test_empty_data_raises(part, tmp_path):
    parts = {name: np.zeros((4, 28, 28, 1), np.uint8) for name in ("data", "held_out")}
    parts[part] = parts[part][:0]
    with pytest.raises(UserError, match="data is empty: expected at least one"):
        simmim_jax.pretrain(tiny_config.get_config("pretrain"), tmp_path, **parts)


def test_a_config_of_another_mode_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"config\.mode='finetune': expected the config"
    ):
        simmim_jax.pretrain(tiny_config.get_config("finetune"), tmp_path)


@pytest.mark.parametrize("function", ["pretrain", "finetune", "compare"])
def test_the_name_of_a_config_is_refused_with_what_to_pass(function, tmp_path):
    with pytest.raises(UserError) as error:
        getattr(simmim_jax, function)("small:smoke", tmp_path)
    assert str(error.value) == (
        "config='small:smoke': expected a config, not its name, such as "
        f"simmim_jax.configs.small.get_config('{function}')."
    )


def test_without_a_config_an_encoder_by_name_is_trained_by_the_official_recipe(
    tmp_path,
):
    recipe = api._pretraining("swin_tiny", "/data/photos", "50 epochs", "")
    assert recipe.model.depths == (2, 2, 6, 2)
    assert recipe.data.image_size == (192, 192)
    assert recipe.data.batch_size == 64
    assert (recipe.duration, recipe.optim.warmup) == ("50 epochs", "5 epochs")
    assert (recipe.optim.decay, recipe.optim.milestones) == ("cosine", ())
    assert api._pretraining("", "x", "", "").model.embed_dim == 128
    parsed = api._parse(recipe, schema.Pretrain, "/data/photos", "3 epochs", "runs/a")
    assert parsed.data.dataset == "/data/photos"
    assert (parsed.duration, parsed.init_from) == ("3 epochs", "runs/a")


@pytest.mark.parametrize(
    ("config", "family", "rate", "layer_decay"),
    [
        # Learning rates at batch 64, and decays, of the official configs: 1.25e-3 of
        # 512 images, 0.65 for ViTs and 0.8 for Swins.
        ("vit_base", "vit", 1.25e-3 / 8, 0.65),
        ("swin_base", "swin", 1.25e-3 / 8, 0.8),
        ("swin_v2_base", "swin_v2", None, None),
    ],
)
def test_without_a_config_a_learned_encoder_gets_its_familys_recipe(
    config, family, rate, layer_decay, tmp_path
):
    recorded = importlib.import_module(f"simmim_jax.configs.{config}").get_config()
    recorded.data.image_size = (128, 128)
    recorded.data.mean, recorded.data.std = (0.4,) * 3, (0.2,) * 3
    recorded.mask.ratio = 0.7
    learned = tmp_path / "learned"
    store.write(
        learned, {"encoder": np.zeros(1)}, {"config": recorded.to_dict(), "step": 1}
    )
    more = api._pretraining("", "/data/photos", "", learned)
    finetune = api._finetuning("/data/photos", "", learned)
    for recipe, kind in ((more, schema.Pretrain), (finetune, schema.Finetune)):
        assert recipe.model.name == family
        assert recipe.data.image_size == (128, 128)
        assert recipe.data.mean == (0.4,) * 3
        assert recipe.model.get("window_size") == recorded.model.get("window_size")
        assert isinstance(schema.parse(recipe), kind)
    assert more.mask.ratio == 0.7
    if rate:
        batch = finetune.data.batch_size
        assert finetune.optim.lr * batch / 512 == pytest.approx(rate)
        assert finetune.optim.layer_decay == layer_decay
        assert finetune.augment.num_ops == 2


def test_arrays_of_paths_are_no_held_out_images():
    with pytest.raises(UserError, match=r"held_out='/x': expected arrays.*eval_split"):
        api._sources(np.zeros((2, 8, 8, 3), np.uint8), "/x")


@pytest.mark.slow
def test_a_folder_is_pre_trained_on_and_fine_tuned_without_a_config(tmp_path):
    rng = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / f"images/{label}").mkdir(parents=True)
        for i in range(30):
            image = rng.integers(0, 256, (24, 24, 3), np.uint8)
            np.save(tmp_path / f"images/{label}/{i}.npy", image)
    given = {"data": tmp_path / "images", "duration": "1 steps"}
    fields = tiny_config.get_config("pretrain")
    fields.data.channels, fields.data.mean, fields.data.std = 3, (), ()
    fields.pictures = 0
    trained = simmim_jax.pretrain(fields, tmp_path / "pretrain", **given)
    assert trained.step == 1
    trained = simmim_jax.finetune(
        out=tmp_path / "finetune", init_from=tmp_path / "pretrain", **given
    )
    used = read_record(tmp_path / "finetune")["config"]
    learned = read_record(tmp_path / "pretrain")["config"]
    assert used["data"]["image_size"] == learned["data"]["image_size"] == [28, 28]
    assert used["model"]["depth"] == learned["model"]["depth"]
    assert used["data"]["dataset"] == str(tmp_path / "images")
    assert used["optim"]["warmup"] == "1 steps"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "expected a config, or data, such as data='/data/photos'."),
        ({"data": "x"}, "out='': expected the folder of the run, such as 'runs/mine'."),
        (
            {"data": "x", "out": "y", "model": "vit_smal"},
            r"""model='vit_smal': expected one of swin_base, .*"vit_small"\?$""",
        ),
        (
            {"data": "x", "out": "y", "duration": 3},
            "invalid duration 3: expected a number and a unit, such as '10 epochs'",
        ),
        (
            {"config": config("pretrain"), "out": "y", "data": [Path("a.png")]},
            "data is a list of paths: expected one folder",
        ),
        (
            {"config": config("pretrain"), "out": "y", "model": "vit_small"},
            "model='vit_small': it is in place of a config, set config.model",
        ),
    ],
)
def test_what_is_missing_or_contradicts_is_said(given, says):
    with pytest.raises(UserError, match=says):
        simmim_jax.pretrain(**given)


def test_finetuning_without_a_config_needs_an_encoder():
    with pytest.raises(UserError, match="expected a config, or data and init_from"):
        simmim_jax.finetune(data="x", out="y")


@pytest.mark.slow
def test_a_killed_run_on_arrays_of_npy_files_resumes(tmp_path):
    images, _ = measured(40)
    np.save(tmp_path / "images.npy", images)
    overrides = (
        f"data.dataset={tmp_path / 'images.npy'}",
        "data.dtype=float32",
        "data.channels=2",
        "data.mean=(29000.0,29000.0)",
        "data.std=(6.0,6.0)",
        "pictures=0",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    commands.run(*commands.tiny("pretrain", whole, *overrides))
    process = commands.start(*commands.tiny("pretrain", broken, *overrides))
    commands.kill(process, (broken / "checkpoints" / "4").exists)
    commands.run(*commands.tiny("pretrain", broken, *overrides))
    commands.assert_same(commands.params(whole, 12), commands.params(broken, 12))
