"""A stopwatch for compiled programs, the memory they take, and yardsticks of the device."""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.measuring.flops import count_flops

# Shorter programs are called several times a repeat, so that the clock's steps do not matter.
_MIN_REPEAT_S = 0.02


class Timing(NamedTuple):
    """What `measure` returns.

    Attributes:
      compile_s: seconds to trace, lower and compile; None for functions that are not compiled.
      call_s: seconds a call, one entry a repeat.
      peak_bytes: see `program_bytes`; None for functions that are not compiled.
      flops: see `flops.count_flops`; None for functions that are not compiled, too.
    """

    compile_s: float | None
    call_s: list[float]
    peak_bytes: int | None
    flops: int | None


def measure(
    fn: Callable[..., Any],
    *args: Any,
    num_repeats: int,
    max_s: float = math.inf,
    is_compiled: bool = True,
) -> Timing:
    """Times a function, waiting for its results on every call.

    One call warms up, and the next tells how many calls make a repeat of about 20 ms; where the
    first takes longer than that, a repeat is one call.

    Args:
      fn: of `args`; results are dropped at once, so that no more than one is held.
      *args: pytrees of arrays.
      num_repeats: at least 1.
      max_s: seconds after which no further repeat starts; where the warm-up alone takes so long, it
        is the only one.
      is_compiled: whether to compile `fn` ahead of time; False calls it as it is.

    Returns:
      `Timing(compile_s, call_s, peak_bytes, flops)`.
    """
    compile_s = peak_bytes = flops = None
    if is_compiled:
        start = time.perf_counter()
        traced = jax.jit(fn).trace(*args)
        fn = compiled = traced.lower().compile()
        compile_s = time.perf_counter() - start
        peak_bytes, flops = program_bytes(compiled), count_flops(traced.jaxpr.jaxpr)

    def seconds_a_call(num_calls: int) -> float:
        start = time.perf_counter()
        for _ in range(num_calls):
            jax.block_until_ready(fn(*args))
        return (time.perf_counter() - start) / num_calls

    num_calls, start = 1, time.perf_counter()
    call_s = [warm_up_s := seconds_a_call(1)]
    if warm_up_s < _MIN_REPEAT_S:
        num_calls = math.ceil(_MIN_REPEAT_S / seconds_a_call(1))
    if warm_up_s < max_s:
        call_s = [seconds_a_call(num_calls)]
    while len(call_s) < num_repeats and time.perf_counter() - start < max_s:
        call_s.append(seconds_a_call(num_calls))
    return Timing(compile_s, call_s, peak_bytes, flops)


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


def copy_bytes_per_s(num_bytes: int, *, num_repeats: int) -> float:
    """Rate at which memory is read and written, 2 num_bytes / median seconds of x -> -x.

    Args:
      num_bytes: of the array, float32; well above the caches, or it is these that are measured.
      num_repeats: at least 1.
    """
    array = jnp.ones(max(1, num_bytes // 4), jnp.float32)
    timing = measure(jnp.negative, array, num_repeats=num_repeats)
    return 2 * array.nbytes / statistics.median(timing.call_s)
