"""Batches of constant shape that cover every row exactly once."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST_BATCH = 256


def pad_rows(rows: Any) -> NDArray[Any]:
    """Adds rows of zeros up to a power of two, at least 256, so that few shapes are compiled.

    Args:
      rows: (N, ...), N >= 1.

    Returns:
      A NumPy array of the same dtype.
    """
    array = np.asarray(rows)
    size = max(_SMALLEST_BATCH, 1 << (len(array) - 1).bit_length())
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


def num_batches(num_examples: int, batch_size: int) -> int:
    """Returns ceil(num_examples / batch_size), the length of `iterate_batches`.

    Args:
      num_examples: rows of the data, not negative.
      batch_size: rows of a batch, at least 1.

    Returns:
      The number of batches.

    Raises:
      ValueError: batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return math.ceil(num_examples / batch_size)


def iterate_batches(
    arrays: Mapping[str, Any],
    batch_size: int,
    *,
    shuffle_seed: int | Sequence[int] | None = None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Iterates over rows in batches that all have the same shapes.

    The last partial batch is filled up with copies of the rows that came first, and "mask" tells
    rows from copies: one compiled function serves every batch, and sums weighted by the mask count
    every row exactly once. Copies are as varied as rows, since layers that normalise over a batch
    see them, too.

    Args:
      arrays: {name: (N, ...)}, N >= 1 and the same for all; "mask" is not a legal name. Whatever
        has a length and takes an array of row numbers will do: rows on disk are read batch by
        batch.
      batch_size: B, at least 1; may exceed N.
      shuffle_seed: for `np.random.default_rng`, for example (seed, epoch); None keeps the order.

    Returns:
      An iterator of ceil(N / B) dicts {name: (B, ...)} in the arrays' dtypes, and "mask": (B,)
      float32, 1 for a row and 0 for a copy.

    Raises:
      ValueError: no arrays, no rows, unequal lengths, an array called "mask", or batch_size < 1;
        raised by the call, before the first batch is asked for.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"arrays must be present and of equal length, got {lengths}")
    if "mask" in arrays:
        raise ValueError('"mask" is added to every batch and cannot be the name of an array')
    num_examples = next(iter(lengths.values()))
    if num_examples == 0:
        raise ValueError(f"arrays must hold at least one row, got {lengths}")
    count = num_batches(num_examples, batch_size)
    order = np.arange(num_examples)
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(num_examples)
    return (_batch(arrays, order, i * batch_size, batch_size) for i in range(count))


def _batch(
    arrays: Mapping[str, Any], order: NDArray[np.intp], start: int, batch_size: int
) -> dict[str, NDArray[Any]]:
    """Gathers the batch that starts at a position of the order, and adds the mask."""
    positions = np.arange(start, start + batch_size)
    rows = order[positions % len(order)]
    batch = {name: array[rows] for name, array in arrays.items()}
    batch["mask"] = (positions < len(order)).astype(np.float32)
    return batch
