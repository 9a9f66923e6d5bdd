"""Folds of rows that keep groups whole."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def assign_folds(
    num_rows: int, *, groups: ArrayLike | None = None, num_folds: int = 5, seed: int = 0
) -> NDArray[np.intp]:
    """Assigns rows to folds at random, all rows of a group to the same one.

    Groups go, the larger ones first, to the fold that has the fewest rows so far.

    Args:
      num_rows: N.
      groups: (N,), equal for rows that depend on each other; None: each is a group of its own.
      num_folds: at least two. There are no more than groups.
      seed: not negative.

    Returns:
      (N,), from 0 to the number of folds - 1.

    Raises:
      ValueError: there are fewer than two groups or folds, or groups are not (N,).
    """
    labels = np.arange(num_rows) if groups is None else np.asarray(groups)
    if labels.shape != (num_rows,):
        raise ValueError(f"groups must have shape ({num_rows},), got {labels.shape}")
    names, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if min(len(names), num_folds) < 2:
        raise ValueError(
            f"two groups and two folds are needed at least, got {len(names)} and {num_folds}"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    num_rows_of = np.zeros(min(num_folds, len(names)), np.intp)
    fold_of = np.empty(len(names), np.intp)
    for group in order:
        fold_of[group] = num_rows_of.argmin()
        num_rows_of[fold_of[group]] += sizes[group]
    return fold_of[index]
