import numpy as np
import pytest
import scipy.stats

from jacfuse_jax import metrics
from jacfuse_jax.metrics import _bootstrap

NUM_RESAMPLES = 20_000
# The standard error of a 2.5% quantile of R normal values is sqrt(p (1 - p) / R) / phi(1.96), here
# 0.019 of their standard deviation; two independent runs stay within 0.11 with 4 sigma.
MONTE_CARLO = 0.11


def correct_predictions(count=200, accuracies=(0.7, 0.9), seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((count, len(accuracies))) < accuracies).astype(float)


def clustered_values(num_groups, group_size, num_columns, seed=0):
    """Zero expectation; half of the variance is shared by the samples of a group."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(num_groups, 1, num_columns))
    own = rng.normal(size=(num_groups, group_size, num_columns))
    groups = np.repeat(np.arange(num_groups), group_size)
    return (shared + own).reshape(-1, num_columns), groups


def assert_within_monte_carlo_error(interval, expected):
    for end, other in ((interval.low, expected.low), (interval.high, expected.high)):
        width = (expected.high - expected.low) / (2 * 1.96)
        assert abs(end - other) < MONTE_CARLO * width


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_matches_scipys_percentile_bootstrap(level):
    # Few different values, as of correct predictions, would make the quantiles jump.
    values = np.random.default_rng(0).exponential(size=200)
    expected = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    interval = metrics.bootstrap_interval(values, 2, num_resamples=NUM_RESAMPLES, level=level)
    assert interval.mean == pytest.approx(values.mean())
    assert_within_monte_carlo_error(interval, expected)


def test_groups_of_unequal_size_match_scipys_bootstrap_of_a_ratio():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(rng.permutation(60) - 30, np.arange(60) % 7 + 1))
    values = rng.normal(size=len(groups)) + np.sin(groups)
    members = [values[groups == group] for group in np.unique(groups)]
    expected = scipy.stats.bootstrap(
        (np.array([member.sum() for member in members]), np.array([len(m) for m in members])),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        n_resamples=NUM_RESAMPLES,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    interval = metrics.bootstrap_interval(values, 2, groups=groups, num_resamples=NUM_RESAMPLES)
    assert interval.mean == pytest.approx(values.mean())
    assert_within_monte_carlo_error(interval, expected)


def test_groups_keep_the_coverage_that_clustered_samples_take_from_a_plain_interval():
    # Columns are independent data sets, so that the share of them covered estimates the coverage.
    num_columns, group_size = 1000, 10
    values, groups = clustered_values(60, group_size, num_columns)

    def coverage(interval):
        return np.mean((interval.low <= 0) & (interval.high >= 0))

    # The plain interval is too narrow by sqrt(var of the mean / its estimate) = 2.3.
    shared, own = 1 / 60, 1 / (60 * group_size)
    ratio = np.sqrt((shared + own) / (2 * own))
    too_narrow = 2 * scipy.stats.norm.cdf(1.96 / ratio) - 1
    sampling_error = 4 * np.sqrt(0.25 / num_columns)
    plain = coverage(metrics.bootstrap_interval(values, 1))
    assert plain == pytest.approx(too_narrow, abs=sampling_error)
    # 60 groups: standard errors are low by a factor of sqrt(59 / 60), and quantiles are normal's.
    clustered = coverage(metrics.bootstrap_interval(values, 1, groups=groups))
    expected = 2 * scipy.stats.t.cdf(1.96 * np.sqrt(59 / 60), 59) - 1
    assert clustered == pytest.approx(expected, abs=4 * np.sqrt(0.05 * 0.95 / num_columns))


def test_paired_interval_is_that_of_the_difference_on_the_same_resamples():
    a, changed = correct_predictions(2000, accuracies=(0.7, 0.1)).T
    b = np.where(changed, 1 - a, a)
    groups = np.arange(2000) // 4
    paired = metrics.paired_bootstrap_interval(a, b, 0, groups=groups)
    expected = metrics.bootstrap_interval(a - b, 0, groups=groups)
    np.testing.assert_array_equal(paired, expected)
    assert paired.mean == pytest.approx(a.mean() - b.mean())
    single = [metrics.bootstrap_interval(x, 0, groups=groups) for x in (a, b)]
    widths = [interval.high - interval.low for interval in single]
    # Independent methods would have a ratio of one; here it is sqrt(0.1 / (0.21 + 0.22)) = 0.48.
    assert paired.high - paired.low < 0.6 * np.hypot(*widths)
    of_booleans = metrics.paired_bootstrap_interval(a > 0, b > 0, 0, groups=groups)
    np.testing.assert_array_equal(of_booleans, paired)


def test_columns_share_the_resamples_and_match_one_at_a_time():
    values = correct_predictions()
    groups = np.arange(200) // 3
    together = metrics.bootstrap_interval(values, 3, groups=groups)
    for column in range(2):
        alone = metrics.bootstrap_interval(values[:, column], 3, groups=groups)
        np.testing.assert_allclose([x[column] for x in together], alone, rtol=1e-12)


def test_resamples_are_the_same_in_pieces(monkeypatch):
    values = correct_predictions()
    whole = metrics.bootstrap_interval(values, 3, num_resamples=1001)
    monkeypatch.setattr(_bootstrap, "_MAX_COUNTS", 200 * 50)
    pieces = metrics.bootstrap_interval(values, 3, num_resamples=1001)
    np.testing.assert_allclose(pieces, whole, rtol=1e-12)


def test_groups_of_one_sample_are_no_groups():
    values = correct_predictions()
    expected = metrics.bootstrap_interval(values, 3)
    np.testing.assert_array_equal(
        metrics.bootstrap_interval(values, 3, groups=np.arange(200)), expected
    )


def test_trouble_shows():
    values = correct_predictions()
    values[5, 0] = np.nan
    interval = metrics.bootstrap_interval(values, 0)
    assert np.isnan([end[0] for end in interval]).all()
    assert np.isfinite([end[1] for end in interval]).all()


def test_misuse():
    values = correct_predictions()
    with pytest.raises(ValueError, match=r"\(N,\) or \(N, M\), got \(\)"):
        metrics.bootstrap_interval(0.5, 0)
    with pytest.raises(ValueError, match=r"groups must have shape \(200,\), got \(100,\)"):
        metrics.bootstrap_interval(values, 0, groups=np.arange(100))
    with pytest.raises(TypeError, match="groups must be integers, got float64"):
        metrics.bootstrap_interval(values, 0, groups=np.arange(200.0))
    with pytest.raises(ValueError, match="groups must be at least two, got 1"):
        metrics.bootstrap_interval(values, 0, groups=np.zeros(200, int))
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 95"):
        metrics.bootstrap_interval(values, 0, level=95)
    with pytest.raises(ValueError, match="num_resamples must be at least 1, got 0"):
        metrics.bootstrap_interval(values, 0, num_resamples=0)
    with pytest.raises(ValueError, match=r"one shape, got \(200, 2\) and \(200,\)"):
        metrics.paired_bootstrap_interval(values, values[:, 0], 0)
