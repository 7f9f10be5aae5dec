"""Every config loads, and its runs fit together."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.checkpoints.record import config_changes
from simmim_jax.checkpoints.transfer import transfer
from simmim_jax.cli.train import check
from simmim_jax.config import schema
from simmim_jax.configs import ablations, common, models, swin_base_100ep
from simmim_jax.data.sources.registry import check_source
from simmim_jax.models import build_classifier, build_simmim
from simmim_jax.tasks.pretrain import Parts
from simmim_jax.tasks.pretrained import patch_grid, window_notice
from simmim_jax.tasks.values import assume

CONFIGS = Path(__file__).parents[1] / "configs"
PARTS = {"__init__", "common", "models"}
RUNS = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in PARTS)


def load(name: str, arg: str = ""):
    return importlib.import_module(f"simmim_jax.configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", RUNS)
def test_smoke_config_runs_on_bundled_data(name):
    config = load(name, "smoke")
    if name == "fashion_mnist":  # made for its own data
        for run in (config.pretrain, config.finetune):
            run.data.dataset = "bundled:fashion_mnist_10k"
            run.data.eval_split = "validation"
    check(config)


@pytest.mark.parametrize(
    ("name", "arg", "images"),
    [
        ("quickstart", "", 8000),
        ("small", "compare", 4610),
        ("climate", "", 4610),
        ("fashion_mnist", "", 60_000),
    ],
)
def test_no_evaluation_comes_just_before_the_last_one(name, arg, images):
    comparison = schema.parse(load(name, arg))
    for run in (comparison.pretrain, comparison.finetune):
        lengths = (schema.num_steps(run, x, images) for x in ("duration", "eval_every"))
        total, interval = lengths
        left = total % interval
        assert left == 0 or left > interval / 2, (run.mode, total, interval)


TABLE = "relative_position_bias_table"


@pytest.mark.parametrize(
    ("pretraining", "finetuning", "interpolated"),
    [
        ("vit_base", "vit_base_finetune", []),
        ("vit_base", "vit_base_linear", []),
        ("swin_base_100ep", "swin_base_100ep_finetune192", []),
        (
            "swin_base_100ep",
            "swin_base_100ep_finetune224",
            [f"24 {TABLE} from 11x11 to 13x13"],
        ),
        (
            "swin_large",
            "swin_large_finetune",
            # The last stage's window is as large as its grid, 6x6 and 7x7.
            [f"22 {TABLE} from 23x23 to 27x27", f"2 {TABLE} from 11x11 to 13x13"],
        ),
        ("swin_v2_base", "swin_v2_base_finetune", []),
    ],
)
def test_pre_trained_encoder_fits_the_fine_tuning_config(
    pretraining, finetuning, interpolated
):
    old, new = load(pretraining), load(finetuning)
    images = jnp.zeros((1, *old.data.image_size, 3))
    mask = jnp.zeros((1, *patch_grid(old)), bool)
    simmim = build_simmim(dtype="float32", **old.model)
    classifier = build_classifier(num_classes=10, dtype="float32", **new.model)
    merged, report = transfer(
        zeros(simmim, images, mask),
        zeros(classifier, jnp.zeros((1, *new.data.image_size, 3))),
        source_grid=patch_grid(old),
        target_grid=patch_grid(new),
        first_blocks=new.init_first_blocks,
    )
    lines = report.splitlines()
    assert lines[1:-2] == [f"interpolated: {what}" for what in interpolated]
    norm = "fc_norm/bias, fc_norm/scale, " if new.model.pool_norm else ""
    assert lines[-2] == f"new: {norm}head/bias, head/kernel"
    assert window_notice(old, new) == ""
    if finetuning == "vit_base_linear":
        blocks = [name for name in merged["encoder"] if name.startswith("blocks_")]
        assert len(blocks) == 8


def zeros(model, *args):
    """Return parameters that take no memory."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)["params"]
    return jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)


@pytest.mark.parametrize("name", RUNS)
def test_unknown_argument_raises(name):
    with pytest.raises(ValueError, match="expected 'smoke' or nothing"):
        load(name, "smok")


@pytest.mark.parametrize("name", RUNS)
def test_docstring_has_the_command(name):
    text = (CONFIGS / f"{name}.py").read_text()
    assert re.search(rf"simmim train --config={name}[\s:]", text)


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_fields_are_locked(mode):
    config = getattr(common, mode)()
    with pytest.raises(AttributeError):
        config.lock().optim.learning_rate = 1.0


def test_bundled_sets_exist():
    for dataset in ("bundled:climate", "bundled:fashion_mnist_10k"):
        check_source(dataset, "train")


# ---- Sizes ---------------------------------------------------------------------------


# Millions of parameters of the encoders.
PUBLISHED = {
    # With its head of 1000 classes (README of Swin-Transformer).
    "swin_v2_tiny": 28,
    # Swin V2 of the data-scaling study (MODELHUB of Swin-Transformer).
    "swin_v2_small": 49,
    "swin_v2_base": 87,
    "swin_v2_large": 195,
    "swin_v2_huge": 655,
    # From the papers: Swin with its head of 1000 classes; ViT without tables.
    "swin_tiny": 28,
    "swin_small": 49,
    "swin_base": 87,
    "swin_large": 195,
    "vit_small": 21,
    "vit_base": 86,
    "vit_large": 304,
    "vit_huge": 631,
}


@pytest.mark.parametrize("name", models.VARIANTS)
def test_every_size_is_the_published_one_and_can_be_pre_trained(name):
    config = load("sizes", name)
    assert config.model.embed_dim == models.VARIANTS[name]["embed_dim"]
    mask = jnp.zeros((1, *patch_grid(config)), bool)
    images = jnp.zeros((1, *config.data.image_size, 3))
    model = build_simmim(dtype="float32", **config.model)
    prediction, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images, mask
    )
    assert prediction.shape == images.shape
    parameters = jax.tree.leaves(variables["params"]["encoder"])
    count = sum(p.size for p in parameters) / 1e6
    assert count == pytest.approx(PUBLISHED[name], abs=1)
    check(load("sizes", f"{name},smoke"))


@pytest.mark.parametrize(
    "name", ["vit_base", "swin_base", "swin_large", "swin_v2_base"]
)
def test_sizes_equal_the_released_configs(name):
    assert load("sizes", name).to_dict() == load(name).to_dict()


def test_unknown_size_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"one of vit_small, .*swin_v2_huge;"):
        load("sizes", "vit_giant")


# ---- Ablations -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_ablation_changes_only_what_it_says(name):
    setting = swin_base_100ep.get_config().to_dict()
    changed = load("ablations", name).to_dict()
    fields = ablations.ABLATIONS[name]
    assert set(config_changes(setting, changed)) <= set(fields)
    assert (changed == setting) == (name == "random_32_0.6")


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_ablation_masks_and_predicts_what_it_says(name):
    parts = Parts(assume(schema.parse(load("ablations", f"{name},smoke"))))
    prepare, objective = parts.prepare(flip=False), parts.objective
    images = np.zeros((2, 192, 192, 3), np.uint8)
    batch = jax.eval_shape(prepare, {"image": images}, jax.random.key(0))
    assert batch["mask"].shape == (2, 48, 48)
    if "mask.kind" in ablations.ABLATIONS[name]:
        return  # the same model as the setting
    prediction, _ = jax.eval_shape(
        parts.model.init_with_output,
        jax.random.key(0),
        batch["image"],
        batch["mask"],
    )
    target = jax.eval_shape(objective.of, batch["image"])
    bins = (objective.bins,) if objective.loss == "bins" else ()
    assert prediction.shape == target.shape + bins
    kind, _, size = name.partition("_")
    if kind == "resolution":
        assert target.shape == (2, int(size), int(size), 3)


@pytest.mark.parametrize("arg", ["l3", "l2,smok", "l2,smoke,l2", ",l2"])
def test_unknown_ablation_lists_the_known_ones(arg):
    with pytest.raises(ValueError, match=r"random_4_0\.2, .*smooth_l1.*',"):
        load("ablations", arg)


def test_ablations_without_a_name_are_the_setting():
    setting = swin_base_100ep.get_config().to_dict()
    assert load("ablations").to_dict() == setting
    smoke = load("ablations", "smoke").to_dict()
    assert smoke == load("ablations", "random_32_0.6,smoke").to_dict()
    assert smoke != setting
