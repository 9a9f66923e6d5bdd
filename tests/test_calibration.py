import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jacfuse_jax import calibration

fit_temperature = jax.jit(calibration.fit_temperature)


def drawn_labels(logits, rng):
    """One label a row, from softmax(logits)."""
    probs = scipy.special.softmax(logits, axis=1)
    return np.array([rng.choice(len(p), p=p) for p in probs])


def mean_nll(temperature, logits, labels):
    log_probs = scipy.special.log_softmax(logits / temperature, axis=1)
    return -log_probs[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("true_temperature", [1.0, 0.05, 30.0])
def test_minimises_the_likelihood(true_temperature, dtype):
    rng = np.random.default_rng(0)
    calibrated = 2 * rng.normal(size=(500, 6))
    labels = drawn_labels(calibrated, rng)
    logits = (true_temperature * calibrated).astype(dtype)
    actual = fit_temperature(logits, labels)
    assert actual.dtype == dtype
    best = scipy.optimize.minimize_scalar(
        lambda log_t: mean_nll(np.exp(log_t), logits.astype(float), labels),
        bounds=(-9, 9),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert float(actual) == pytest.approx(np.exp(best.x), rel=1e-5)
    assert float(actual) == pytest.approx(true_temperature, rel=0.2)


def test_ends_of_the_interval_where_there_is_no_minimum():
    logits = np.array([[1.0, 0.0], [0.0, 2.0]])
    # Outside of jit.
    assert calibration.fit_temperature(logits, np.array([0, 1])) < 1e-4
    assert calibration.fit_temperature(logits, np.array([1, 0])) > 1e4


def test_what_is_not_finite_gives_nan():
    assert np.isnan(fit_temperature(np.array([[np.nan, 0.0]]), np.array([0])))


def test_misuse():
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\), .* got \(2,\)"):
        calibration.fit_temperature(np.ones((3, 2)), np.zeros(2, int))
    with pytest.raises(ValueError, match="N >= 1"):
        calibration.fit_temperature(np.ones((0, 2)), np.zeros(0, int))
    with pytest.raises(TypeError, match="logits must be float32 or float64"):
        calibration.fit_temperature(np.ones((3, 2), int), np.zeros(3, int))
