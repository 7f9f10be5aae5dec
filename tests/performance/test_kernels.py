"""Finding Pallas kernels in jaxprs and in compiled programs."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from simmim_jax.performance import hlo, kernels

PROGRAMS = Path(__file__).parents[1] / "programs"


def double(x, interpret=False):
    def kernel(x, out):
        out[...] = 2 * x[...]

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        name="double",
        interpret=interpret,
    )(x)


def keys(function, *shapes):
    return set(kernels.find(jax.make_jaxpr(function)(*shapes).jaxpr))


def test_distinct_kernels_are_found_wherever_they_are():
    large = jax.ShapeDtypeStruct((16, 128), jnp.bfloat16)
    small = jax.ShapeDtypeStruct((8, 128), jnp.float32)

    def function(large, small):
        looped = jax.lax.scan(lambda x, _: (double(x), None), large, length=3)[0]
        return double(looped), jax.jit(double)(small), jax.checkpoint(double)(small)

    assert keys(function, large, small) == {
        ("double", ("bf16[16,128]",)),
        ("double", ("f32[8,128]",)),
    }


def test_interpreted_kernels_are_left_out():
    small = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    assert not keys(functools.partial(double, interpret=True), small)


def test_a_call_is_recognised_by_name_and_results():
    program = hlo.parse((PROGRAMS / "squares.hlo").read_text())
    (call,) = (i for i, _, _ in program.executed() if i.kind == hlo.PALLAS)
    assert call.name == "squares.1"
    assert kernels.key(call) == ("squares", ("f32[8,128,128]",))
