"""Robustness as figures that compare models: areas, differences and ratios.

All work on a few accuracies, in NumPy float64. Accuracies and errors are shares in [0, 1].
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jacfuse_jax.metrics._shares import check_shares


def robustness_curve_area(severities: ArrayLike, accuracies: ArrayLike) -> float:
    """Area under accuracy against severity over the range, int a(s) ds / (s_S - s_1).

    By trapezoids, so that a constant curve has its own accuracy as area, whatever the severities
    are. Liang et al. (MultiBench) call this area, not divided by the range, relative robustness.

    Args:
      severities: (S,), strictly increasing, S >= 2; the clean test set is usually the first, at 0.
      accuracies: (S,), in [0, 1].

    Returns:
      The area, in [0, 1].

    Raises:
      ValueError: shapes disagree, severities do not increase, or accuracies leave [0, 1].

    References:
      Liang et al., "MultiBench: Multiscale Benchmarks for Multimodal Representation Learning",
      2021.
    """
    (accuracies,) = check_shares(accuracies=accuracies)
    return _normalised_area(severities, accuracies)


def effective_curve_area(
    severities: ArrayLike, accuracies: ArrayLike, baseline_accuracies: ArrayLike
) -> float:
    """Area between a curve and a baseline's, moved to equal clean accuracy (MultiBench).

    With the area A of `robustness_curve_area` and the clean accuracies a_1 and b_1,

        A(a - beta),   beta(s) = b(s) + a_1 - b_1:

    positive where the model loses less than the baseline as severity grows. Liang et al. call it
    effective robustness; they add over equidistant severities where this is an integral, and take
    late fusion as the baseline. A model that starts near chance has little to lose and gains by it.

    Args:
      severities: (S,), strictly increasing, S >= 2; the first is the clean test set.
      accuracies: (S,), in [0, 1], of the model.
      baseline_accuracies: (S,), in [0, 1], of the baseline.

    Returns:
      The area, in [-2, 2].

    Raises:
      ValueError: shapes disagree, severities do not increase, or accuracies leave [0, 1].

    References:
      Liang et al., "MultiBench: Multiscale Benchmarks for Multimodal Representation Learning",
      2021.
    """
    a, b = check_shares(accuracies=accuracies, baseline_accuracies=baseline_accuracies)
    return _normalised_area(severities, a - b - (a.flat[0] - b.flat[0]))


def relative_robustness(robust: ArrayLike, robust_without: ArrayLike) -> NDArray[np.float64]:
    """Accuracy under shift that an intervention adds, tau = acc_2(with) - acc_2(without).

    Taori et al. ask for it along with `effective_robustness`: a model may rise above the baseline's
    line only because its clean accuracy fell. (MultiBench means `robustness_curve_area` by the
    same name.)

    Args:
      robust: (...), in [0, 1], accuracies under shift with the intervention.
      robust_without: (...), in [0, 1], those of the same models without.

    Returns:
      (...), in [-1, 1].

    Raises:
      ValueError: shapes differ, or accuracies leave [0, 1].

    References:
      Taori et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification",
      2020.
    """
    robust, robust_without = check_shares(robust=robust, robust_without=robust_without)
    return np.asarray(robust - robust_without)


def effective_robustness(
    clean: ArrayLike,
    robust: ArrayLike,
    baseline_fn: Callable[[NDArray[np.float64]], ArrayLike],
) -> NDArray[np.float64]:
    """Accuracy under shift beyond what clean accuracy predicts, rho = acc_2 - beta(acc_1).

    (MultiBench means `effective_curve_area` by the same name.)

    Args:
      clean: (...), in [0, 1], accuracies acc_1 on clean data.
      robust: (...), in [0, 1], accuracies acc_2 of the same models under shift.
      baseline_fn: beta, from clean accuracies to those that models without any intervention reach
        under the shift; `make_baseline_fn` fits one.

    Returns:
      (...), rho; zero for a model that is as robust as its clean accuracy lets expect.

    Raises:
      ValueError: shapes differ, or accuracies leave [0, 1].

    References:
      Taori et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification",
      2020.
    """
    clean, robust = check_shares(clean=clean, robust=robust)
    return np.asarray(robust - np.asarray(baseline_fn(clean), np.float64))


def make_baseline_fn(
    clean: ArrayLike, robust: ArrayLike
) -> Callable[[ArrayLike], NDArray[np.float64]]:
    """Fits beta(acc) by least squares, logit beta(acc) = slope * logit acc + intercept.

    Trustworthy only between the clean accuracies that it was fitted to.

    Args:
      clean: (N,), in (0, 1), clean accuracies of the baseline models, at least two different ones.
        An accuracy of 0 or 1 has no logit: of k correct in n, take (k + 1/2) / (n + 1).
      robust: (N,), in (0, 1), accuracies of the same models under shift.

    Returns:
      The function beta, from (...) in (0, 1) to (...).

    Raises:
      ValueError: shapes differ, accuracies leave (0, 1), or all clean ones are equal. The function
        returned raises on accuracies outside (0, 1), too.

    References:
      Taori et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification",
      2020.
    """
    x, y = _logit("clean", clean), _logit("robust", robust)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"clean and robust must have one shape (N,), got {x.shape} and {y.shape}")
    if len(set(x.tolist())) < 2:
        raise ValueError(f"clean must hold at least two different accuracies, got {clean}")
    deviation = x - x.mean()
    slope = (deviation @ y) / (deviation @ deviation)
    intercept = y.mean() - slope * x.mean()

    def baseline_fn(clean: ArrayLike) -> NDArray[np.float64]:
        z = slope * _logit("clean", clean) + intercept
        return np.asarray((1 + np.tanh(z / 2)) / 2)  # the logistic function, without overflow

    return baseline_fn


def mean_corruption_error(errors: ArrayLike, baseline_errors: ArrayLike) -> float:
    """Errors under corruptions relative to a baseline's, mCE = mean_c sum_s E_cs / sum_s B_cs.

    Every corruption counts alike, however hard it is: 1 for a model as good as the baseline.

    Args:
      errors: E, (C, S), in [0, 1], error (1 - accuracy) per corruption and severity.
      baseline_errors: B, (C, S), those of the baseline (AlexNet in the paper).

    Returns:
      The mCE, as a share where the paper has percent.

    Raises:
      ValueError: shapes disagree, errors leave [0, 1], or the baseline makes none on a corruption.

    References:
      Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
      Perturbations", 2019.
    """
    return _mean_ratio(errors, baseline_errors, 0.0, 0.0)


def relative_mean_corruption_error(
    errors: ArrayLike, baseline_errors: ArrayLike, clean_error: float, baseline_clean_error: float
) -> float:
    """Degradation relative to a baseline's, mean_c sum_s (E_cs - E_0) / sum_s (B_cs - B_0).

    Below 1 for a model that loses less than the baseline, even one that is worse everywhere: read
    it next to `mean_corruption_error`. Erratic where the baseline hardly degrades.

    Args:
      errors: E, (C, S), in [0, 1], error (1 - accuracy) per corruption and severity.
      baseline_errors: B, (C, S), those of the baseline.
      clean_error: E_0, in [0, 1], error of the model on clean data.
      baseline_clean_error: B_0, in [0, 1], that of the baseline.

    Returns:
      The relative mCE, as a share; negative for a model that corruptions improve.

    Raises:
      ValueError: shapes disagree, errors leave [0, 1], or a corruption does not degrade the
        baseline.

    References:
      Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
      Perturbations", 2019.
    """
    check_shares(clean_error=clean_error, baseline_clean_error=baseline_clean_error)
    return _mean_ratio(errors, baseline_errors, clean_error, baseline_clean_error)


def _mean_ratio(
    errors: ArrayLike, baseline_errors: ArrayLike, offset: float, baseline_offset: float
) -> float:
    """Mean over corruptions of the ratio of summed errors above an offset."""
    errors, baseline_errors = check_shares(errors=errors, baseline_errors=baseline_errors)
    if errors.ndim != 2:
        raise ValueError(f"errors must have shape (C, S), got {errors.shape}")
    loss = (errors - offset).sum(axis=1)
    baseline_loss = (baseline_errors - baseline_offset).sum(axis=1)
    if np.any(baseline_loss <= 0):
        raise ValueError(
            "baseline_errors must exceed the baseline's clean error (0 unless given) on every "
            f"corruption, got sums of {baseline_loss}; leave such corruptions out"
        )
    return float((loss / baseline_loss).mean())


def _normalised_area(severities: ArrayLike, curve: NDArray[np.float64]) -> float:
    """Trapezoidal area under a curve (S,), divided by the range of severities."""
    s = np.asarray(severities, np.float64)
    if s.ndim != 1 or len(s) < 2 or s.shape != curve.shape:
        raise ValueError(
            f"severities and accuracies must be (S,), S >= 2, got {s.shape} and {curve.shape}"
        )
    if not np.all(np.diff(s) > 0):
        raise ValueError(f"severities must strictly increase, got {severities}")
    return float(np.trapezoid(curve, s) / (s[-1] - s[0]))


def _logit(name: str, accuracies: ArrayLike) -> NDArray[np.float64]:
    """log(p / (1 - p)); raises ValueError unless it is finite."""
    p = np.asarray(accuracies, np.float64)
    if not np.all((p > 0) & (p < 1)):
        raise ValueError(f"{name} must lie in (0, 1), where a logit is finite, got {accuracies}")
    return np.asarray(np.log(p) - np.log1p(-p))
