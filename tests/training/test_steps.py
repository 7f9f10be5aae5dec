"""Training steps: accumulation, averages, frozen parameters and randomness."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step_cases
from step_cases import (
    CLASSIFIER,
    DROPPING,
    MODEL,
    prepare_finetune,
    prepare_pretrain,
    random_params,
)

from simmim_jax.mim import losses, masking
from simmim_jax.models.classifier import Classifier
from simmim_jax.tasks.classify_step import finetune_loss
from simmim_jax.tasks.pretrain_step import pretrain_loss
from simmim_jax.training import steps
from simmim_jax.training.steps import TrainState, purpose, train_step

CLIP = 0.03  # below the norm of the first gradients here


@pytest.fixture(scope="module")
def batch():
    return step_cases.make_batch()


@pytest.fixture(scope="module")
def params():
    return step_cases.pretrain_params()


def start(params, tx, step=0):
    return TrainState(jnp.int32(step), params, tx.init(params))


def compiled(loss, tx, *, prepare=None, seed=0, **options):
    return jax.jit(
        functools.partial(
            train_step,
            prepare=prepare or prepare_pretrain(flip=True),
            loss=loss,
            tx=tx,
            seed=seed,
            **options,
        )
    )


@pytest.fixture(scope="module")
def one_step():
    """An update without accumulation, clipped so that clipping is tested, too."""
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(1.0))
    return tx, compiled(pretrain_loss(MODEL), tx)


# ---- The update ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_accumulation_equals_the_large_batch(mode, batch, params):
    if mode == "pretrain":
        options = {"prepare": prepare_pretrain(flip=True)}
        loss = pretrain_loss(MODEL)
    else:
        options = {"prepare": prepare_finetune(flip=True)}
        loss = finetune_loss(CLASSIFIER)
        params = random_params(CLASSIFIER, jnp.zeros((1, 16, 16, 3)))
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(1.0, momentum=0.9))
    whole, split = (compiled(loss, tx, accumulation=n, **options) for n in (1, 4))
    state = other = start(params, tx)
    for _ in range(3):
        state, metrics = whole(state, batch)
        other, other_metrics = split(other, batch)
        assert metrics["grad_norm"] > CLIP  # otherwise nothing would be clipped
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
    inputs = prepare_pretrain(flip=True)(batch, key)
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


def test_sample_i_is_in_micro_batch_i_modulo_their_number():
    # Micro-batches of neighbours would move samples between devices.
    def highest(params, inputs, key):
        value = params["w"] * inputs["x"].max()
        return value, {"loss": value}

    tx = optax.sgd(0.0)
    step = compiled(highest, tx, prepare=lambda batch, key: batch, accumulation=2)
    _, metrics = step(start({"w": jnp.float32(1)}, tx), {"x": jnp.arange(4.0)})
    assert metrics["loss"] == (2 + 3) / 2  # of samples 0 2 and 1 3


def test_pre_training_overfits_a_batch(batch, params):
    tx = optax.adam(1e-2)
    step = compiled(pretrain_loss(MODEL), tx, prepare=prepare_pretrain(flip=False))
    smooth = np.broadcast_to(batch["image"][:, :1, :1], (8, 16, 16, 3))
    state, history = start(params, tx), []
    for _ in range(100):
        state, metrics = step(state, {"image": smooth})
        history.append(float(metrics["loss"]))
    assert np.mean(history[-10:]) < 0.5 * history[0]


# ---- The moving average --------------------------------------------------------------


def test_average_starts_at_the_initial_parameters(batch, params):
    tx = optax.sgd(0.1)
    step = compiled(pretrain_loss(MODEL), tx, ema_decay=0.75)
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


def test_average_does_not_change_the_parameters(batch, params, one_step):
    tx, step = one_step
    plain, _ = step(start(params, tx), batch)
    averaging = compiled(pretrain_loss(MODEL), tx, ema_decay=0.9)
    state, _ = averaging(dataclasses.replace(start(params, tx), ema=params), batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
    assert plain.ema is None
    assert plain.averaged == plain.params


# ---- A frozen encoder ----------------------------------------------------------------

DROPPING_CLASSIFIER = Classifier(DROPPING.encoder, num_classes=3)


@pytest.fixture(scope="module")
def frozen():
    """The first state, and a compiled step that trains the head alone."""
    params = random_params(DROPPING_CLASSIFIER, jnp.zeros((1, 16, 16, 3)))
    # Signed zeros and denormal numbers must not change either.
    params["encoder"]["cls_token"][0, 0, :2] = [-0.0, 1e-40]
    tx = optax.adam(1e-2)
    learned = steps.learning(params, ["encoder"])
    state = TrainState(jnp.int32(0), params, tx.init(learned), learned)
    return state, head_step(tx, frozen=["encoder"], ema_decay=0.9)


def head_step(tx, **options):
    loss = finetune_loss(DROPPING_CLASSIFIER, drop_paths="frozen" not in options)
    return compiled(loss, tx, prepare=prepare_finetune(flip=True), **options)


def test_frozen_encoder_is_unchanged_bit_for_bit_while_the_head_learns(batch, frozen):
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
    inputs = prepare_finetune(flip=True)(
        batch, jax.random.fold_in(jax.random.key(0), 0)
    )
    _, metrics = step(state, batch)
    loss = finetune_loss(
        Classifier(dataclasses.replace(DROPPING.encoder, drop_path_rate=0.0), 3)
    )
    expected, _ = loss(state.params, inputs, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_frozen_step_updates_the_head_as_the_whole_step_does(batch, frozen, parts):
    state, _ = frozen
    still = Classifier(dataclasses.replace(DROPPING.encoder, drop_path_rate=0.0), 3)
    tx = optax.sgd(0.1)
    options = {"prepare": prepare_finetune(flip=True), "accumulation": parts}
    loss = finetune_loss(still)
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
    """Return random numbers drawn from the keys of prepare and of loss."""

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


def test_keys_depend_on_seed_and_step_alone():
    assert draws() == draws()
    values = [draws(), draws(step=1), draws(seed=1), draws(seed=1, step=1)]
    assert len({number for pair in values for number in pair}) == 8


def test_every_micro_batch_drops_its_own_paths():
    prepare, drop_path = draws(accumulation=2)
    one_part_prepare, one_part = draws()
    assert prepare == one_part_prepare  # masks are those of the whole batch
    key = purpose(jax.random.fold_in(jax.random.key(0), 0), "drop_path")
    parts = [float(jax.random.uniform(k)) for k in jax.random.split(key, 2)]
    assert parts[0] != parts[1]
    np.testing.assert_allclose(drop_path, np.mean(parts), rtol=1e-6)
    np.testing.assert_allclose(one_part, jax.random.uniform(key), rtol=1e-6)


def test_purposes_have_different_keys():
    key = jax.random.key(0)
    names = ("flip", "mask", "drop_path", "eval")
    keys = {tuple(jax.random.key_data(purpose(key, name)).tolist()) for name in names}
    assert len(keys | {tuple(jax.random.key_data(key).tolist())}) == 5


def test_purposes_are_the_same_in_every_process():
    # Python's hash() is not: resumed runs would draw other masks.
    expected = jax.random.fold_in(jax.random.key(0), 0x7F6FC330)
    assert purpose(jax.random.key(0), "mask") == expected
