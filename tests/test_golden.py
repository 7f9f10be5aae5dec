"""Our models and updates against numbers of the official code (tests/golden)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import official_cases
import optax
import pytest

from simmim_jax.checkpoints.convert.official import to_official
from simmim_jax.mim import losses
from simmim_jax.mim.objective import SIMMIM, Objective
from simmim_jax.training import optim


def golden(prefix: str):
    cases = official_cases.load(prefix)
    return pytest.mark.parametrize(
        "case",
        [pytest.param(case, id=f"golden-{name}") for name, case in cases.items()],
    )


def norms(tree) -> dict[str, float]:
    return {
        name: float(np.linalg.norm(value.astype(np.float64)))
        for name, value in to_official(tree).items()
    }


def objective(case):
    window = case["arch"].get("norm_target_window")
    return Objective("normalized", window) if window else SIMMIM


def pretrain_loss(case, model, params, images, mask):
    prediction = model.apply({"params": params}, images, mask)
    return objective(case)(prediction, images, mask)[0]


@golden("forward")
def test_forward_and_gradients(case):
    model = official_cases.build(case["arch"])
    params = official_cases.golden_params(model, case)
    images, mask = official_cases.images(case), official_cases.masks(case)
    assert sum(p.size for p in jax.tree.leaves(params)) == case["nparam"]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def computed(params):
        rec, state = model.apply(
            {"params": params},
            images,
            mask,
            capture_intermediates=lambda module, _: module.name == "encoder",
            mutable="intermediates",
        )
        (encoded,) = state["intermediates"]["encoder"]["__call__"]
        return objective(case)(rec, images, mask)[0], (encoded.grid, rec)

    (loss, (z, rec)), grads = computed(params)
    z, rec = (np.asarray(x).transpose(0, 3, 1, 2) for x in (z, rec))
    assert list(z.shape) == case["z_shape"]
    assert list(rec.shape) == case["rec_shape"]
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-4)
    np.testing.assert_allclose(z.mean(), case["z_mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.abs(z).mean(), case["z_absmean"], rtol=1e-4)
    np.testing.assert_allclose(np.abs(rec).mean(), case["rec_absmean"], rtol=1e-4)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(z.ravel()[:8], case["z_first8"], **close)
    np.testing.assert_allclose(rec.ravel()[:8], case["rec_first8"], **close)
    np.testing.assert_allclose(rec.ravel()[-8:], case["rec_last8"], **close)
    ours = norms(grads)
    assert set(ours) == set(case["grad_norms"])
    for name, norm in case["grad_norms"].items():
        np.testing.assert_allclose(ours[name], norm, rtol=1e-4, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(
        optax.tree.norm(grads), case["global_grad_norm"], rtol=1e-4
    )


@golden("trajectories")
@pytest.mark.slow
def test_trajectory(case):
    model = official_cases.build(case["arch"])
    params = official_cases.golden_params(model, case)
    classes = case["arch"].get("num_classes")

    # One compilation for all steps: everything that changes is an argument.
    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def grad_fn(params, images, mask, targets):
        if not classes:
            return pretrain_loss(case, model, params, images, mask), ()
        logits = model.apply({"params": params}, images)
        return losses.cross_entropy(logits, targets).mean(), logits

    def batch(step):
        samples = np.arange(case["batch"])
        targets = np.full((case["batch"], classes or 1), 0.01)
        targets[samples, (3 * samples + step) % (classes or 1)] = 0.91
        return (
            official_cases.images(case, step),
            official_cases.masks(case, step),
            targets,
        )

    layer_id = model.layer_id if classes else lambda path: 0
    decay = case.get("layer_decay", 1.0)
    scales = optim.layer_scales(params, layer_id, decay)
    rates = jnp.array(case["lr"])
    tx = optim.adamw(
        lambda step, scale: rates[step] * scale,
        b1=case["betas"][0],
        b2=case["betas"][1],
        eps=case["eps"],
        weight_decay=case["weight_decay"],
        clip_norm=case["clip_grad_norm"],
        mask=optim.decay_mask(params, "official"),
        scales=scales,
    )
    opt_state, update = tx.init(params), jax.jit(tx.update)
    for step in range(case["steps"]):
        (loss, logits), grads = grad_fn(params, *batch(step))
        np.testing.assert_allclose(loss, case["loss"][step], rtol=5e-3)
        np.testing.assert_allclose(
            optax.tree.norm(grads), case["grad_norm"][step], rtol=5e-3
        )
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    ours = norms(params)
    assert set(ours) == set(case["param_norm"])
    for name, norm in case["param_norm"].items():
        np.testing.assert_allclose(ours[name], norm, rtol=5e-3, err_msg=name)
    if classes:
        np.testing.assert_allclose(
            np.ravel(logits)[: len(case["last_logits"])],
            case["last_logits"],
            rtol=5e-3,
            atol=5e-3,
        )
