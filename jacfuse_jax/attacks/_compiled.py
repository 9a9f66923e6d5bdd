"""Attacks outside of `jax.jit`: traced at every call, compiled once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

_MAX_PROGRAMS = 64  # the least recently used goes first, with the arrays that it holds


def run_compiled(
    attack_fn: Callable[..., Any],
    log_prob_fn: Callable[[dict[str, Any]], jax.Array],
    inputs: Mapping[str, Any],
    *arguments: Any,
    **static: Any,
) -> Any:
    """`attack_fn(log_prob_fn, inputs, *arguments, **static)` as one program.

    The same function object, static arguments and shapes are compiled once. The function is traced
    each time, and what it closes over compared: a model that has been updated in place since is
    compiled anew instead of attacked as it was.
    """
    inputs = dict(inputs)
    leaves = jax.tree.leaves((inputs, arguments))
    if not all(_is_concrete(leaf) for leaf in leaves):
        return attack_fn(log_prob_fn, inputs, *arguments, **static)
    # A function of its own each time: of one that it has seen JAX remembers what it closed over.
    traced = jax.make_jaxpr(lambda inputs: log_prob_fn(inputs))(inputs)
    if any(isinstance(const, Tracer) for const in traced.consts):
        return attack_fn(log_prob_fn, inputs, *arguments, **static)
    program = _program(
        attack_fn,
        _Same(log_prob_fn),
        tuple(sorted(static.items())),
        str(traced.jaxpr),
        tuple(_Same(const) for const in traced.consts),
    )
    return program(inputs, *arguments)


class _Same:
    """Equal where the object is the same one, which it keeps alive; methods by their object."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.key = (id(getattr(value, "__self__", value)), id(getattr(value, "__func__", value)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=_MAX_PROGRAMS)
def _program(
    attack_fn: Callable[..., Any],
    log_prob_fn: _Same,
    static: tuple[tuple[str, Any], ...],
    text: str,
    consts: tuple[_Same, ...],
) -> Callable[..., Any]:
    del text, consts  # of what log_prob_fn does
    return jax.jit(functools.partial(attack_fn, log_prob_fn.value, **dict(static)))


def _is_concrete(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) and not isinstance(leaf, Tracer)
