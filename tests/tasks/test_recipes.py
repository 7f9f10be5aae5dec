"""Every published recipe against the tables of the official configs."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.config import schema
from simmim_jax.configs import models
from simmim_jax.models import build_classifier, build_simmim
from simmim_jax.tasks.optimizer import optimizer
from simmim_jax.training import optim

IMAGENET = 1_281_167

# image, window, epochs, warm-up, lr, warm-up lr, schedule, floor, drop path, target
PRETRAIN = {
    "swin_base_100ep": (192, 6, 100, 10, 2e-4, 1e-6, "cosine", 1e-5, 0.0, "pixels"),
    "swin_base": (192, 6, 800, 10, 1e-4, 5e-7, "multistep", None, 0.0, "pixels"),
    "swin_large": (192, 12, 800, 10, 1e-4, 5e-7, "multistep", None, 0.0, "pixels"),
    "vit_base": (224, None, 800, 10, 1e-4, 5e-7, "multistep", None, 0.1, "pixels"),
    "swin_v2_base": (
        *(192, 12, 800, 10, 1e-4, 5e-7, "multistep", None, 0.1, "normalized"),
    ),
}
# image, window, drop path, layer decay
FINETUNE = {
    "swin_base_100ep_finetune192": (192, 6, 0.1, 0.9),
    "swin_base_100ep_finetune224": (224, 7, 0.1, 0.9),
    "swin_base_finetune": (224, 7, 0.1, 0.8),
    "swin_large_finetune": (224, 14, 0.2, 0.7),
    "vit_base_finetune": (224, None, 0.1, 0.65),
    "swin_v2_base_finetune": (224, 14, 0.1, 0.75),
}
# RandAugment is rand-m9-mstd0.5-inc1, which draws two operations.
AUGMENT = {
    "num_ops": 2,
    "magnitude": 9.0,
    "magnitude_std": 0.5,
    "erase_prob": 0.25,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "mix_prob": 1.0,
    "mix_switch_prob": 0.5,
    "mix_group": 128,  # the official batch of a GPU
}
# Parameters: pre-training, fine-tuning.
SIZES = {
    "swin_base_100ep": 89_874_104,
    "swin_base": 89_874_104,
    "swin_large": 199_881_204,
    "vit_base": 86_256_720,
    "swin_v2_base": 90_042_744,
    "swin_base_100ep_finetune192": 87_750_176,
    "swin_base_100ep_finetune224": 87_768_224,
    "swin_base_finetune": 87_768_224,
    "swin_large_finetune": 196_794_556,
    "vit_base_finetune": 86_530_984,
    "swin_v2_base_finetune": 87_918_816,
}


def load(name):
    return importlib.import_module(f"simmim_jax.configs.{name}").get_config()


@functools.cache  # tracing takes seconds
def build(name):
    """Return the model of a config and the shapes of its parameters."""
    config = load(name)
    images = jnp.zeros((1, *config.data.image_size, 3))
    fields = {"dtype": "float32", **config.model}
    if config.mode == "pretrain":
        model = build_simmim(**fields)
        sides = np.divide(config.data.image_size, config.model.patch_size).astype(int)
        inputs = images, jnp.zeros((1, *sides), bool)
    else:
        model = build_classifier(num_classes=1000, **fields)
        inputs = (images,)
    return model, jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def rates(config):
    """Return the learning rate as a function of the number of updates."""
    params = {"encoder": {"kernel": jnp.zeros((1, 1))}}
    schedule, _ = optimizer(schema.parse(config), IMAGENET)(params)
    return schedule


@pytest.mark.parametrize("name", PRETRAIN)
def test_pre_training_recipe_is_the_official_one(name):
    config = load(name)
    image, window, epochs, warmup, lr, warmup_lr, decay, floor, drop_path, target = (
        PRETRAIN[name]
    )
    assert config.mode == "pretrain"
    assert config.data.image_size == (image, image)
    assert config.model.get("window_size") == window
    assert config.duration == f"{epochs} epochs"
    assert config.optim.warmup == f"{warmup} epochs"
    assert (config.optim.lr, config.optim.warmup_lr) == (lr, warmup_lr)
    assert config.optim.decay == decay
    if decay == "cosine":
        assert config.optim.min_lr == floor
    else:
        assert config.optim.milestones == ("700 epochs",)
    assert config.model.drop_path_rate == drop_path
    assert config.target.kind == target
    assert config.target.window == 47
    assert (config.mask.kind, config.mask.ratio) == ("random", 0.6)
    assert config.mask.unit_size == (32, 32)
    assert config.data.crop_scale == (0.67, 1.0)
    assert config.data.interpolation == "bilinear"
    check_shared(config)


@pytest.mark.parametrize("name", FINETUNE)
def test_fine_tuning_recipe_is_the_official_one(name):
    config = load(name)
    image, window, drop_path, layer_decay = FINETUNE[name]
    assert config.mode == "finetune"
    assert config.data.image_size == (image, image)
    assert config.model.get("window_size") == window
    assert config.model.drop_path_rate == drop_path
    assert config.optim.layer_decay == layer_decay
    assert (config.duration, config.optim.warmup) == ("100 epochs", "20 epochs")
    assert config.optim.decay == "cosine"
    assert config.optim.lr == 1.25e-3
    assert config.optim.warmup_lr == config.optim.min_lr == 2.5e-7
    assert config.label_smoothing == 0.1
    assert config.data.crop_scale == (0.08, 1.0)
    assert config.data.interpolation == "bicubic"
    assert config.data.eval_crop == 224 / 256
    assert config.augment.to_dict() == AUGMENT
    check_shared(config)
    if "v2" in name:
        assert config.model.pretrained_window_sizes == (12, 12, 12, 6)


def check_shared(config):
    assert config.data.batch_size == 2048
    assert config.data.crop_ratio == (3 / 4, 4 / 3)
    assert config.data.flip
    assert config.data.dtype == "auto"  # uint8, and ImageNet's mean and std
    assert config.data.mean == config.data.std == ()
    assert (config.optim.b1, config.optim.b2, config.optim.eps) == (0.9, 0.999, 1e-8)
    assert config.optim.weight_decay == 0.05
    assert config.optim.clip_norm == 5.0
    assert config.optim.decay_groups == "official"
    assert config.ema_decay == 0


@pytest.mark.parametrize("name", SIZES)
def test_model_has_the_published_number_of_parameters(name):
    _, params = build(name)
    assert sum(p.size for p in jax.tree.leaves(params)) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swin_base", 86_725_304),
        ("swin_large", 195_159_540),
        ("vit_base", 85_666_128),
    ],
)
def test_encoder_has_the_published_number_of_parameters(name, expected):
    _, params = build(name)
    assert sum(p.size for p in jax.tree.leaves(params["encoder"])) == expected


# ---- Rates at iteration i of the official scheduler, used by update i + 1 ------------


@pytest.mark.parametrize(
    ("name", "iteration", "rate"),
    [
        ("swin_base_100ep", 0, 4e-6),
        ("swin_base_100ep", 1, 4.12736e-6),
        ("swin_base_100ep", 625, 8.36e-5),
        ("swin_base_100ep", 6249, 7.99872640e-4),
        ("swin_base_100ep", 6250, 7.814014762e-4),
        ("swin_base_100ep", 31250, 4.2e-4),
        ("swin_base_100ep", 62499, 4.000000048e-5),
        *[
            (name, iteration, rate)
            for name in ("swin_base", "swin_large", "vit_base", "swin_v2_base")
            for iteration, rate in (
                (0, 2e-6),
                (1, 2.06368e-6),
                (625, 4.18e-5),
                (6249, 3.9993632e-4),
                (6250, 4e-4),
                (437499, 4e-4),
                (437500, 4e-5),
                (499999, 4e-5),
            )
        ],
        *[
            (name, iteration, rate)
            for name in FINETUNE
            if "v2" not in name
            for iteration, rate in (
                (625, 2.5095e-4),
                (12499, 4.99960e-3),
                (12500, 4.52263798e-3),
                (31250, 2.5005e-3),
                (61875, 2.23335e-6),
            )
        ],
        # The Swin-Transformer repository counts its cosine from the end of the warm-up.
        ("swin_v2_base_finetune", 12500, 5e-3),
        ("swin_v2_base_finetune", 37500, 2.5005e-3),
    ],
)
def test_learning_rate_is_the_official_one(name, iteration, rate):
    schedule = rates(load(name))
    np.testing.assert_allclose(schedule(iteration + 1), rate, rtol=5e-5)


@pytest.mark.parametrize(
    ("name", "lowest"),
    [("vit_base_finetune", 3.697206e-3), ("swin_base_finetune", 3.777893e-3)],
)
def test_layer_decay_of_the_embedding_is_the_official_one(name, lowest):
    config = load(name)
    model, params = build(name)
    scales = optim.layer_scales(params, model.layer_id, config.optim.layer_decay)
    kernel = scales["encoder"]["patch_embed"]["kernel"]
    np.testing.assert_allclose(kernel, lowest, rtol=1e-6)
    assert scales["head"]["kernel"] == 1
    assert kernel == min(jax.tree.leaves(scales))


@pytest.mark.parametrize(
    ("name", "groups"), [("vit_base_finetune", 28), ("swin_base_finetune", 52)]
)
def test_number_of_parameter_groups_is_the_official_one(name, groups):
    """Groups are (layer, decayed): the ViT has 14 layers, Swin 26."""
    config = load(name)
    model, params = build(name)
    ids = jax.tree_util.tree_map_with_path(
        lambda path, _: model.layer_id(optim.path_names(path)), params
    )
    mask = optim.decay_mask(params, config.optim.decay_groups)
    pairs = set(zip(jax.tree.leaves(ids), jax.tree.leaves(mask), strict=True))
    assert len(pairs) == groups


@pytest.mark.parametrize(
    ("name", "decayed", "spared"), [("vit_base", 52, 137), ("swin_base", 125, 205)]
)
def test_weight_decay_groups_are_the_official_ones(name, decayed, spared):
    _, params = build(name)
    leaves = jax.tree.leaves(optim.decay_mask(params, "official"))
    assert (sum(leaves), len(leaves) - sum(leaves)) == (decayed, spared)


# ---- Models --------------------------------------------------------------------------


def test_unknown_variant_raises():
    with pytest.raises(
        ValueError, match=r"model 'swin_giant': expected one of \['swin_"
    ):
        models.pretraining("swin_giant")
