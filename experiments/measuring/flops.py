"""Floating-point operations of a program, counted in what JAX traces of it.

XLA's own count (`compiled.cost_analysis()`) takes the body of a loop once, however often it runs,
which makes it useless for programs that go through a batch chunk by chunk.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

# fmt: off
_OF_OUTPUTS = frozenset([
    "abs", "add", "add_any", "cos", "div", "erf", "exp", "exp2", "expm1", "integer_pow", "log",
    "log1p", "logistic", "max", "min", "mul", "neg", "pow", "rsqrt", "sign", "sin", "sqrt",
    "square", "sub", "tanh",
])
_OF_INPUTS = frozenset([
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "cumsum", "cumlogsumexp",
])
_UNKNOWN = frozenset([
    "cholesky", "conv_general_dilated", "eig", "eigh", "hessenberg", "householder_product", "lu",
    "qr", "schur", "svd", "triangular_solve", "while",
])
# fmt: on


def count_flops(jaxpr: Any) -> int | None:
    """Counts 2 n for a product of n terms and 1 for every other result of real arithmetic.

    Elementary functions count as 1, moving and comparing as 0, complex arithmetic as real. Loops
    count as often as they run, of a conditional its cheapest branch, so that the count is at most
    what is executed; XLA may also compute a result twice where that saves memory traffic.

    Args:
      jaxpr: as `jax.jit(fn).trace(*args).jaxpr.jaxpr` gives it.

    Returns:
      The count; None for programs whose loops depend on the data, and for those that call LAPACK,
      its likes, or convolutions.
    """
    counts = [_count_equation(equation) for equation in jaxpr.eqns]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _count_equation(equation: Any) -> int | None:
    """The count of one primitive with all that it calls."""
    name, params = equation.primitive.name, equation.params
    if name in _UNKNOWN:
        return None
    if name == "dot_general":
        lhs, (contracted, _) = equation.invars[0].aval, params["dimension_numbers"]
        terms = math.prod(lhs.shape[axis] for axis in contracted[0])
        return 2 * terms * equation.outvars[0].aval.size
    if name in _OF_OUTPUTS:
        return _num_floating(equation.outvars)
    if name in _OF_INPUTS:
        return _num_floating(equation.invars)
    counts = [count_flops(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return min((count for count in counts if count is not None), default=None)
    known = [count for count in counts if count is not None]
    times = params["length"] if name == "scan" else 1
    return times * sum(known) if len(known) == len(counts) else None


def _num_floating(variables: Any) -> int:
    """Entries of the arrays that hold floating or complex numbers."""
    avals = [variable.aval for variable in variables]
    return sum(aval.size for aval in avals if np.issubdtype(aval.dtype, np.inexact))


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The programs that a primitive calls."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield getattr(item, "jaxpr", item)
