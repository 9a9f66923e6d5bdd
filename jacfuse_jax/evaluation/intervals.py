"""Intervals of rows that depend on each other in more than one way."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import metrics

_SEED = 0


def bootstrap_interval(values: NDArray[Any], groups: NDArray[Any]) -> metrics.BootstrapInterval:
    """The widest of the bootstrap intervals over each grouping, see `metrics.bootstrap_interval`.

    Args:
      values: (N,) or (N, M).
      groups: (N,), equal for rows that are not independent; or (N, G), G groupings, such as by
        recording and by noise clip.
    """
    return _widest([metrics.bootstrap_interval(values, _SEED, groups=g) for g in _columns(groups)])


def paired_bootstrap_interval(
    a: NDArray[Any], b: NDArray[Any], groups: NDArray[Any]
) -> metrics.BootstrapInterval:
    """The same of differences, see `metrics.paired_bootstrap_interval`.

    Args:
      a: (N,) or (N, M).
      b: likewise.
      groups: as in `bootstrap_interval`.
    """
    return _widest(
        [metrics.paired_bootstrap_interval(a, b, _SEED, groups=g) for g in _columns(groups)]
    )


def share_values(clean: NDArray[Any], withstood: NDArray[Any], share: float) -> NDArray[np.float64]:
    """(N,), whose mean is (1 - share) clean + share withstood, in terms that rows contribute.

    Those of attacked rows hold how far they are from the mean of all attacked ones, so that the
    mean of a resample is, to first order, that of its clean and that of its attacked rows.

    Args:
      clean: (N,), of all rows.
      withstood: (n,), of the first n, which were attacked.
      share: of attacked inputs.
    """
    attacked = np.full(len(clean), withstood.mean())
    scale = len(clean) / len(withstood)
    attacked[: len(withstood)] += scale * (withstood - withstood.mean())
    return (1 - share) * clean + share * attacked


def _columns(groups: NDArray[Any]) -> NDArray[Any]:
    return groups.reshape(len(groups), -1).T


def _widest(intervals: list[metrics.BootstrapInterval]) -> metrics.BootstrapInterval:
    low, high = (np.stack([np.asarray(i[n]) for i in intervals]) for n in (1, 2))
    return intervals[0]._replace(low=low.min(axis=0), high=high.max(axis=0))
