"""Count floating-point operations of a function in its jaxpr."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from simmim_jax.errors import UserError


def count(function: Callable[..., Any], *args: Any) -> int:
    """Count the matrix products of function(*args), 2 FLOP a multiply-add.

    Computes nothing: args may be shapes. Loops are multiplied by their trip count and
    kernels by their grid; of branches the costliest counts. Additions, norms, softmax
    and the like are left out, as usual for a utilisation (1 % of a ViT-B/16). A
    gradient includes backpropagation and rematerialisation.
    raises: UserError for products in a loop with an unknown trip count.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        left, right = (_shape(operand) for operand in equation.invars)
        if min(len(left), len(right)) == 1:
            return 0  # a sum, written as the product with a vector
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            terms = math.prod(left[axis] for axis in contracted)
        else:
            outputs = right[params["dimension_numbers"].rhs_spec[0]]
            # Zeros between pixels (gradients of strided convolutions) are free.
            terms = math.prod(right) / outputs / math.prod(params["lhs_dilation"])
        return round(2 * terms * math.prod(_shape(equation.outvars[0])))
    counts = [_count(part) for part in parts(params)]
    if name == "cond":
        return max(counts)
    if name == "while" and any(counts):
        raise UserError(
            "cannot determine the trip count of a while loop with matrix products: use "
            "jax.lax.scan, or a fori_loop over a fixed range."
        )
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * sum(counts)
    return params.get("length", 1) * sum(counts) if name == "scan" else sum(counts)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def parts(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """Yield the jaxprs of an equation: loop bodies, branches, called functions."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part
