"""The Pallas kernel, interpreted on the CPU, against attention in XLA."""

import os
import subprocess
import sys
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import official_cases
import pytest
from jax.experimental.pallas import tpu as pltpu
from test_golden import norms, pretrain_loss

from simmim_jax.models import pallas_attention
from simmim_jax.models.attention import attention
from simmim_jax.models.swin import Swin
from simmim_jax.models.vit import ViT


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(pallas_attention, "on_tpu", lambda: True)
    with pltpu.force_tpu_interpret_mode():
        yield


def inputs(batch, heads, width, tokens, rows, masks, dtype):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    qkv = normal(batch * rows, 3, heads * width)
    qkv = qkv.at[:, 0].multiply(width**-0.5).reshape(batch * rows, -1)
    qkv_bias = 0.1 * normal(3 * heads * width)
    bias = normal(heads, tokens, tokens)
    dout = normal(batch, rows, heads * width).at[:, tokens:].set(0)
    # Mask half of the pairs of tokens.
    mask = np.where(rng.random((masks, tokens, tokens)) < 0.5, -100, 0)
    mask = mask.astype(np.float32) if masks else None
    return qkv.astype(dtype), qkv_bias, bias, mask, dout.astype(dtype)


def with_gradients(implementation, qkv, qkv_bias, bias, mask, dout, **sizes):
    """Return the values of real tokens, and the gradients of qkv, qkv_bias and bias."""
    batch = len(dout)

    def values(qkv, qkv_bias, bias):
        out = attention(
            qkv,
            qkv_bias,
            bias,
            mask,
            batch=batch,
            implementation=implementation,
            **sizes,
        )
        return out.reshape(dout.shape)

    @jax.jit
    def run(*args):
        out, gradients = jax.vjp(values, *args)
        return out[:, : sizes["tokens"]], gradients(dout)

    return run(qkv, qkv_bias, bias)


@pytest.mark.parametrize(
    ("batch", "heads", "width", "tokens", "masks"),
    [
        (3, 3, 32, 5, 0),  # several windows per sample; unused lanes
        (2, 2, 64, 197, 0),  # one image per sample
        (5, 1, 24, 50, 0),  # head width that does not divide the lanes
        (8, 4, 32, 36, 4),  # Swin's windows, two per sample, of two kinds
        (6, 5, 32, 49, 3),  # an odd number of kinds
        (20, 1, 128, 16, 0),  # several programs
    ],
)
def test_values_and_gradients_match_xla(batch, heads, width, tokens, masks):
    sizes = {"num_heads": heads, "tokens": tokens}
    arrays = inputs(batch, heads, width, tokens, tokens, masks, jnp.float32)
    expected = with_gradients("xla", *arrays, **sizes)
    ours = with_gradients("pallas", *arrays, **sizes)
    assert_close(ours, expected, 1e-5)


def assert_close(ours, expected, share):
    """Assert that no value differs by more than `share` of the largest one."""
    names = ("out", "qkv", "qkv_bias", "bias")
    leaves = zip(names, jax.tree.leaves(ours), jax.tree.leaves(expected), strict=False)
    for name, a, b in leaves:
        assert a.shape == b.shape, name
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=share * scale, err_msg=name)


def test_bfloat16_is_as_close_to_float32_as_xla():
    sizes = {"num_heads": 2, "tokens": 50}
    arrays = inputs(2, 2, 64, 50, 50, 0, jnp.bfloat16)
    float32 = [x if x is None else x.astype(jnp.float32) for x in arrays]
    expected = with_gradients("xla", *float32, **sizes)
    ours = with_gradients("pallas", *arrays, **sizes)
    xla = with_gradients("xla", *arrays, **sizes)
    assert jax.tree.map(lambda x: x.dtype, ours) == jax.tree.map(lambda x: x.dtype, xla)

    def error(values):
        return [
            float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
            for a, b in zip(
                jax.tree.leaves(values), jax.tree.leaves(expected), strict=True
            )
        ]

    assert max(error(ours)) < 0.02
    assert np.all(np.array(error(ours)) < 1.5 * np.array(error(xla)) + 1e-3)


def test_padding_rows_are_ignored_and_get_no_gradient():
    sizes = {"num_heads": 2, "tokens": 5}
    qkv, qkv_bias, bias, _, dout = inputs(3, 2, 32, 5, 8, 0, jnp.float32)
    samples = qkv.reshape(3, 8, -1)
    tokens = samples[:, :5].reshape(15, -1)
    expected = with_gradients("xla", tokens, qkv_bias, bias, None, dout[:, :5], **sizes)
    padded = samples.at[:, 5:].set(1e4).reshape(24, -1)
    out, (dqkv, *sums) = with_gradients(
        "pallas", padded, qkv_bias, bias, None, dout, **sizes
    )
    dqkv = dqkv.reshape(3, 8, -1)
    assert not np.any(dqkv[:, 5:])
    ours = out, (dqkv[:, :5].reshape(15, -1), *sums)
    assert_close(ours, expected, 1e-5)


def test_both_biases_are_optional():
    sizes = {"num_heads": 2, "tokens": 16}
    qkv, _, _, _, dout = inputs(2, 2, 64, 16, 16, 0, jnp.float32)
    arrays = (qkv, None, None, None, dout)
    expected = with_gradients("xla", *arrays, **sizes)
    ours = with_gradients("pallas", *arrays, **sizes)
    assert ours[1][1:] == (None, None)
    assert_close(ours, expected, 1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image": 68, "heads": 1}, r"with 290 tokens: .* at most 256"),
        ({"image": 8, "heads": 1, "width": 160}, r"heads of width 160: .* at most 128"),
    ],
)
def test_unsupported_sizes_raise(sizes, message):
    model = ViT(
        patch_size=(4, 4),
        embed_dim=sizes.get("width", 32),
        depth=1,
        num_heads=sizes["heads"],
        attention="pallas",
    )
    images = jnp.zeros((1, sizes["image"], sizes["image"], 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.apply, variables, images)


@pytest.mark.parametrize("encoder", [ViT, Swin])
def test_an_unknown_implementation_raises(encoder):
    with pytest.raises(ValueError, match=r"config.model.attention='flash'.*pallas"):
        encoder(attention="flash").init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))


GOLDEN = {
    name: case
    for name, case in official_cases.load("forward").items()
    if name.endswith(("vit_both_tables", "swin_tiny_w4", "w4_pretrainedwin8"))
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if "swin" in name else [])
        for name, case in GOLDEN.items()
    ],
)
def test_official_numbers(case):
    model = official_cases.build(case["arch"])
    params = official_cases.golden_params(model, case)
    model = model.clone(encoder=model.encoder.clone(attention="pallas"))
    images, mask = official_cases.images(case), official_cases.masks(case)

    @jax.jit
    @jax.value_and_grad
    def run(params):
        return pretrain_loss(case, model, params, images, mask)

    loss, grads = run(params)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-4)
    ours = norms(grads)
    assert set(ours) == set(case["grad_norms"])
    for name, norm in case["grad_norms"].items():
        np.testing.assert_allclose(ours[name], norm, rtol=1e-4, atol=1e-7, err_msg=name)


ON_A_MESH = """
import functools
import jax
import numpy as np
import test_pallas_attention as t
from jax.experimental import pallas as pl
from simmim_jax.models import pallas_attention
from simmim_jax.runtime import sharding

pallas_attention.on_tpu = lambda: True
# force_tpu_interpret_mode hangs if there are fewer CPUs than devices.
pl.pallas_call = functools.partial(pl.pallas_call, interpret=True)

axes = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=axes)
sizes = {"num_heads": 2, "tokens": 36}
rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
# Four images of four windows; and two images, which four devices cannot share.
for windows, parts in ((16, ("data", "fsdp")), (8, None)):
    arrays = t.inputs(windows, 2, 32, 36, 36, 4, np.float32)
    expected = t.with_gradients("xla", *arrays, **sizes)
    qkv, qkv_bias, bias, mask, dout = arrays
    split = (jax.device_put(qkv, rows), qkv_bias, bias, jax.device_put(dout, rows))

    @jax.jit
    def on_mesh(*args):
        with sharding.on_mesh(mesh):
            return t.with_gradients("pallas", *args[:3], mask, args[3], **sizes)

    ours = on_mesh(*split)
    t.assert_close(ours, expected, 1e-5)
    # The output keeps the sharding of the batch.
    found = (*ours[0].sharding.spec, None)[0]
    assert found == parts, found
"""


def test_devices_of_a_mesh_process_their_shard_of_the_batch():
    tests = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", ON_A_MESH],
        check=True,
        cwd=Path(__file__).parent,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent))),
            "XLA_FLAGS": commands.xla_flags(4),
        },
        timeout=300,
    )
