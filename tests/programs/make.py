"""Compile the programs in this folder with the real TPU compiler.

    PYTHONPATH=. python tests/programs/make.py

Needs pip install -e '.[tpu]'. Unused attributes are cut out of the texts, and paths are
shortened; nothing else is changed.
"""

import re
import tempfile
from pathlib import Path

from simmim_jax.performance import schedule, slices
from simmim_jax.runtime.accelerators import accelerator

HERE = Path(__file__).parent
DUMP = Path(tempfile.mkdtemp())
slices.set_environment()
schedule.dump_to(DUMP)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import pallas as pl  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402


def loops(weights, x, order):
    """Gradient descent on six layers in a loop, a sort and a branch."""

    def loss(weights):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        y, _ = jax.lax.scan(layer, x, weights)
        return (y**2).mean()

    changed = weights - 0.1 * jax.grad(loss)(weights)
    rank = jnp.argsort(order, axis=1)
    heavy = jax.lax.cond(rank[0, 0] > 3, lambda a: a @ a, lambda a: a + 1, weights[0])
    return changed, rank, heavy


def kernel(x, out):
    """Square a block five times."""

    def multiply(i, total):
        return total + jnp.dot(x[0], x[0], preferred_element_type=jnp.float32) * i

    out[0] = jax.lax.fori_loop(2, 7, multiply, jnp.zeros((128, 128), jnp.float32))


def squares(x):
    """The kernel, and a reshape that moves the whole array."""
    y = pl.pallas_call(
        kernel,
        grid=(len(x),),
        in_specs=[pl.BlockSpec((1, 128, 128), lambda i: (i, 0, 0))],
        out_specs=pl.BlockSpec((1, 128, 128), lambda i: (i, 0, 0)),
        out_shape=jax.ShapeDtypeStruct(x.shape, jnp.float32),
        name="squares",
    )(x)
    return y[:, :120].reshape(-1, 60)


def shorten(text: str) -> str:
    """Cut out what the parser does not read."""

    def backend(found: re.Match) -> str:
        cycles = re.findall(r'"estimated_cycles":"\d+"', found[0])
        return f", backend_config={{{cycles[0]}}}" if cycles else ""

    text = re.sub(r", backend_config=\{.*\}$", backend, text, flags=re.M)
    text = re.sub(r", frontend_attributes=\{[^}]*\}+", "", text)
    return text.replace(str(HERE), "tests/programs")


def main() -> None:
    """Compile for v5e; write loops.hlo, squares.hlo and squares.txt."""
    devices = slices.devices(accelerator("v5e-4"))
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=devices)
    whole, split = (NamedSharding(mesh, PartitionSpec(axis)) for axis in (None, "x"))

    def like(shape, dtype, layout):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

    args = (
        like((6, 512, 512), jnp.bfloat16, whole),
        like((1024, 512), jnp.bfloat16, split),
        like((8, 49), jnp.float32, whole),
    )
    compiled = jax.jit(loops).lower(*args).compile()
    (HERE / "loops.hlo").write_text(shorten(compiled.as_text()))

    alone = jax.make_mesh(
        (1,), ("x",), (AxisType.Auto,), devices=slices.devices(accelerator("v5e-1"))
    )
    x = like((8, 128, 128), jnp.bfloat16, NamedSharding(alone, PartitionSpec()))
    text = jax.jit(squares).lower(x).compile().as_text()
    (HERE / "squares.hlo").write_text(shorten(text))
    (HERE / "squares.txt").write_text(schedule.dumped(DUMP, "squares.1"))


if __name__ == "__main__":
    main()
