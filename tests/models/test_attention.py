"""Attention in XLA: formulations for CPUs and TPUs, and unsupported devices."""

import jax
import jax.numpy as jnp
import numpy as np
import official_cases
import pytest
from test_golden import norms, pretrain_loss

from simmim_jax.models import attention, swin
from simmim_jax.models.attention import self_attention


@pytest.mark.parametrize("masks", [0, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_tpu_formulation_gives_the_same_result(with_bias, masks, monkeypatch):
    rng = np.random.default_rng(0)
    batch, tokens, heads, width = 4, 5, 2, 8

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    x, dout = normal(2, batch * tokens, heads * width)
    kernel = 0.2 * normal(heads * width, 3 * heads * width)
    qkv_bias = normal(3 * heads * width)
    bias = normal(heads, tokens, tokens)
    mask = np.where(rng.random((masks, tokens, tokens)) < 0.5, -100, 0)
    mask = mask.astype(np.float32) if masks else None

    def values(x, kernel, qkv_bias, bias):
        return self_attention(
            x,
            kernel,
            qkv_bias if with_bias else None,
            bias if with_bias else None,
            mask,
            batch=batch,
            num_heads=heads,
            tokens=tokens,
            implementation="xla",
            dtype=jnp.dtype("float32"),
        )

    def run(*args):
        out, gradients = jax.vjp(values, *args)
        return out, *gradients(dout)

    # Lambdas, since JAX would not trace `run` again.
    expected = jax.jit(lambda *args: run(*args))(x, kernel, qkv_bias, bias)
    monkeypatch.setattr(attention, "on_tpu", lambda: True)
    ours_on_tpu = jax.jit(lambda *args: run(*args))(x, kernel, qkv_bias, bias)
    for ours, theirs in zip(ours_on_tpu, expected, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("offset", [0, 1000])
def test_the_softmax_that_is_kept_is_that_of_jax(offset):
    rng = np.random.default_rng(0)
    logits, dout = (jnp.float32(rng.normal(size=(3, 2, 5, 7))) for _ in "12")
    logits = (3 * logits + offset).at[:, :, :, 5].set(-jnp.inf)
    assert not attention._is_small(logits)
    found, expected = (
        (out, *pull(dout))
        for out, pull in (
            jax.vjp(softmax, logits) for softmax in (attention._softmax, jax.nn.softmax)
        )
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-7)


CASES = {
    name: case
    for name, case in official_cases.load("forward").items()
    if name.endswith(("vit_both_tables", "swin_tiny_w4"))
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_official_numbers_with_the_tpu_formulation(case, monkeypatch):
    for module in (attention, swin):
        monkeypatch.setattr(module, "on_tpu", lambda: True)
    model = official_cases.build(case["arch"])
    params = official_cases.golden_params(model, case)
    images, mask = official_cases.images(case), official_cases.masks(case)

    @jax.jit
    @jax.value_and_grad
    def run(params):
        return pretrain_loss(case, model, params, images, mask)

    loss, grads = run(params)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-4)
    ours = norms(grads)
    for name, norm in case["grad_norms"].items():
        np.testing.assert_allclose(ours[name], norm, rtol=1e-4, atol=1e-7, err_msg=name)


def test_the_kernel_raises_without_a_tpu():
    qkv = jnp.zeros((10, 3 * 32))
    with pytest.raises(ValueError, match=r'"pallas" is a kernel for TPUs.* cpu: set'):
        attention.attention(
            qkv,
            None,
            None,
            batch=2,
            num_heads=1,
            tokens=5,
            implementation="pallas",
        )
