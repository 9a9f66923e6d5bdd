"""Convolution whose derivative in its input is no slower inside loops on CPU."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax

_Padding: TypeAlias = tuple[tuple[int, int], ...]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` as `nnx.Conv` calls it, undilated and of one group.

    Forward mode pays for it: `jax.jacfwd` inside a loop takes the slow path on CPU.

    Args:
      x: (B, H, W, I).
      kernel: (h, w, I, O).
      strides: of height and width.
      padding: zeros before and after, of height and width.
      **options: ignored.

    Returns:
      (B, H', W', O).
    """
    del options
    return _convolve(x, kernel, tuple(strides), tuple(padding))


# XLA's CPU compiler has an optimised routine for kernels of layout (h, w, in, out), and transposes
# those of other layouts first: but not inside loops. There the derivative in x, a convolution with
# in and out exchanged in name only, took 7 to 10 times as long, and attacks are such loops.
# Here the tangent of x takes a kernel exchanged in memory as well as in name: the same tangent, but
# its transpose, which is what reverse mode computes, has the layout (h, w, in, out).
@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: _Padding
) -> jax.Array:
    """Convolution with a kernel (h, w, I, O)."""
    layouts = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layouts)


@_convolve.defjvp
def _convolve_tangent(
    strides: tuple[int, ...],
    padding: _Padding,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Convolution is linear in x and in the kernel."""
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    from_x = jax.lax.conv_general_dilated(
        x_dot,
        kernel.swapaxes(2, 3),
        strides,
        padding,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )
    from_kernel = _convolve(x, kernel_dot, strides, padding)
    return _convolve(x, kernel, strides, padding), from_x + from_kernel
