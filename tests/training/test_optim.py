"""Schedules, parameter groups and AdamW against numbers of the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simmim_jax.configs import common
from simmim_jax.models import build_classifier, build_simmim
from simmim_jax.models.classifier import Classifier
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.swin import Swin
from simmim_jax.models.swin_v2 import SwinV2
from simmim_jax.training import optim

STEPS_PER_EPOCH = 625  # ImageNet at batch 2048
COSINE = {
    "decay": "cosine",
    "peak": 8e-4,
    "warmup_lr": 4e-6,
    "min_lr": 4e-5,
    "total_steps": 100 * STEPS_PER_EPOCH,
    "warmup_steps": 10 * STEPS_PER_EPOCH,
}
MULTISTEP = {
    "decay": "multistep",
    "peak": 4e-4,
    "warmup_lr": 2e-6,
    "min_lr": 0.0,
    "total_steps": 800 * STEPS_PER_EPOCH,
    "warmup_steps": 10 * STEPS_PER_EPOCH,
    "milestones": [700 * STEPS_PER_EPOCH],
}
FINETUNE = {
    "decay": "cosine",
    "peak": 5e-3,
    "warmup_lr": 1e-6,
    "min_lr": 1e-6,
    "total_steps": 100 * STEPS_PER_EPOCH,
    "warmup_steps": 20 * STEPS_PER_EPOCH,
}
LAYER_0 = 0.65**13


# ---- Schedules -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "iteration", "rate"),
    [
        (COSINE, 0, 4e-6),
        (COSINE, 1, 4.12736e-6),
        (COSINE, 625, 8.36e-5),
        (COSINE, 6249, 7.99872640e-4),
        (COSINE, 6250, 7.814014762e-4),  # jumps down: the cosine counts from step 0
        (COSINE, 31250, 4.2e-4),
        (COSINE, 62499, 4.000000048e-5),
        (MULTISTEP, 0, 2e-6),
        (MULTISTEP, 1, 2.06368e-6),
        (MULTISTEP, 625, 4.18e-5),
        (MULTISTEP, 6249, 3.9993632e-4),
        (MULTISTEP, 6250, 4e-4),
        (MULTISTEP, 437499, 4e-4),
        (MULTISTEP, 437500, 4e-5),
        (MULTISTEP, 499999, 4e-5),
        (FINETUNE, 0, 1e-6),
        (FINETUNE, 625, 2.5095e-4),
        (FINETUNE, 12499, 4.99960e-3),
        (FINETUNE, 12500, 4.52263798e-3),
        (FINETUNE, 31250, 2.5005e-3),
        (FINETUNE, 61875, 2.23335e-6),
    ],
)
def test_official_schedule_has_the_official_rates(recipe, iteration, rate):
    schedule = optim.learning_rate(**recipe, schedule="official")
    # The official scheduler sets lr(iteration) after that update.
    np.testing.assert_allclose(schedule(iteration + 1), rate, rtol=1e-5, atol=5e-10)


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (0, 1e-6),
        (625, 1.87430e-6),
        (12499, 1.84846e-5),
        (12500, 1.68162622e-5),
        (31250, 9.74301e-6),
        (61875, 1.00431e-6),
    ],
)
def test_layer_decay_scales_the_peak_but_not_the_floors(iteration, rate):
    schedule = optim.learning_rate(**FINETUNE, schedule="official")
    np.testing.assert_allclose(schedule(iteration + 1, LAYER_0), rate, rtol=1e-5)


def test_official_schedule_is_one_update_late():
    schedule = optim.learning_rate(**COSINE, schedule="official")
    first = [float(schedule(step)) for step in range(3)]
    np.testing.assert_allclose(first, [4e-6, 4e-6, 4.12736e-6], rtol=1e-6)


def test_plain_schedule_is_on_time_without_a_jump_and_ends_at_its_floor():
    schedule = optim.learning_rate(**COSINE, schedule="plain")
    np.testing.assert_allclose(schedule(0), 4e-6, rtol=1e-6)
    np.testing.assert_allclose(schedule(1), 4.12736e-6, rtol=1e-6)
    np.testing.assert_allclose(schedule(6249), 7.9987264e-4, rtol=1e-6)
    np.testing.assert_allclose(schedule(6250), 8e-4, rtol=1e-6)
    np.testing.assert_allclose(schedule((62500 + 6250) // 2), 4.2e-4, rtol=1e-5)
    np.testing.assert_allclose(schedule(62500), 4e-5, rtol=1e-6)
    rates = np.asarray(schedule(jnp.arange(62500)))
    assert np.abs(np.diff(rates)).max() < 1.3e-7  # the slope of the warm-up
    assert (np.diff(rates[6250:]) <= 0).all()


def test_multistep_divides_by_ten_at_every_milestone():
    recipe = MULTISTEP | {"milestones": [7000, 8000], "warmup_steps": 0}
    schedule = optim.learning_rate(**recipe, schedule="plain")
    rates = [float(schedule(step)) for step in (0, 6999, 7000, 7999, 8000)]
    np.testing.assert_allclose(rates, [4e-4, 4e-4, 4e-5, 4e-5, 4e-6], rtol=1e-5)


def test_constant_schedule_stays_at_the_peak_after_the_warm_up():
    recipe = COSINE | {"decay": "constant"}
    schedule = optim.learning_rate(**recipe, schedule="plain")
    rates = [float(schedule(step)) for step in (0, 3125, 6250, 62500)]
    np.testing.assert_allclose(rates, [4e-6, 4.02e-4, 8e-4, 8e-4], rtol=1e-6)


def test_schedule_is_the_same_under_jit():
    schedule = optim.learning_rate(**COSINE, schedule="official")
    for step in (0, 6250, 6251, 60000):
        traced = jax.jit(schedule)(jnp.int32(step), 0.5)
        np.testing.assert_allclose(traced, schedule(step, 0.5), rtol=1e-6)


def test_unknown_decay_raises():
    schedule = optim.learning_rate(**COSINE | {"decay": "step"}, schedule="official")
    with pytest.raises(ValueError, match=r"config\.optim\.decay='step'.*'cosine'"):
        schedule(0)


def test_schedule_moves_to_another_step_and_moments_stay():
    params = {"w": jnp.ones((2, 2))}
    tx = optim.adamw(
        optim.learning_rate(**COSINE, schedule="plain"),
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=0.0,
        mask={"w": True},
        scales={"w": 1.0},
    )
    gradients = {"w": jnp.full((2, 2), 0.1)}
    _, state = tx.update(gradients, tx.init(params), params)
    moved = optim.at_step(state, 6250)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, state)
    assert moved[1] == state[1]  # Adam's own count and moments
    updates, moved = tx.update(gradients, moved, params)
    np.testing.assert_allclose(updates["w"], -8e-4, rtol=1e-4)
    assert (moved[1].count, moved[-1].count) == (2, 6251)


# ---- Parameter groups ----------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_base():
    """Parameter shapes of the official pre-training model."""
    model = build_simmim(dtype="float32", **common.pretrain().model)
    inputs = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 14, 14), bool)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


@pytest.fixture(scope="module")
def classifier():
    fields = common.finetune().model
    return build_classifier(num_classes=1000, dtype="float32", **fields)


@pytest.fixture(scope="module")
def vit_base_classifier(classifier):
    images = jnp.zeros((1, 224, 224, 3))
    return jax.eval_shape(classifier.init, jax.random.key(0), images)["params"]


def swin_params(model):
    images, mask = jnp.zeros((1, 192, 192, 3)), jnp.zeros((1, 48, 48), bool)
    inputs = (images, mask) if isinstance(model, SimMIM) else (images,)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def names(mask, value):
    """Return the paths of leaves that equal `value`."""
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    return {"/".join(optim.path_names(path)) for path, leaf in leaves if leaf == value}


def test_official_groups_decay_52_tensors_and_spare_137(vit_base):
    mask = optim.decay_mask(vit_base, "official")
    decayed, spared = names(mask, True), names(mask, False)
    assert (len(decayed), len(spared)) == (52, 137)
    blocks = {
        f"encoder/blocks_{i}/{name}"
        for i in range(12)
        for name in (
            "attn/qkv_kernel",
            "attn/proj/kernel",
            "mlp/fc1/kernel",
            "mlp/fc2/kernel",
        )
    }
    assert decayed == blocks | {
        "encoder/patch_embed/kernel",
        "encoder/mask_token",
        "encoder/rel_pos_bias/relative_position_bias_table",
        "decoder/kernel",
    }
    assert "encoder/cls_token" in spared
    assert "encoder/blocks_0/gamma_1" in spared
    assert "encoder/blocks_0/attn/q_bias" in spared


def test_intended_groups_spare_the_mask_token_and_the_shared_table_too(vit_base):
    official = names(optim.decay_mask(vit_base, "official"), True)
    intended = names(optim.decay_mask(vit_base, "intended"), True)
    assert official - intended == {
        "encoder/mask_token",
        "encoder/rel_pos_bias/relative_position_bias_table",
    }
    assert intended < official


def test_official_groups_decay_the_tables_of_a_classifier(vit_base_classifier):
    official = names(optim.decay_mask(vit_base_classifier, "official"), True)
    tables = {
        f"encoder/blocks_{i}/attn/relative_position_bias_table" for i in range(12)
    }
    assert tables < official
    assert len(official) == 12 * 5 + 2  # and the kernels of patch embedding and head
    intended = names(optim.decay_mask(vit_base_classifier, "intended"), True)
    assert official - intended == tables


def test_official_groups_decay_125_tensors_of_swin_base_and_spare_205():
    params = swin_params(SimMIM(Swin()))
    decayed = names(optim.decay_mask(params, "official"), True)
    assert (len(decayed), len(jax.tree.leaves(params)) - len(decayed)) == (125, 205)
    tables = {name for name in decayed if name.endswith("bias_table")}
    assert len(tables) == 24
    assert "encoder/mask_token" not in decayed
    assert decayed - names(optim.decay_mask(params, "intended"), True) == tables


def test_official_groups_decay_swin_v2_positions_only_in_pre_training():
    positions = ("logit_scale", "cpb_mlp_0/kernel", "cpb_mlp_2/kernel")
    pretrain, finetune = (
        names(optim.decay_mask(swin_params(model), "official"), True)
        for model in (SimMIM(SwinV2()), Classifier(SwinV2(), 10, pool_norm=False))
    )
    assert sum(name.endswith(positions) for name in pretrain) == 3 * 24
    assert not any(name.endswith(positions) for name in finetune)


def test_absolute_positions_are_spared_in_both_groupings():
    encoder = {"pos_embed": jnp.zeros((1, 5, 8)), "kernel": jnp.zeros((2, 2))}
    for groups in ("official", "intended"):
        mask = optim.decay_mask({"encoder": encoder}, groups)
        assert mask == {"encoder": {"pos_embed": False, "kernel": True}}


def test_unknown_groups_raise(vit_base):
    with pytest.raises(ValueError, match=r"decay_groups='none': expected 'official'"):
        optim.decay_mask(vit_base, "none")


def test_layer_scales_of_vit_base_are_the_official_ones(
    classifier, vit_base_classifier
):
    scales = optim.layer_scales(vit_base_classifier, classifier.layer_id, 0.65)
    encoder = scales["encoder"]
    np.testing.assert_allclose(encoder["cls_token"], 3.697206e-3, rtol=1e-6)
    assert encoder["patch_embed"]["kernel"] == encoder["cls_token"]
    for i in range(12):
        (value,) = set(jax.tree.leaves(encoder[f"blocks_{i}"]))
        np.testing.assert_allclose(value, 0.65 ** (12 - i))
    np.testing.assert_allclose(encoder["blocks_11"]["gamma_1"], 0.65)
    assert set(jax.tree.leaves([scales["head"], scales["fc_norm"]])) == {1.0}
    assert len(set(jax.tree.leaves(scales))) == 14


def test_layers_and_decay_make_28_groups(classifier, vit_base_classifier):
    scales = optim.layer_scales(vit_base_classifier, classifier.layer_id, 0.65)
    mask = optim.decay_mask(vit_base_classifier, "official")
    groups = set(zip(jax.tree.leaves(scales), jax.tree.leaves(mask), strict=True))
    assert len(groups) == 28


def test_layer_decay_of_1_scales_nothing(classifier, vit_base_classifier):
    scales = optim.layer_scales(vit_base_classifier, classifier.layer_id, 1.0)
    assert set(jax.tree.leaves(scales)) == {1.0}


# ---- AdamW ---------------------------------------------------------------------------

PARAMS = {"bias": jnp.linspace(-1, 1, 4), "kernel": jnp.linspace(-2, 2, 12)}
MASK = {"bias": False, "kernel": True}
ONES = {"bias": 1.0, "kernel": 1.0}
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.05}


def adamw(schedule, *, clip_norm=0.0, scales=ONES):
    return optim.adamw(schedule, clip_norm=clip_norm, mask=MASK, scales=scales, **ADAM)


def run(tx, scale_of_step=lambda step: 1.0, steps=5):
    """Return the parameters after updates with random gradients times a factor."""
    params, state = PARAMS, tx.init(PARAMS)
    keys = jax.random.split(jax.random.key(0), steps)
    for step in range(steps):
        grads = {
            name: scale_of_step(step) * jax.random.normal(keys[step], p.shape)
            for name, p in params.items()
        }
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(ours, theirs):
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=1e-7)


def rate(step, scale=1.0):
    return 1e-2 * scale * (1 + step)


def test_adamw_equals_optax_adamw_with_scales_of_1():
    assert_close(run(adamw(rate)), run(optax.adamw(rate, mask=MASK, **ADAM)))


def test_first_update_is_the_sign_of_the_gradient_with_decoupled_decay():
    params = run(adamw(rate), steps=1)
    (key,) = jax.random.split(jax.random.key(0), 1)
    # Adam's first direction is the sign of the gradient.
    for name, decay in (("bias", 0.0), ("kernel", 0.05)):
        sign = jnp.sign(jax.random.normal(key, PARAMS[name].shape))
        expected = PARAMS[name] - 1e-2 * (sign + decay * PARAMS[name])
        np.testing.assert_allclose(params[name], expected, rtol=1e-5, atol=1e-6)


def test_scales_change_the_rate_of_their_parameter_only():
    scales = {"bias": 0.5, "kernel": 1.0}
    ours = run(adamw(rate, scales=scales))
    whole = run(adamw(rate))
    half = run(adamw(lambda step, scale: rate(step, 0.5)))
    np.testing.assert_allclose(ours["bias"], half["bias"], rtol=1e-6)
    np.testing.assert_array_equal(ours["kernel"], whole["kernel"])


def test_scaled_parameters_start_at_the_unscaled_warm_up_floor():
    schedule = optim.learning_rate(**FINETUNE, schedule="official")
    scaled = run(adamw(schedule, scales={"bias": LAYER_0, "kernel": 1.0}), steps=1)
    unscaled = run(adamw(schedule), steps=1)
    np.testing.assert_array_equal(scaled["bias"], unscaled["bias"])
    assert (scaled["bias"] != PARAMS["bias"]).all()


def test_clipping_divides_gradients_by_their_global_norm():
    big = run(adamw(rate, clip_norm=0.5), lambda step: 10.0 * (step + 1))
    norms = []
    for key in jax.random.split(jax.random.key(0), 5):
        grads = [jax.random.normal(key, p.shape) for p in PARAMS.values()]
        norms.append(float(jnp.sqrt(sum((g**2).sum() for g in grads))))
    by_hand = run(adamw(rate), lambda step: 0.5 / norms[step])
    assert_close(big, by_hand)
    unclipped = run(adamw(rate), lambda step: 10.0 * (step + 1))
    assert (jnp.abs(unclipped["bias"] - big["bias"]) > 1e-4).any()


def test_gradients_below_the_clip_norm_are_unchanged():
    clipped = run(adamw(rate, clip_norm=1e3))
    assert_close(clipped, run(adamw(rate, clip_norm=0.0)))
