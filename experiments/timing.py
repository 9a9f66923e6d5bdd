"""A stopwatch for compiled programs, the memory they take, and a yardstick."""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Shorter programs are called several times a repeat, so that the clock's steps do not matter.
_MIN_REPEAT_S = 0.02


class Timing(NamedTuple):
    """What `measure` returns.

    Attributes:
      compile_s: seconds to trace, lower and compile; None for functions that are not compiled.
      call_s: seconds a call, one entry a repeat.
      peak_bytes: see `program_bytes`; None for functions that are not compiled.
    """

    compile_s: float | None
    call_s: list[float]
    peak_bytes: int | None


def measure(
    fn: Callable[..., Any], *args: Any, num_repeats: int, is_compiled: bool = True
) -> Timing:
    """Times a function, waiting for its results on every call.

    One call warms up, and the next tells how many calls make a repeat of about 20 ms; where the
    first takes longer than that, a repeat is one call.

    Args:
      fn: of `args`; results are dropped at once, so that no more than one is held.
      *args: pytrees of arrays.
      num_repeats: at least 1.
      is_compiled: whether to compile `fn` ahead of time; False calls it as it is.

    Returns:
      `Timing(compile_s, call_s, peak_bytes)`.
    """
    compile_s = peak_bytes = None
    if is_compiled:
        start = time.perf_counter()
        fn = compiled = jax.jit(fn).lower(*args).compile()
        compile_s = time.perf_counter() - start
        peak_bytes = program_bytes(compiled)

    def seconds_a_call(num_calls: int) -> float:
        start = time.perf_counter()
        for _ in range(num_calls):
            jax.block_until_ready(fn(*args))
        return (time.perf_counter() - start) / num_calls

    num_calls = 1
    if seconds_a_call(1) < _MIN_REPEAT_S:
        num_calls = math.ceil(_MIN_REPEAT_S / seconds_a_call(1))
    return Timing(compile_s, [seconds_a_call(num_calls) for _ in range(num_repeats)], peak_bytes)


def program_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Arguments, outputs and temporaries of a program, in bytes; None where it does not tell.

    Args:
      compiled: as `jax.jit(fn).lower(...).compile()` returns it. Arguments that it does not use are
        not counted, nor what library routines (LAPACK) allocate for themselves.
    """
    stats: Any = compiled.memory_analysis()
    if stats is None:
        return None
    return stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes


def matmul_flop_per_s(size: int, *, num_repeats: int) -> float:
    """Rate of a float32 matrix product, 2 n^3 / median seconds: the yardstick of a device.

    Args:
      size: n, of two n x n matrices; in full float32 precision, also on accelerators.
      num_repeats: at least 1.
    """
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    product_fn = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    timing = measure(product_fn, matrix, matrix, num_repeats=num_repeats)
    return 2 * size**3 / statistics.median(timing.call_s)
