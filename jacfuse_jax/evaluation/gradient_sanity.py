"""Checks of the gradients that attacks follow, for `sanity`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import attacks
from jacfuse_jax.evaluation.sanity import Arrays, Check, Subject, iterate_subject, make_check

_MAX_ZERO_GRADIENTS = 0.01
_STEP = 1e-6  # of finite differences, in float64
_OFFSET = 0.01  # of the inputs at which they are taken, as a share of the valid range
_MAX_KINKS = 0.05  # samples with a kink of the classifier within that step


def check_gradients(subject: Subject, *, batch_size: int, key: jax.Array) -> list[Check]:
    """Looks at the gradients that attacks follow, and at samples that are not to know each other.

    Args:
      subject: the prediction; its function must also take float64.
      batch_size: samples at a time.
      key: of the directions of finite differences.

    Returns:
      The checks, in a fixed order.
    """
    zero, infinite, deviations, mixing = [], [], [], []
    for index, batch in enumerate(iterate_subject(subject, batch_size)):
        count = int(batch.pop("mask").sum())
        labels = batch.pop("label")[:count]
        inputs = {name: array[:count] for name, array in batch.items()}
        gradient = np.asarray(_gradient(subject, inputs, labels)).reshape(count, -1)
        is_finite = np.isfinite(gradient).all(axis=1)
        infinite.append(~is_finite)
        zero.append(is_finite & (gradient == 0).all(axis=1))
        deviations.append(
            _deviation_from_differences(subject, inputs, labels, jax.random.fold_in(key, index))
        )
        mixing.append(_mixing(subject, inputs))
    is_kink = np.concatenate(deviations) > 1e-3
    return [
        make_check(
            "gradients match finite differences",
            is_kink.mean(),
            _MAX_KINKS,
            "share of samples whose directional derivative is off by 0.1%, in float64",
        ),
        make_check(
            "gradients do not vanish",
            np.concatenate(zero).mean(),
            _MAX_ZERO_GRADIENTS,
            "share of samples with a gradient of exactly zero, in float32",
        ),
        make_check(
            "gradients are finite",
            np.concatenate(infinite).mean(),
            0.0,
            "share of samples with a gradient that is not finite, in float32",
        ),
        make_check(
            "samples do not depend on their batch",
            max(mixing),
            1e-5,
            "largest change of a probability when the batch is reversed or halved",
        ),
    ]


def _loss(subject: Subject, inputs: Arrays, labels: NDArray[Any], x: jax.Array) -> jax.Array:
    """Cross-entropy of every sample, (B,), as a function of the perturbed modality."""
    return attacks.losses.cross_entropy(
        subject.log_prob_fn({**inputs, subject.perturbed: x}), labels
    )


def _gradient(subject: Subject, inputs: Arrays, labels: NDArray[Any]) -> jax.Array:
    return jax.grad(lambda x: _loss(subject, inputs, labels, x).sum())(
        jnp.asarray(inputs[subject.perturbed])
    )


def _deviation_from_differences(
    subject: Subject, inputs: Arrays, labels: NDArray[Any], key: jax.Array
) -> NDArray[np.float64]:
    """|derivative - central difference| / |gradient| along one direction a sample, in float64.

    Beside the inputs, since in them equal pixels put the classifier onto kinks.
    """
    shape = inputs[subject.perturbed].shape
    key_offset, key_direction = jax.random.split(key)
    low, high = subject.valid_range
    axes = tuple(range(1, len(shape)))
    offset = _OFFSET * (high - low) * np.asarray(jax.random.normal(key_offset, shape), np.float64)
    direction = np.array(jax.random.normal(key_direction, shape), np.float64)
    direction /= np.sqrt((direction**2).sum(axis=axes, keepdims=True))
    with jax.enable_x64(True):
        wide = {name: np.asarray(array, np.float64) for name, array in inputs.items()}
        wide[subject.perturbed] += offset
        x = wide[subject.perturbed]
        gradient = np.asarray(_gradient(subject, wide, labels))
        forward, backward = (
            np.asarray(_loss(subject, wide, labels, jnp.asarray(x + sign * _STEP * direction)))
            for sign in (1, -1)
        )
    derivative = (gradient * direction).sum(axis=axes)
    difference = (forward - backward) / (2 * _STEP)
    size = np.sqrt((gradient**2).mean(axis=axes))
    # What float64 cannot tell from a gradient of zero.
    rounding = 10 * np.finfo(np.float64).eps * (1 + np.abs(forward)) / _STEP
    return np.maximum(np.abs(derivative - difference) - rounding, 0) / np.maximum(size, 1e-300)


def _mixing(subject: Subject, inputs: Arrays) -> float:
    """Largest change of a probability when the batch is put in another order or is smaller."""

    def probs(rows: slice) -> NDArray[Any]:
        chosen = {name: array[rows] for name, array in inputs.items()}
        return np.exp(np.asarray(subject.log_prob_fn(chosen)))

    whole = probs(slice(None))
    half = slice(0, -(-len(whole) // 2))
    reversed_order = probs(slice(None, None, -1))[::-1]
    return max(np.abs(whole - reversed_order).max(), np.abs(whole[half] - probs(half)).max())
