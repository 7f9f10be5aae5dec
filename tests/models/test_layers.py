"""Layers shared by the encoders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from simmim_jax.models.layers import PatchEmbed, gelu, gelu_product, product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_and_its_gradient_match_flax_in_float32(dtype):
    x = jnp.linspace(-8, 8, 10_001, dtype=dtype)
    wide = x.astype(jnp.float32)
    exact = jax.vjp(lambda x: nn.gelu(x, approximate=False), wide)
    ours = jax.vjp(gelu, x)
    step = jnp.finfo(dtype).eps
    slope, expected = ours[1](jnp.ones_like(x))[0], exact[1](jnp.ones_like(wide))[0]
    assert ours[0].dtype == slope.dtype == dtype
    # PyTorch's rounding: Φ may be off by two steps, which x multiplies.
    assert np.all(np.abs(ours[0] - exact[0]) <= 2 * step * np.abs(wide))
    np.testing.assert_allclose(slope, expected, rtol=1.25 * step, atol=1.25 * step)


def test_patches_far_from_zero_are_normalised_exactly():
    values = 29_000 + np.linspace(-10, 10, 256, dtype=np.float32)
    embed = PatchEmbed((16, 16), 256, norm_eps=1e-5)
    params = {
        "kernel": np.eye(256, dtype=np.float32).reshape(16, 16, 1, 256),
        "bias": np.zeros(256, np.float32),
        "norm": {"scale": np.ones(256), "bias": np.zeros(256)},
    }
    with jax.default_matmul_precision("highest"):
        found = embed.apply({"params": params}, values.reshape(1, 16, 16, 1))
    exact = values.astype(np.float64)
    expected = (exact - exact.mean()) / exact.std()
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-3)
    cancelled = nn.LayerNorm(use_scale=False, use_bias=False).apply({}, values)
    assert np.abs(cancelled - expected).max() > 0.1  # what Flax does by default


# One row and odd numbers: half of the rows is transposed at a time. In the last case it
# is the gradient that is transposed, not x.
@pytest.mark.parametrize(
    ("rows", "width", "features"), [(1, 8, 3), (7, 5, 16), (21, 16, 3)]
)
def test_products_of_rounded_operands_have_float32_sums(rows, width, features):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, rows, width)), rng.normal(size=(width, features))
    gradient = rng.normal(size=(2, rows, features))
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, gradient)]

    def run(x, kernel, gradient):
        half = jnp.dtype("bfloat16")
        out, pullback = jax.vjp(lambda *args: product(*args, half), x, kernel)
        return out, *pullback(gradient)

    found = jax.jit(run)(*arrays)
    x, kernel, gradient = (
        np.asarray(a.astype("bfloat16")).astype(np.float64) for a in arrays
    )
    flat = np.tensordot(x, gradient, ((0, 1), (0, 1)))
    expected = (x @ kernel, gradient @ kernel.T, flat)
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("rows", "width"), [(6, 4), (42, 16)])
def test_a_transposed_product_runs(rows, width):
    x, kernel = jnp.ones((rows, width)), jnp.ones((width, 3))

    def run(x, kernel):
        product_of = functools.partial(product, dtype=jnp.dtype("bfloat16"))
        out, pullback = jax.vjp(product_of, x, kernel)
        return out.T, *(gradient.T for gradient in pullback(out))

    shapes = [gradient.shape for gradient in jax.jit(run)(x, kernel)]
    assert shapes == [(3, rows), (width, rows), (3, width)]


# As above: x is transposed, then the gradient.
@pytest.mark.parametrize(("rows", "width"), [(7, 5), (42, 16)])
def test_gradients_of_a_rounded_product_of_gelu_are_close_to_float32(rows, width):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(rows, width)), rng.normal(size=(width, 3))
    gradient = rng.normal(size=(rows, 3))
    x, kernel, gradient = (jnp.asarray(a, jnp.float32) for a in (x, kernel, gradient))

    def run(dtype):
        product_of = functools.partial(gelu_product, dtype=jnp.dtype(dtype))
        out, pullback = jax.vjp(product_of, x, kernel)
        return out, *pullback(gradient)

    found, exact = (jax.jit(run, static_argnums=0)(t) for t in ("bfloat16", "float32"))
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == jnp.float32
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02 * scale)
