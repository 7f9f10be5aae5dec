"""Pallas kernels of a step, compiled alone to count the bundles that they issue.

The compiler has no estimate of their cycles, and dumping the schedules of a whole step
takes several times as long as compiling it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.extend import core
from jax.sharding import SingleDeviceSharding

from simmim_jax.performance import hlo, schedule
from simmim_jax.training import flops

# A kernel: its name and the types of its results, such as "bf16[8,128]".
Key = tuple[str, tuple[str, ...]]


def key(instruction: hlo.Instruction) -> Key:
    """Return the kernel that an instruction of the optimised program calls."""
    name = re.sub(r"(\.clone|\.\d+)+$", "", instruction.name)
    return name, tuple(re.findall(r"\b[a-z]+\d+\[[\d,]*\]", instruction.shape))


def find(jaxpr: core.Jaxpr) -> dict[Key, core.JaxprEqn]:
    """Return the distinct kernels in a traced function, without interpreted ones."""
    return {
        (equation.params["name"], _types(equation)): equation
        for equation in _calls(jaxpr)
    }


def bundles(
    equations: dict[Key, core.JaxprEqn], device: jax.Device, dump: Path
) -> dict[Key, int | None]:
    """Return the bundles that each kernel issues on a device; None if unknown.

    dump: folder given to `schedule.dump_to` before libtpu started in this process.
    """
    found = {}
    layout = SingleDeviceSharding(device)
    for kernel, equation in equations.items():

        def alone(*args: jax.Array, equation: core.JaxprEqn = equation):
            return equation.primitive.bind(*args, **equation.params)

        shapes: list[Any] = [x.aval for x in equation.invars]
        args = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout) for x in shapes]
        text = jax.jit(alone).lower(*args).compile().as_text()
        (call,) = (
            instruction
            for instruction, _, _ in hlo.parse(text or "").executed()
            if instruction.kind == hlo.PALLAS
        )
        found[kernel] = schedule.dumped_bundles(dump, call.name)
    return found


def _types(equation: core.JaxprEqn) -> tuple[str, ...]:
    short = {"bfloat16": "bf16", "float32": "f32", "int32": "s32", "float16": "f16"}
    shapes: list[Any] = [x.aval for x in equation.outvars]
    return tuple(
        f"{short.get(x.dtype.name, x.dtype.name)}[{','.join(map(str, x.shape))}]"
        for x in shapes
    )


def _calls(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            if not equation.params["interpret"]:
                yield equation
        else:
            for part in flops.parts(equation.params):
                yield from _calls(part)
