"""Training steps: accumulation, and randomness that depends on seed and step alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simmim_jax.augment import basic, randaugment
from simmim_jax.mim import losses, masking
from simmim_jax.mim.objective import Objective
from simmim_jax.models.classifier import Classifier
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.vit import ViT
from simmim_jax.training import steps
from simmim_jax.training.steps import TrainState, purpose, train_step

MODEL = SimMIM(ViT(patch_size=(4, 4), embed_dim=16, depth=1, num_heads=2))
DROPPING = SimMIM(
    ViT(patch_size=(4, 4), embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.5)
)
PREPARE = {
    "patch_size": (4, 4),
    "mask_unit": (8, 8),
    "mask_ratio": 0.5,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
}
CLIP = 0.03  # below the norm of the first gradients here
pretrain_prepare = functools.partial(steps.pretrain_prepare, **PREPARE)
CLASSIFIER = Classifier(MODEL.encoder, num_classes=3)
AUGMENTATION = {
    "num_ops": 2,
    "magnitude": 9.0,
    "magnitude_std": 0.5,
    "erase_prob": 0.5,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "mix_prob": 1.0,
    "mix_switch_prob": 0.5,
}
PLAIN = dict.fromkeys(AUGMENTATION, 0)
finetune_prepare = functools.partial(
    steps.finetune_prepare,
    num_classes=3,
    label_smoothing=0.1,
    mean=PREPARE["mean"],
    std=PREPARE["std"],
    **PLAIN,
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, 16, 16, 3), np.uint8),
        "label": np.arange(8, dtype=np.int32) % 3,
    }


def random_params(model, *inputs):
    like = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(0, 0.2, p.shape).astype(np.float32), like)


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL, jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 4, 4), bool))


def start(params, tx, step=0):
    return TrainState(jnp.int32(step), params, tx.init(params))


def compiled(loss, tx, *, prepare=None, seed=0, **options):
    return jax.jit(
        functools.partial(
            train_step,
            prepare=prepare or pretrain_prepare(flip=True),
            loss=loss,
            tx=tx,
            seed=seed,
            **options,
        )
    )


@pytest.fixture(scope="module")
def one_step():
    """An update without accumulation; clipped, so that clipping counts too."""
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(1.0))
    return tx, compiled(steps.pretrain_loss(MODEL), tx)


# ---- The update ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_accumulation_equals_the_large_batch(mode, batch, params):
    if mode == "pretrain":
        options = {"prepare": pretrain_prepare(flip=True)}
        loss = steps.pretrain_loss(MODEL)
    else:
        options = {"prepare": finetune_prepare(flip=True)}
        loss = steps.finetune_loss(CLASSIFIER)
        params = random_params(CLASSIFIER, jnp.zeros((1, 16, 16, 3)))
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(1.0, momentum=0.9))
    whole, split = (compiled(loss, tx, accumulation=n, **options) for n in (1, 4))
    state = other = start(params, tx)
    for _ in range(3):
        state, metrics = whole(state, batch)
        other, other_metrics = split(other, batch)
        assert metrics["grad_norm"] > CLIP  # else nothing would have been clipped
        for name in ("loss", "grad_norm", "param_norm"):
            np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-5)
    for path, p in jax.tree_util.tree_leaves_with_path(state.params):
        q = functools.reduce(lambda tree, key: tree[key.key], path, other.params)
        np.testing.assert_allclose(
            q, p, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path)
        )


def test_step_is_repeatable_and_moves_on(batch, params, one_step):
    tx, step = one_step
    first, metrics = step(start(params, tx), batch)
    again, same = step(start(params, tx), batch)
    assert first.step == 1
    assert metrics["loss"] == same["loss"]
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    moved = jax.tree.map(lambda p, q: bool((p != q).any()), first.params, params)
    assert all(jax.tree.leaves(moved))


def test_masks_change_from_step_to_step(batch, params, one_step):
    tx, step = one_step
    _, first = step(start(params, tx, step=0), batch)
    _, second = step(start(params, tx, step=1), batch)
    assert first["loss"] != second["loss"]


def test_loss_is_that_of_the_masks_and_flips_of_the_step(batch, params, one_step):
    tx, step = one_step
    _, metrics = step(start(params, tx, step=3), batch)
    key = jax.random.fold_in(jax.random.key(0), 3)
    inputs = pretrain_prepare(flip=True)(batch, key)
    images, mask = inputs["image"], inputs["mask"]
    prediction = jax.jit(MODEL.apply)({"params": params}, images, mask)
    pixels = masking.upsample(mask, 16, 16)
    expected, _ = losses.masked_l1(prediction, images, pixels)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_gradient_norm_is_reported_before_clipping(batch, params, one_step):
    tx, step = one_step
    state, metrics = step(start(params, tx), batch)
    change = jax.tree.map(jnp.subtract, params, state.params)
    np.testing.assert_allclose(optax.tree.norm(change), CLIP, rtol=1e-3)
    assert metrics["grad_norm"] > CLIP


def test_sample_i_goes_to_part_i_modulo_their_number():
    # Parts of neighbours would have to move between devices.
    def highest(params, inputs, key):
        value = params["w"] * inputs["x"].max()
        return value, {"loss": value}

    tx = optax.sgd(0.0)
    step = compiled(highest, tx, prepare=lambda batch, key: batch, accumulation=2)
    _, metrics = step(start({"w": jnp.float32(1)}, tx), {"x": jnp.arange(4.0)})
    assert metrics["loss"] == (2 + 3) / 2  # of samples 0 2 and 1 3


# ---- The moving average --------------------------------------------------------------


def test_average_follows_the_parameters_from_the_initial_ones_on(batch, params):
    tx = optax.sgd(0.1)
    step = compiled(steps.pretrain_loss(MODEL), tx, ema_decay=0.75)
    state = dataclasses.replace(start(params, tx), ema=params)
    expected = params
    for _ in range(3):
        state, _ = step(state, batch)
        expected = jax.tree.map(
            lambda e, p: 0.75 * e + 0.25 * p, expected, state.params
        )
    for average, e, p in zip(
        *map(jax.tree.leaves, (state.averaged, expected, state.params)), strict=True
    ):
        np.testing.assert_allclose(average, e, rtol=1e-5, atol=1e-6)
        assert (average != p).any()


def test_average_changes_nothing_of_what_is_learned(batch, params, one_step):
    tx, step = one_step
    plain, _ = step(start(params, tx), batch)
    averaging = compiled(steps.pretrain_loss(MODEL), tx, ema_decay=0.9)
    state, _ = averaging(dataclasses.replace(start(params, tx), ema=params), batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
    assert plain.ema is None
    assert plain.averaged == plain.params


# ---- A frozen encoder ----------------------------------------------------------------

DROPPING_CLASSIFIER = Classifier(DROPPING.encoder, num_classes=3)


@pytest.fixture(scope="module")
def frozen():
    """A step that trains the head alone, compiled, and its first state."""
    params = random_params(DROPPING_CLASSIFIER, jnp.zeros((1, 16, 16, 3)))
    # Neither zeros of either sign nor tiny numbers may change.
    params["encoder"]["cls_token"][0, 0, :2] = [-0.0, 1e-40]
    tx = optax.adam(1e-2)
    learned = steps.learning(params, ["encoder"])
    state = TrainState(jnp.int32(0), params, tx.init(learned), learned)
    return state, head_step(tx, frozen=["encoder"], ema_decay=0.9)


def head_step(tx, **options):
    loss = steps.finetune_loss(DROPPING_CLASSIFIER, drop_paths="frozen" not in options)
    return compiled(loss, tx, prepare=finetune_prepare(flip=True), **options)


def test_frozen_encoder_stays_bit_for_bit_while_the_head_learns(batch, frozen):
    state, step = frozen
    after = state
    for _ in range(5):
        after, metrics = step(after, batch)
    for tree in (after.params, after.averaged):
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(
                np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)
            ),
            tree["encoder"],
            state.params["encoder"],
        )
    for name in ("head", "fc_norm"):
        for before, now, average in zip(
            *(
                jax.tree.leaves(t[name])
                for t in (state.params, after.params, after.ema)
            ),
            strict=True,
        ):
            assert (before != now).all()
            assert (average != now).any()
    assert metrics["grad_norm"] > 0


def test_frozen_encoder_has_neither_moments_nor_an_average(batch, frozen):
    state, step = frozen
    after, _ = step(state, batch)
    head = sum(
        p.size for p in jax.tree.leaves(steps.learning(state.params, ["encoder"]))
    )
    for tree, copies in (
        (after.opt_state[0].mu, 1),
        (after.opt_state, 2),
        (after.ema, 1),
    ):
        assert sum(x.size for x in jax.tree.leaves(tree)) - copies * head in (0, 1)


def test_frozen_encoder_costs_no_backward_pass(batch, frozen):
    state, step = frozen
    tx = optax.adam(1e-2)

    def flops(step, state):
        return step.lower(state, batch).compile().cost_analysis()["flops"]

    whole = flops(head_step(tx), start(state.params, tx))
    assert flops(step, state) < 0.5 * whole


def test_frozen_encoder_drops_no_paths(batch, frozen):
    state, step = frozen
    inputs = finetune_prepare(flip=True)(
        batch, jax.random.fold_in(jax.random.key(0), 0)
    )
    _, metrics = step(state, batch)
    loss = steps.finetune_loss(
        Classifier(dataclasses.replace(DROPPING.encoder, drop_path_rate=0.0), 3)
    )
    expected, _ = loss(state.params, inputs, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_frozen_step_learns_the_head_as_the_whole_one_does(batch, frozen, parts):
    state, _ = frozen
    still = Classifier(dataclasses.replace(DROPPING.encoder, drop_path_rate=0.0), 3)
    tx = optax.sgd(0.1)
    options = {"prepare": finetune_prepare(flip=True), "accumulation": parts}
    loss = steps.finetune_loss(still)
    whole, _ = compiled(loss, tx, **options)(start(state.params, tx), batch)
    head, _ = compiled(loss, tx, frozen=["encoder"], **options)(
        start(state.params, tx), batch
    )
    for name in ("head", "fc_norm"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            head.params[name],
            whole.params[name],
        )


# ---- Randomness ----------------------------------------------------------------------


def draws(*, step=0, seed=0, accumulation=1, batch_size=4):
    """Random numbers that prepare and loss drew from their keys, and what loss saw."""

    def prepare(batch, key):
        return batch | {"draw": jnp.full(batch_size, jax.random.uniform(key))}

    def loss(params, inputs, key):
        value = params["w"] * jax.random.uniform(key)
        return value, {"prepare": inputs["draw"].mean(), "loss": value}

    tx = optax.sgd(0.0)
    fn = compiled(loss, tx, prepare=prepare, seed=seed, accumulation=accumulation)
    state = start({"w": jnp.float32(1)}, tx, step)
    _, metrics = fn(state, {"x": jnp.arange(float(batch_size))})
    return float(metrics["prepare"]), float(metrics["loss"])


def test_keys_follow_seed_and_step_and_nothing_else():
    assert draws() == draws()
    values = [draws(), draws(step=1), draws(seed=1), draws(seed=1, step=1)]
    assert len({number for pair in values for number in pair}) == 8


def test_every_part_of_a_batch_drops_paths_of_its_own():
    prepare, drop_path = draws(accumulation=2)
    one_part_prepare, one_part = draws()
    assert prepare == one_part_prepare  # masks are those of the whole batch
    key = purpose(jax.random.fold_in(jax.random.key(0), 0), "drop_path")
    parts = [float(jax.random.uniform(k)) for k in jax.random.split(key, 2)]
    assert parts[0] != parts[1]
    np.testing.assert_allclose(drop_path, np.mean(parts), rtol=1e-6)
    np.testing.assert_allclose(one_part, jax.random.uniform(key), rtol=1e-6)


def test_purposes_have_keys_of_their_own():
    key = jax.random.key(0)
    names = ("flip", "mask", "drop_path", "eval")
    keys = {tuple(jax.random.key_data(purpose(key, name)).tolist()) for name in names}
    assert len(keys | {tuple(jax.random.key_data(key).tolist())}) == 5


def test_purposes_are_the_same_in_every_process():
    # A process' own hash() would not be, and resumed runs would draw other masks.
    expected = jax.random.fold_in(jax.random.key(0), 0x7F6FC330)
    assert purpose(jax.random.key(0), "mask") == expected


# ---- Pre-training --------------------------------------------------------------------


def prepared(batch, step, flip=True):
    key = jax.random.fold_in(jax.random.key(0), step)
    return pretrain_prepare(flip=flip)(batch, key)


def test_prepare_normalises_and_masks_whole_units_of_each_image(batch):
    inputs = prepared(batch, 0, flip=False)
    expected = (batch["image"] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(inputs["image"], expected, rtol=1e-5, atol=1e-6)
    units = inputs["mask"].reshape(8, 2, 2, 2, 2)
    assert (units.all((2, 4)) == units.any((2, 4))).all()
    assert (units.all((2, 4)).sum((1, 2)) == 2).all()


def test_flips_and_masks_differ_from_step_to_step_and_repeat_for_one(batch):
    first, again, other = (prepared(batch, step) for step in (0, 0, 1))
    for name in ("image", "mask"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any(), name


def test_flips_and_masks_are_drawn_apart(batch):
    inputs = prepared(batch, 5)
    key = jax.random.fold_in(jax.random.key(0), 5)
    mask = masking.random_mask(purpose(key, "mask"), 8, (4, 4), (2, 2), 0.5)
    np.testing.assert_array_equal(inputs["mask"], mask)
    flipped = basic.random_flip(purpose(key, "flip"), jnp.asarray(batch["image"]))
    expected = basic.normalize(flipped, PREPARE["mean"], PREPARE["std"])
    np.testing.assert_array_equal(inputs["image"], expected)


def test_flipping_does_not_change_the_masks(batch):
    flipped, straight = prepared(batch, 0), prepared(batch, 0, flip=False)
    np.testing.assert_array_equal(flipped["mask"], straight["mask"])
    mirrored = straight["image"][:, :, ::-1]
    same = (flipped["image"] == straight["image"]).all((1, 2, 3))
    swapped = (flipped["image"] == mirrored).all((1, 2, 3))
    assert (same ^ swapped).all()
    assert 0 < swapped.sum() < 8


def test_units_need_not_be_square(batch):
    prepare = steps.pretrain_prepare(
        **PREPARE | {"patch_size": (4, 2), "mask_unit": (4, 8)}, flip=False
    )
    mask = prepare(batch, jax.random.key(0))["mask"]
    assert mask.shape == (8, 4, 8)
    units = mask.reshape(8, 4, 2, 4)
    assert (units.all(3) == units.any(3)).all()
    assert (units.all(3).sum((1, 2)) == 4).all()


@pytest.mark.parametrize("unit", [(6, 8), (8, 7), (2, 8)])
def test_units_that_are_no_multiple_of_the_patch_raise_and_name_both(unit):
    expected = rf"unit_size=\({unit[0]}, {unit[1]}\).*patch_size=\(4, 4\)"
    with pytest.raises(ValueError, match=expected):
        steps.pretrain_prepare(**PREPARE | {"mask_unit": unit}, flip=True)


@pytest.mark.parametrize("kind", masking.MASKS)
def test_masks_are_of_the_kind_that_is_asked_for(batch, kind):
    prepare = steps.pretrain_prepare(**PREPARE | {"mask_kind": kind}, flip=False)
    key = jax.random.key(0)
    expected = masking.MASKS[kind](purpose(key, "mask"), 8, (4, 4), (2, 2), 0.5)
    np.testing.assert_array_equal(prepare(batch, key)["mask"], expected)


def test_unknown_masks_are_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"config\.mask\.kind='grid': .*'block'"):
        steps.pretrain_prepare(**PREPARE | {"mask_kind": "grid"}, flip=False)


def test_a_ratio_that_leaves_nothing_visible_is_refused(batch):
    prepare = steps.pretrain_prepare(**PREPARE | {"mask_ratio": 0.8}, flip=False)
    with pytest.raises(ValueError, match=r"mask\.ratio=0\.8 hides all 4 units"):
        prepare(batch, jax.random.key(0))


def test_pre_training_loss_is_that_of_its_objective(batch):
    objective = Objective(target="normalized", window=5, downsample=2, loss="l2")
    model = dataclasses.replace(MODEL, downsample=2)
    inputs = prepared(batch, 0)
    params = random_params(model, inputs["image"], inputs["mask"])
    loss = jax.jit(steps.pretrain_loss(model, objective))
    value, metrics = loss(params, inputs, jax.random.key(0))
    prediction = model.apply({"params": params}, inputs["image"], inputs["mask"])
    expected, _ = objective(prediction, inputs["image"], inputs["mask"])
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert metrics["loss"] == value


def test_paths_drop_in_training_and_not_in_evaluation(batch):
    inputs = prepared(batch, 0)
    params = random_params(DROPPING, inputs["image"], inputs["mask"])

    loss = jax.jit(steps.pretrain_loss(DROPPING))
    first, second, again = (
        float(loss(params, inputs, jax.random.key(k))[0]) for k in (0, 1, 0)
    )
    assert first == again != second
    # Without `train` there is no key to drop by, and none is asked for.
    args = {"params": params}, inputs["image"], inputs["mask"]
    np.testing.assert_array_equal(DROPPING.apply(*args), DROPPING.apply(*args))


def test_pre_training_learns_a_batch_by_heart(batch, params):
    tx = optax.adam(1e-2)
    step = compiled(
        steps.pretrain_loss(MODEL), tx, prepare=pretrain_prepare(flip=False)
    )
    smooth = np.broadcast_to(batch["image"][:, :1, :1], (8, 16, 16, 3))
    state, history = start(params, tx), []
    for _ in range(100):
        state, metrics = step(state, {"image": smooth})
        history.append(float(metrics["loss"]))
    assert np.mean(history[-10:]) < 0.5 * history[0]


# ---- Fine-tuning ---------------------------------------------------------------------


def test_fine_tuning_loss_is_cross_entropy_with_smoothed_labels(batch):
    model = Classifier(MODEL.encoder, num_classes=3)
    prepare = finetune_prepare(label_smoothing=0.3, flip=False)
    inputs = prepare(batch, jax.random.key(0))
    expected = np.full((8, 3), 0.1)
    expected[np.arange(8), batch["label"]] = 0.8
    np.testing.assert_allclose(inputs["target"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        inputs["image"], prepared(batch, 0, flip=False)["image"], rtol=1e-6
    )
    params = random_params(model, inputs["image"])
    logits = jax.jit(model.apply)({"params": params}, inputs["image"])
    logits -= jax.scipy.special.logsumexp(logits, axis=1, keepdims=True)
    loss = jax.jit(steps.finetune_loss(model))
    value, metrics = loss(params, inputs, jax.random.key(0))
    np.testing.assert_allclose(value, -(expected * logits).sum(1).mean(), rtol=1e-5)
    assert metrics["loss"] == value


def test_fine_tuning_flips_some_images_of_a_batch(batch):
    prepare = finetune_prepare(mean=(0,) * 3, std=(1,) * 3, flip=True)
    images = np.asarray(prepare(batch, jax.random.key(1))["image"]) * 255
    swapped = np.isclose(images, batch["image"][:, :, ::-1]).all((1, 2, 3))
    same = np.isclose(images, batch["image"]).all((1, 2, 3))
    assert (same ^ swapped).all()
    assert 0 < swapped.sum() < 8


FINETUNE = {
    "num_classes": 3,
    "label_smoothing": 0.3,
    "mean": (0.485, 0.456, 0.999),
    "std": PREPARE["std"],
    "flip": True,
}


def test_augmentation_follows_the_official_order_with_keys_of_its_own(batch):
    @jax.jit
    def expected(key):
        images = basic.random_flip(purpose(key, "flip"), jnp.asarray(batch["image"]))
        images = randaugment.randaugment(
            purpose(key, "randaugment"),
            images,
            num_ops=2,
            magnitude=9.0,
            magnitude_std=0.5,
            fill=(124, 116, 255),  # the mean in grey levels
        )
        images = basic.normalize(images, FINETUNE["mean"], FINETUNE["std"])
        images = basic.random_erase(purpose(key, "erase"), images, 0.5)
        return basic.mix(
            purpose(key, "mix"),
            images,
            losses.smooth_labels(batch["label"], 3, 0.3),
            mixup_alpha=0.8,
            cutmix_alpha=1.0,
            prob=1.0,
            switch_prob=0.5,
        )

    key = jax.random.key(2)
    images, targets = expected(key)
    inputs = jax.jit(steps.finetune_prepare(**FINETUNE, **AUGMENTATION))(batch, key)
    np.testing.assert_allclose(inputs["image"], images, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(inputs["target"], targets, rtol=1e-5)
    assert len(np.unique(np.asarray(targets).round(4))) > 2  # mixed, and smoothed


@pytest.mark.parametrize("field", ["num_ops", "erase_prob", "mixup_alpha"])
def test_each_augmentation_is_off_at_zero_and_changes_images_when_on(field, batch):
    off = dict.fromkeys(("num_ops", "erase_prob", "mixup_alpha", "cutmix_alpha"), 0)
    on = off | {field: AUGMENTATION[field]}
    plain, none, one = (
        steps.finetune_prepare(**FINETUNE, **augmentation)(batch, jax.random.key(0))
        for augmentation in (PLAIN, AUGMENTATION | off, AUGMENTATION | on)
    )
    np.testing.assert_array_equal(none["image"], plain["image"])
    np.testing.assert_array_equal(none["target"], plain["target"])
    assert (one["image"] != plain["image"]).any()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("magnitude", 11.0, "0 to 10"),
        ("magnitude", -1.0, "0 to 10"),
        ("erase_prob", 1.5, "0 to 1"),
        ("mix_prob", 2.0, "0 to 1"),
        ("mix_switch_prob", -0.1, "0 to 1"),
        ("num_ops", -1, "0 or more"),
        ("mixup_alpha", -0.8, "0 or more"),
        ("magnitude_std", float("nan"), "0 or more"),
    ],
)
def test_augmentation_out_of_range_is_refused(field, value, expected):
    with pytest.raises(ValueError, match=f"{field}={value}: expected {expected}"):
        steps.finetune_prepare(**FINETUNE, **AUGMENTATION | {field: value})


def test_randaugment_of_other_than_grey_and_colour_images_is_refused():
    bands = FINETUNE | {"mean": (0.5,) * 5, "std": (0.2,) * 5}
    with pytest.raises(ValueError, match="num_ops=2 with images of 5 channels"):
        steps.finetune_prepare(**bands, **AUGMENTATION)
    steps.finetune_prepare(**bands, **AUGMENTATION | {"num_ops": 0})
