"""Losses for an attack to raise, one number a sample, on the log-probabilities of a prediction.

Cross-entropy rises as p(label) falls, and is flat where the prediction is saturated. The others see
only differences of log-probabilities, which are those of the logits: a margin is positive where the
prediction is wrong and negative where it is right; the difference of logits ratio is a margin that
no temperature changes.

At ties the gradient is that of one of the pieces, or a mean of them; NaN in a row stays in it.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_labels, in_full_precision, pick
from jacfuse_jax._devices import on_each_device
from jacfuse_jax._simplex import mark_class


def cross_entropy(log_probs: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Cross-entropy, -log p(label).

    Infinite where p(label) = 0, with the finite gradient -1 in that log-probability.

    Args:
      log_probs: (B, K), floating.
      labels: (B,), integer in [0, K).

    Returns:
      (B,) losses, in the dtype of the log-probabilities, float32 for half precision; NaN where a
      label is traced and no class.

    Raises:
      TypeError: log_probs are not floating, or labels are not integer.
      ValueError: shapes disagree, a label is no class.
    """
    z, y = _check(log_probs, labels, min_classes=1)
    return -pick(z, y)


def margin(log_probs: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Margin of the strongest wrong class, max_{k != label} log p_k - log p(label).

    -inf where p(label) = 1 exactly and inf where p(label) = 0, with finite gradients. Wrong classes
    that tie share the gradient evenly.

    Args:
      log_probs: (B, K), floating, K >= 2.
      labels: (B,), integer in [0, K).

    Returns:
      (B,) losses, in the dtype of the log-probabilities, float32 for half precision; NaN where a
      label is traced and no class.

    Raises:
      TypeError: log_probs are not floating, or labels are not integer.
      ValueError: shapes disagree, a label is no class, or fewer than 2 classes.

    References:
      Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017.
    """
    z, y = _check(log_probs, labels, min_classes=2)
    return mask_label(z, y).max(axis=-1) - pick(z, y)


def dlr(log_probs: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Difference of logits ratio, (max_{k != label} z_k - z_label) / (z_(1) - z_(3)).

    z = log_probs and z_(1) >= z_(2) >= z_(3) >= ... are its sorted entries; lies in [-1, 0] for a
    correct prediction. Neither a shift nor a positive factor of the logits changes it, as long as
    z_(1) - z_(3) exceeds the rounding error: that denominator is at least the eps of the dtype, so
    that ties give finite gradients. p_k = 0 stands for its limit p_k -> 0, alike in all such
    classes, and has gradient zero.

    Args:
      log_probs: (B, K), floating, K >= 3.
      labels: (B,), integer in [0, K).

    Returns:
      (B,) losses, in the dtype of the log-probabilities, float32 for half precision; NaN where a
      label is traced and no class.

    Raises:
      TypeError: log_probs are not floating, or labels are not integer.
      ValueError: shapes disagree, a label is no class, or fewer than 3 classes.

    References:
      Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks", 2020.
    """
    z, y = _check(log_probs, labels, min_classes=3)
    z = _bound_below(z)
    largest = _largest(z, 3)
    return margin(z, y) / _floor(largest[:, 0] - largest[:, 2])


def targeted_dlr(log_probs: ArrayLike, labels: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Targeted difference of logits ratio, (z_target - z_label) / (z_(1) - (z_(3) + z_(4)) / 2).

    z = log_probs and z_(1) >= z_(2) >= ... are its sorted entries; ties and p_k = 0 as in `dlr`. A
    target that is the label gives zero.

    Args:
      log_probs: (B, K), floating, K >= 4.
      labels: (B,), integer in [0, K).
      targets: (B,), integer in [0, K); the class that each sample is driven to.

    Returns:
      (B,) losses, in the dtype of the log-probabilities.

    Raises:
      TypeError: log_probs are not floating, or labels or targets are not integer.
      ValueError: shapes disagree, a label is no class, or fewer than 4 classes.

    References:
      Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks", 2020.
    """
    z, y = _check(log_probs, labels, min_classes=4)
    t = check_labels("targets", targets, *z.shape)
    z = _bound_below(z)
    largest = _largest(z, 4)
    spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    return (pick(z, t) - pick(z, y)) / _floor(spread)


def mask_label(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
    """The log-probabilities with -inf at the labels, so that wrong classes remain."""
    return jnp.where(mark_class(labels, log_probs), -jnp.inf, log_probs)


def _largest(log_probs: jax.Array, count: int) -> jax.Array:
    """The largest entries of every sample, (B, count), in descending order."""
    return on_each_device(lambda z: jax.lax.top_k(z, count)[0], log_probs)


def _check(
    log_probs: ArrayLike, labels: ArrayLike, min_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Returns both as arrays; raises unless they are (B, K) with enough classes, and (B,)."""
    z = in_full_precision("log_probs", jnp.asarray(log_probs))
    if z.ndim != 2 or z.shape[1] < min_classes:
        raise ValueError(f"log_probs must have shape (B, K) with K >= {min_classes}, got {z.shape}")
    return z, check_labels("labels", labels, *z.shape)


def _bound_below(log_probs: jax.Array) -> jax.Array:
    """Replaces -inf by a number whose ratios, squares included, do not overflow; keeps NaN."""
    return jnp.maximum(log_probs, -(float(jnp.finfo(log_probs.dtype).max) ** 0.5))


def _floor(denominator: jax.Array) -> jax.Array:
    """At least eps: differences of log-probabilities below it are rounding errors."""
    return jnp.maximum(denominator, jnp.finfo(denominator.dtype).eps)
