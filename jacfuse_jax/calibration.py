"""Calibration of a classifier on validation data."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_floating

_MAX_LOG = 10.0  # of the temperature: from 5e-5 to 2e4
_NUM_HALVINGS = 60


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The temperature T that minimises the negative log-likelihood of softmax(z / T).

    The likelihood is convex in b = 1 / T, with the increasing derivative

        mean_n [ sum_k softmax(b z_n)_k z_nk - z_n(label) ],

    whose zero is found by bisection in log b. Where it has none, T is the end of the interval
    [5e-5, 2e4]: the lower one for labels that the logits never miss, the upper one for logits that
    know less than nothing. Divide logits by T before fusing; classes keep their order.

    Args:
      logits: z, (N, K), float32 or float64, of data that the classifier was not trained on.
      labels: (N,), integer.

    Returns:
      T, a scalar in the dtype of the logits; NaN where the logits are not finite.

    Raises:
      TypeError: logits are not float32 or float64.
      ValueError: shapes disagree, or there is no sample.

    References:
      Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017.
    """
    z, labels = jnp.asarray(logits), jnp.asarray(labels)
    check_floating("logits", z)
    if z.ndim != 2 or labels.shape != z.shape[:1] or not len(z):
        raise ValueError(
            f"logits and labels must be (N, K) and (N,), N >= 1, got {z.shape} and {labels.shape}"
        )
    z_label = jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0]

    def slope(log_b: jax.Array) -> jax.Array:
        probs = jax.nn.softmax(jnp.exp(log_b) * z)
        return ((probs * z).sum(axis=1) - z_label).mean()

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        too_low = slope(middle) <= 0  # zero, too, where all labels are certain to rounding
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    bound = jnp.asarray(_MAX_LOG, z.dtype)
    low, high = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, (-bound, bound))
    return jnp.where(jnp.isfinite(z).all(), jnp.exp(-(low + high) / 2), jnp.nan)
