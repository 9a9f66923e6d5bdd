"""Rows that are better left to somebody else: how many, for a stated risk."""

from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

_NUM_COVERAGES = 20
_ROUNDING = 1e-9


class CoverageCurve(NamedTuple):
    """What `coverage_curve` returns, a point a threshold, the strictest first.

    Attributes:
      threshold: (T,), descending; rows whose criterion is at least that are decided.
      coverage: (T,), share of rows that are decided.
      accuracy: (T,), share of these that are right.
      area: mean of 1 - accuracy over all coverages, AURC: smaller is better.
    """

    threshold: NDArray[np.float64]
    coverage: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    area: float


class Abstention(NamedTuple):
    """What `choose_threshold` returns.

    Attributes:
      threshold: rows whose criterion is at least that are decided; infinite where nothing is safe.
      coverage: share of rows that are decided.
      risk: share of these that are wrong; NaN where there are none.
      high: upper limit of the risk.
    """

    threshold: float
    coverage: float
    risk: float
    high: float


def coverage_curve(criterion: ArrayLike, correct: ArrayLike) -> CoverageCurve:
    """Accuracy of the rows that a criterion is largest of, for every number of them.

    Args:
      criterion: (N,), larger where the prediction is trusted more, such as the probability of the
        predicted class, or whether or by what margin `certificates.certify_modality` certifies it.
      correct: (N,), in [0, 1], whether, or how often, predictions are right.

    Returns:
      The curve; rows of one value are decided together.

    Raises:
      ValueError: shapes disagree, there is no row, or a criterion is NaN.

    References:
      El-Yaniv, Wiener, "On the Foundations of Noise-free Selective Classification", 2010.
      Geifman, Uziel, El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
      2019 (AURC).
    """
    values, right = _check(criterion, correct)
    order = np.argsort(-values, kind="stable")
    sums = right[order].cumsum()
    counts = np.arange(1, len(values) + 1)
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    accuracy = sums[ends] / counts[ends]
    steps = np.diff(counts[ends], prepend=0)
    return CoverageCurve(
        values[order][ends],
        counts[ends] / len(values),
        accuracy,
        float((steps * (1 - accuracy)).sum() / len(values)),
    )


def choose_threshold(
    criterion: ArrayLike,
    correct: ArrayLike,
    max_risk: float,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Abstention:
    """The threshold that decides most rows at a risk that is most probably as small as stated.

    Thresholds that decide 5%, 10%, ... of the rows are tried from the strictest on, and the last
    one counts before the upper limit of the risk exceeds `max_risk`. Those that decide too few rows
    to tell, were all of them right, are passed over. Tests in an order that was fixed before need
    no correction for their number: the risk of the threshold is above `max_risk` with probability
    1 - level at most, for independent rows. The limit is Clopper and Pearson's. Of groups it is
    that of as many rows as there are groups, each as wrong as all of them: exact where groups of
    one size are right or wrong as a whole, and too large otherwise. Few groups tell little: a risk
    of 5% takes 59 of them.

    Args:
      criterion: (N,), as in `coverage_curve`, of validation rows.
      correct: (N,), whether predictions are right, 0 or 1.
      max_risk: share of decided rows that may be wrong, in [0, 1].
      groups: (N,), integer, equal for rows that depend on each other; None: each by itself.
      level: in (0, 1).

    Returns:
      The threshold, and what became of the rows.

    Raises:
      ValueError: as `coverage_curve`, max_risk or level lies outside its interval, or correct is
        neither 0 nor 1.

    References:
      Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then Test: Calibrating Predictive Algorithms
      to Achieve Risk Control", 2021 (fixed order). Geifman, El-Yaniv, "Selective Classification for
      Deep Neural Networks", 2017.
    """
    values, right = _check(criterion, correct)
    if not 0 <= max_risk <= 1 or not 0 < level < 1:
        raise ValueError(
            f"max_risk must lie in [0, 1], level in (0, 1), got {max_risk} and {level}"
        )
    if not np.isin(right, [0, 1]).all():
        raise ValueError("correct must be 0 or 1")
    members = None if groups is None else np.asarray(groups)
    found = Abstention(np.inf, 0.0, np.nan, np.nan)
    ordered = np.sort(values)[::-1]
    places = np.ceil(len(values) * np.arange(1, _NUM_COVERAGES + 1) / _NUM_COVERAGES).astype(int)
    for threshold in np.unique(ordered[places - 1])[::-1]:
        is_decided = values >= threshold
        wrong = 1 - right[is_decided]
        num_units = len(wrong)
        if members is not None:
            num_units = len(np.unique(members[is_decided]))
        if _clopper_pearson(0, num_units, level) > max_risk:
            continue
        # Rounded up, but for what floating point adds to a whole number.
        num_wrong = int(np.ceil(num_units * wrong.mean() - _ROUNDING))
        high = _clopper_pearson(num_wrong, num_units, level)
        if high > max_risk:
            break
        found = Abstention(float(threshold), float(is_decided.mean()), float(wrong.mean()), high)
    return found


def _check(
    criterion: ArrayLike, correct: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in float64; raises unless they are (N,), N >= 1, and the criterion is no NaN."""
    values, right = (np.asarray(x, np.float64) for x in (criterion, correct))
    if values.ndim != 1 or values.shape != right.shape or not values.size:
        raise ValueError(f"arrays must be (N,), N >= 1, got {values.shape} and {right.shape}")
    if np.isnan(values).any():
        raise ValueError(f"criterion is NaN in {np.isnan(values).sum()} rows")
    return values, right


def _clopper_pearson(num_wrong: int, num_rows: int, level: float) -> float:
    """The upper limit of a probability of which so many events were seen."""
    if num_wrong == num_rows:
        return 1.0
    return float(scipy.stats.beta.ppf(level, num_wrong + 1, num_rows - num_wrong))
