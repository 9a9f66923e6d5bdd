"""Logits, probabilities or their logarithms: what the numbers of an input are."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax.predictions.npy import ArrayOnDisk
from jacfuse_jax.programs import InputError

_SUM_TOLERANCE = 0.02  # of logarithms that were rounded to bfloat16


def look_like_probs(logits: ArrayOnDisk) -> bool:
    """Whether every row lies in [0, 1] and sums to one; rows with NaN say nothing.

    Args:
      logits: (N, K); reads no more than the first rows where these are logits.
    """
    num_known = 0
    for judged in _judge(logits, are_logs=False):
        if judged.is_wrong.any():
            return False
        num_known += judged.num_known
    return num_known > 0


def check_probs(logits: ArrayOnDisk, kind: str) -> None:
    """Raises InputError where a row without NaN is no distribution over the classes.

    Args:
      logits: (N, K).
      kind: "probabilities", or "log_probabilities" where they are the logarithms of such.
    """
    for judged in _judge(logits, are_logs=kind == "log_probabilities"):
        if judged.is_wrong.any():
            i = int(judged.is_wrong.argmax())
            raise InputError(
                f"--inputs_are={kind}: in row {judged.start + i} of {logits.name} probabilities "
                f"begin at {judged.smallest[i]:.3g} and sum to {judged.sums[i]:.6g}; say what it is"
            )


def log_of_probs(probs: NDArray[Any]) -> NDArray[np.float64]:
    """Log p, where 0 counts as the smallest positive number of the dtype: it was rounded to 0.

    As -inf, which fusion rules take at its word, it would exclude the class whatever other
    modalities say, and leave none where between them they exclude all; no softmax means that.

    Args:
      probs: (n, K), floating.
    """
    smallest = float(jnp.finfo(probs.dtype).smallest_subnormal)
    return np.log(np.maximum(probs.astype(np.float64), smallest))


class _Judged(NamedTuple):
    """Consecutive rows: which hold no NaN and are no distribution, and what shows it."""

    start: int
    num_known: int
    is_wrong: NDArray[np.bool_]
    smallest: NDArray[np.float64]
    sums: NDArray[np.float64]


def _judge(logits: ArrayOnDisk, *, are_logs: bool) -> Iterator[_Judged]:
    """Goes through all rows, some at a time."""
    for start, chunk in logits.chunks():
        values = chunk.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.exp(values) if are_logs else values
            smallest, sums = values.min(axis=1), values.sum(axis=1)
            is_wrong = (smallest < 0) | (np.abs(sums - 1) > _SUM_TOLERANCE)  # NaN is neither
        yield _Judged(start, int((~np.isnan(sums)).sum()), is_wrong, smallest, sums)
