"""The trade-off of clean against robust accuracy over models or parameters."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jacfuse_jax.metrics._shares import check_shares


def pareto_front(clean: ArrayLike, robust: ArrayLike) -> NDArray[np.intp]:
    """Indices of the points that no other dominates, both accuracies being maximised.

    Point i dominates j where clean_i >= clean_j and robust_i >= robust_j, one of them strictly.
    Equal points do not dominate each other. Quadratic in N.

    Args:
      clean: (N,), in [0, 1], accuracies on clean data, N >= 1.
      robust: (N,), in [0, 1], accuracies of the same methods under perturbation.

    Returns:
      (P,), in order of clean accuracy: along it the robust accuracy never rises.

    Raises:
      ValueError: shapes disagree, or accuracies leave [0, 1].
    """
    clean, robust = _check_points(clean, robust)
    not_worse = (clean[:, None] >= clean) & (robust[:, None] >= robust)
    better = (clean[:, None] > clean) | (robust[:, None] > robust)
    front = np.flatnonzero(~(not_worse & better).any(axis=0))
    return front[np.argsort(clean[front], kind="stable")]


def hypervolume(
    clean: ArrayLike, robust: ArrayLike, reference: tuple[float, float] = (0.0, 0.0)
) -> float:
    """Area that the points dominate above a reference, |union_i [r_1, clean_i] x [r_2, robust_i]|.

    One for a point at (1, 1) and the reference (0, 0). It grows with every point beyond the front;
    points that do not exceed the reference in both accuracies add nothing.

    Args:
      clean: (N,), in [0, 1], accuracies on clean data, N >= 1.
      robust: (N,), in [0, 1], accuracies of the same methods under perturbation.
      reference: (r_1, r_2), in [0, 1], such as the accuracy of chance.

    Returns:
      The area, in [0, 1].

    Raises:
      ValueError: shapes disagree, or accuracies leave [0, 1].

    References:
      Zitzler and Thiele, "Multiobjective Evolutionary Algorithms: A Comparative Case Study and the
      Strength Pareto Approach", 1999.
    """
    clean, robust = _check_points(clean, robust)
    low, floor = check_shares(clean_reference=reference[0], robust_reference=reference[1])
    order = np.argsort(-clean)
    # Right to left, the dominated strip between two neighbours is as high as the best point so far.
    edges = np.maximum(clean[order] - low, 0)
    heights = np.maximum.accumulate(np.maximum(robust[order] - floor, 0))
    return float((edges - np.append(edges[1:], 0)) @ heights)


def _check_points(
    clean: ArrayLike, robust: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns both as float64; raises ValueError unless they are shares of one shape (N,)."""
    clean, robust = check_shares(clean=clean, robust=robust)
    if clean.ndim != 1:
        raise ValueError(f"clean and robust must have shape (N,), got {clean.shape}")
    return clean, robust
