"""Intervals of a mean by resampling samples, or whole groups of samples that depend on each other.

A resample is described by how often it holds each group, not by the list of its samples: the means
of all resamples are then one matrix product with the sums over groups. By hand, since
`scipy.stats.bootstrap` resamples single values, one statistic at a time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MAX_COUNTS = 2**22  # resampled counts held at a time: 64 MB, as integers and as floats


class BootstrapInterval(NamedTuple):
    """A mean and its interval, float64.

    Attributes:
      mean: () or (M,), mean over the samples.
      low: () or (M,), lower end of the interval.
      high: () or (M,), upper end.
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def bootstrap_interval(
    values: ArrayLike,
    seed: int,
    *,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> BootstrapInterval:
    """Percentile bootstrap interval of the mean over samples.

    G groups are drawn with replacement from the G groups of the data. With c_g the number of times
    that group g was drawn, S_g the sum of its values and n_g its size, the mean of a resample is

        sum_g c_g S_g / sum_g c_g n_g,    c ~ Multinomial(G; 1/G, ..., 1/G),

    and the interval reaches from quantile (1 - level) / 2 of these means to (1 + level) / 2. Every
    sample is a group of its own unless `groups` says otherwise. With weights, S_g is the weighted
    sum, and n_g the sum of the weights.

    Too narrow for few groups, as it takes their sample variance for the true one: 95% intervals
    of 10 groups contain a normal mean in 90% of cases, of 40 groups in 94%. Too narrow, too, for a
    mean near the end of its range: with all values equal its width is zero; prefer
    `wilson_interval` for an accuracy near 0 or 1 of independent samples.

    Args:
      values: (N,) or (N, M), such as 1 for a correct prediction and 0 for a wrong one, a column a
        method; columns share the resamples.
      seed: not negative; the same seed gives the same resamples.
      groups: (N,), integer, equal for samples that are not independent, such as test pairs with a
        recording in common; None for independent samples.
      weights: (N,), not negative, of the samples; None: all the same.
      num_resamples: R, at least one.
      level: share of intervals that are to contain the expectation, in (0, 1).

    Returns:
      The mean and its interval, () or (M,); NaN where a value of the column is NaN.

    Raises:
      TypeError: groups are not integers.
      ValueError: shapes disagree, there are less than two groups of positive weight, or R, level or
        a weight is out of range.

    References:
      Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (chapter 13, percentiles).
      Cameron, Gelbach, Miller, "Bootstrap-Based Improvements for Inference with Clustered Errors",
      2008 (groups, and what to do about few of them).
    """
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2):
        raise ValueError(f"values must have shape (N,) or (N, M), got {values.shape}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    row_weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if row_weights.shape != values.shape[:1] or not np.all(row_weights >= 0):
        raise ValueError(f"weights must be ({len(values)},), not negative, got {weights}")
    sums, sizes = _group_sums(values, groups, row_weights)
    num_groups = len(sizes)
    if num_groups < 2:
        raise ValueError(
            f"groups must be at least two, got {num_groups}: one says nothing about the spread"
        )
    rng = np.random.default_rng(seed)
    share = np.full(num_groups, 1 / num_groups)
    chunk = max(1, _MAX_COUNTS // num_groups)
    means = np.empty((num_resamples, *values.shape[1:]))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        counts = rng.multinomial(num_groups, share, size).astype(np.float64)
        means[start : start + size] = ((counts @ sums).T / (counts @ sizes)).T
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return BootstrapInterval(
        mean=np.average(values, axis=0, weights=row_weights), low=low, high=high
    )


def paired_bootstrap_interval(
    a: ArrayLike,
    b: ArrayLike,
    seed: int,
    *,
    groups: ArrayLike | None = None,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> BootstrapInterval:
    """Percentile bootstrap interval of mean(a) - mean(b), both on the same resamples.

    A mean is linear in the values, so this is the interval of the mean of a - b: narrower than two
    intervals held side by side wherever a and b rise and fall on the same samples.

    Args:
      a: (N,) or (N, M), values of one method.
      b: the values of another on the same samples, in the same shape.
      seed: as for `bootstrap_interval`, like the options.
      groups: (N,), integer, or None.
      num_resamples: at least one.
      level: in (0, 1).

    Returns:
      The difference of the means and its interval, () or (M,).

    Raises:
      TypeError: groups are not integers.
      ValueError: as for `bootstrap_interval`, or the shapes of a and b differ.

    References:
      Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, seed, groups=groups, num_resamples=num_resamples, level=level)


def _group_sums(
    values: NDArray[np.float64], groups: ArrayLike | None, weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted sums (G,) or (G, M) of each group, and sizes (G,), of groups that have any."""
    weighted = (values.T * weights).T
    if groups is None:
        return weighted[weights > 0], weights[weights > 0]
    groups = np.asarray(groups)
    if not np.issubdtype(groups.dtype, np.integer):
        raise TypeError(f"groups must be integers, got {groups.dtype}")
    if groups.shape != values.shape[:1]:
        raise ValueError(f"groups must have shape ({len(values)},), got {groups.shape}")
    names, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, index, weighted)
    sizes = np.bincount(index, weights, len(names)).astype(np.float64)
    return sums[sizes > 0], sizes[sizes > 0]
