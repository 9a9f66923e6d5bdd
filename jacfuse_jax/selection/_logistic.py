"""Probabilities of events by logistic regression, its penalty chosen by cross-validation."""

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_ROUNDING = 1e-6  # of float32, in which features were computed
_Array = NDArray[np.float64]


def fit_probability(
    features: _Array, targets: _Array, folds: NDArray[np.intp], weights: _Array
) -> _Array:
    """Fits P = sigmoid(w . x) by penalised likelihood.

    Minimises sum_n c_n CE(t_n, sigmoid(w . x_n)) + lambda / 2 sum_j (w_j std_j)^2, the last entry
    of x being the constant, which is not penalised. Targets are drawn in from 0 and 1 as Platt has
    it, so that w is finite where all are alike. The penalty lambda has the least cross-entropy of
    held-out rows.

    Args:
      features: x, (N, D + 1).
      targets: (N,), in [0, 1].
      folds: (N,), two at least.
      weights: c, (N,), not negative: how many rows each stands for.

    Returns:
      w, (D + 1,).

    References:
      Platt, "Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized
      Likelihood Methods", 1999 (targets).
    """
    num_right, num_wrong = weights @ targets, weights @ (1 - targets)
    low, high = 1 / (num_wrong + 2), (num_right + 1) / (num_right + 2)
    drawn_in = low + (high - low) * targets
    mean = np.average(features, axis=0, weights=weights)
    scale = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    mean[-1] = 0
    # Of a constant there is rounding left.
    scale = np.where(scale > _ROUNDING * (1 + np.abs(mean)), scale, 1)
    x = (features - mean) / scale

    def held_out(penalty: float) -> float:
        total = 0.0
        for fold in np.unique(folds):
            is_out = folds == fold
            w = _fit(x[~is_out], drawn_in[~is_out], weights[~is_out], penalty)
            total += _cross_entropy(x[is_out] @ w, drawn_in[is_out], weights[is_out])
        return total

    w = _fit(x, drawn_in, weights, min(_PENALTIES, key=held_out))
    w = w / scale
    w[-1] -= w @ mean
    return w


def _cross_entropy(logits: _Array, targets: _Array, weights: _Array) -> float:
    return float(weights @ (np.logaddexp(0, logits) - targets * logits))


def _fit(x: _Array, targets: _Array, weights: _Array, penalty: float) -> _Array:
    """The minimum, of standardised features."""
    is_penalised = np.append(np.ones(x.shape[1] - 1), 0)

    def loss(w: _Array) -> tuple[float, _Array]:
        logits, penalised = x @ w, penalty * is_penalised * w
        slope = x.T @ (weights * (scipy.special.expit(logits) - targets)) + penalised
        return _cross_entropy(logits, targets, weights) + float(penalised @ w) / 2, slope

    start = np.zeros(x.shape[1])
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B")
    return np.asarray(found.x, np.float64)
