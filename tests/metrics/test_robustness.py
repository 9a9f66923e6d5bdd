import numpy as np
import pytest
import scipy.special

from jacfuse_jax import metrics

SEVERITIES = np.array([0.0, 1.0, 2.0, 4.0, 8.0])


@pytest.mark.parametrize("severities", [SEVERITIES, 100 + 0.1 * SEVERITIES])
def test_area_of_a_constant_curve_is_its_accuracy(severities):
    assert metrics.robustness_curve_area(severities, np.full(5, 0.7)) == pytest.approx(0.7)


def test_area_of_straight_lines_matches_its_closed_form():
    line = 0.9 - 0.05 * SEVERITIES
    assert metrics.robustness_curve_area(SEVERITIES, line) == pytest.approx(0.9 - 0.05 * 4)
    kinked = np.where(SEVERITIES < 2, 1 - 0.25 * SEVERITIES, 0.5)  # 1.5 up to 2, then 3.0
    assert metrics.robustness_curve_area(SEVERITIES, kinked) == pytest.approx(4.5 / 8)


def test_effective_area_is_the_area_between_curves_from_one_point():
    baseline = 0.8 - 0.08 * SEVERITIES
    slower = 0.6 - 0.03 * SEVERITIES
    area = metrics.effective_curve_area(SEVERITIES, slower, baseline)
    assert area == pytest.approx(0.05 * 4)
    # Clean accuracy alone is worth nothing.
    assert metrics.effective_curve_area(SEVERITIES, baseline + 0.1, baseline) == pytest.approx(0)


def test_effective_area_orders_like_multibenchs_sum_over_equidistant_severities():
    rng = np.random.default_rng(0)
    baseline, *curves = rng.random((6, 200))
    sums = [np.sum(curve - (baseline + curve[0] - baseline[0])) for curve in curves]
    areas = [metrics.effective_curve_area(np.arange(200), c, baseline) for c in curves]
    # They differ by half of the last value, and by the number of intervals.
    last = [curve[-1] - (baseline[-1] + curve[0] - baseline[0]) for curve in curves]
    np.testing.assert_allclose(areas, (np.array(sums) - np.array(last) / 2) / 199, atol=1e-14)


def test_relative_robustness_is_the_gain_under_shift():
    gain = metrics.relative_robustness([0.5, 0.25], [0.25, 0.5])
    np.testing.assert_array_equal(gain, [0.25, -0.25])
    assert metrics.relative_robustness(0.5, 0.25) == 0.25


def test_baseline_is_a_line_between_logits():
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.2, 0.95, size=20)
    robust = scipy.special.expit(0.8 * scipy.special.logit(clean) - 1 + rng.normal(size=20) / 5)
    slope, intercept = np.polyfit(scipy.special.logit(clean), scipy.special.logit(robust), 1)
    at = np.array([1e-9, 0.3, 0.9, 1 - 1e-9])
    expected = scipy.special.expit(slope * scipy.special.logit(at) + intercept)
    np.testing.assert_allclose(metrics.make_baseline_fn(clean, robust)(at), expected, rtol=1e-8)


def test_effective_robustness_is_what_clean_accuracy_does_not_predict():
    clean = np.array([0.3, 0.6, 0.9])
    robust = scipy.special.expit(1.2 * scipy.special.logit(clean) - 0.5)
    baseline_fn = metrics.make_baseline_fn(clean, robust)
    on_line = metrics.effective_robustness(clean, robust, baseline_fn)
    np.testing.assert_allclose(on_line, 0, atol=1e-15)
    above = metrics.effective_robustness(clean, robust + 0.05, baseline_fn)
    np.testing.assert_allclose(above, 0.05, rtol=1e-12)
    assert metrics.effective_robustness(0.8, 0.5, lambda x: x - 0.2) == pytest.approx(-0.1)


def test_corruption_errors_match_a_calculation_by_hand():
    errors = [[0.2, 0.4], [0.1, 0.3]]
    baseline_errors = [[0.4, 0.8], [0.5, 0.3]]
    mce = metrics.mean_corruption_error(errors, baseline_errors)
    assert mce == pytest.approx((0.6 / 1.2 + 0.4 / 0.8) / 2)
    relative = metrics.relative_mean_corruption_error(errors, baseline_errors, 0.1, 0.2)
    assert relative == pytest.approx((0.4 / 0.8 + 0.2 / 0.4) / 2)


def test_the_baseline_has_corruption_errors_of_one():
    errors = np.random.default_rng(0).uniform(0.3, 0.9, size=(15, 5))
    assert metrics.mean_corruption_error(errors, errors) == pytest.approx(1)
    relative = metrics.relative_mean_corruption_error(errors, errors, 0.2, 0.2)
    assert relative == pytest.approx(1)


def test_misuse_of_curves():
    with pytest.raises(ValueError, match=r"in \[0, 1\], not percent, got \[90, 80\]"):
        metrics.robustness_curve_area([0, 1], [90, 80])
    with pytest.raises(ValueError, match="accuracies must be shares"):
        metrics.robustness_curve_area([0, 1], [0.9, np.nan])
    with pytest.raises(ValueError, match=r"S >= 2, got \(1,\) and \(1,\)"):
        metrics.robustness_curve_area([0], [0.9])
    with pytest.raises(ValueError, match="severities must strictly increase"):
        metrics.robustness_curve_area([0, 2, 1], [0.9, 0.8, 0.7])
    with pytest.raises(ValueError, match=r"'baseline_accuracies': \(3,\)"):
        metrics.effective_curve_area([0, 1], [0.9, 0.8], [0.9, 0.8, 0.7])


def test_misuse_of_robustness():
    with pytest.raises(ValueError, match=r"'robust': \(2,\), 'robust_without': \(3,\)"):
        metrics.relative_robustness([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"'clean': \(\), 'robust': \(1,\)"):
        metrics.effective_robustness(0.5, [0.5], np.asarray)
    with pytest.raises(ValueError, match=r"robust must lie in \(0, 1\)"):
        metrics.make_baseline_fn([0.5, 0.6], [0.5, 1.0])
    with pytest.raises(ValueError, match=r"clean must lie in \(0, 1\)"):
        metrics.make_baseline_fn([0.5, 0.6], [0.4, 0.5])(1.0)
    with pytest.raises(ValueError, match="two different accuracies"):
        metrics.make_baseline_fn([0.5, 0.5], [0.4, 0.5])
    with pytest.raises(ValueError, match=r"one shape \(N,\), got \(2,\) and \(1,\)"):
        metrics.make_baseline_fn([0.5, 0.6], [0.4])


def test_misuse_of_corruption_errors():
    with pytest.raises(ValueError, match=r"errors must have shape \(C, S\), got \(1,\)"):
        metrics.mean_corruption_error([0.5], [0.5])
    with pytest.raises(ValueError, match=r"not empty, got .*\(0, 5\)"):
        metrics.mean_corruption_error(np.ones((0, 5)), np.ones((0, 5)))
    with pytest.raises(ValueError, match="baseline_errors must exceed"):
        metrics.mean_corruption_error([[0.5, 0.5]], [[0.0, 0.0]])
    with pytest.raises(ValueError, match="baseline_errors must exceed"):
        metrics.relative_mean_corruption_error([[0.5]], [[0.2]], 0.1, 0.3)
    with pytest.raises(ValueError, match="clean_error must be shares"):
        metrics.relative_mean_corruption_error([[0.5]], [[0.2]], 10, 0.1)
