import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from jacfuse_jax import selection


def make_rows(num_rows=2000, seed=0):
    """Rows whose criterion is the probability of being right."""
    rng = np.random.default_rng(seed)
    criterion = rng.uniform(0.5, 1, size=num_rows)
    return criterion, (rng.uniform(size=num_rows) < criterion).astype(int)


def test_the_curve_is_the_accuracy_of_each_number_of_rows():
    criterion, correct = make_rows(300)
    criterion = criterion.round(1)  # many rows share a value
    found = selection.coverage_curve(criterion, correct)
    assert sorted(set(criterion), reverse=True) == [*found.threshold]
    for threshold, coverage, accuracy in zip(*found[:3], strict=True):
        is_decided = criterion >= threshold
        assert coverage == is_decided.mean()
        assert accuracy == accuracy_score(np.ones(is_decided.sum()), correct[is_decided])
    # Of distinct values the area is the mean risk over all numbers of rows.
    criterion, correct = make_rows(200)
    order = np.argsort(-criterion)
    risks = [1 - correct[order][: n + 1].mean() for n in range(200)]
    assert selection.coverage_curve(criterion, correct).area == pytest.approx(np.mean(risks))


def test_the_risk_is_kept_as_often_as_promised():
    """On the distribution itself: of a threshold t the risk is 1 - (1 + t) / 2."""
    kept, coverages = [], []
    for seed in range(300):
        found = selection.choose_threshold(*make_rows(1000, seed), 0.15)
        if np.isfinite(found.threshold):
            kept.append(1 - (1 + found.threshold) / 2 <= 0.15)
            coverages.append(found.coverage)
            assert found.risk <= found.high <= 0.15
    assert len(kept) > 200
    # Of 300 at 95%: 0.91 is three standard deviations below.
    assert np.mean(kept) > 0.91
    assert 0.3 < np.mean(coverages) < 0.6  # 0.6 is what the distribution allows


@pytest.mark.parametrize(("num_groups", "risk", "max_risk"), [(40, 0.11, 0.1), (200, 0.022, 0.02)])
def test_groups_that_err_as_a_whole_keep_the_risk(num_groups, risk, max_risk):
    """The risk of every threshold is above what is allowed: each that is taken is an error."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(num_groups), 20)
    taken = []
    for _ in range(200):
        correct = 1 - (rng.uniform(size=num_groups) < risk)[groups].astype(int)
        criterion = rng.uniform(size=len(groups))
        found = selection.choose_threshold(criterion, correct, max_risk, groups=groups)
        taken.append(np.isfinite(found.threshold))
    # Of 200 at 5%: 0.1 is more than three standard deviations above.
    assert np.mean(taken) < 0.1


def test_groups_decide_fewer_rows():
    criterion, correct = make_rows(2000)
    groups = np.arange(2000) // 10
    alone = selection.choose_threshold(criterion, correct, 0.2)
    together = selection.choose_threshold(criterion, correct, 0.2, groups=groups)
    assert 0 < together.coverage < alone.coverage
    few = selection.choose_threshold(criterion, np.ones(2000), 0.05, groups=np.arange(2000) // 40)
    assert few.coverage == 0  # 50 groups tell no risk of 5%


def test_nothing_is_decided_where_nothing_is_safe():
    criterion, correct = make_rows(100)
    found = selection.choose_threshold(criterion, correct, 0.001)
    assert found.threshold == np.inf
    assert found.coverage == 0
    everything = selection.choose_threshold(criterion, np.ones(100), 0.05)
    assert everything.coverage == 1
    assert everything.risk == 0


def test_a_certificate_may_be_the_criterion():
    criterion = np.array([1.0] * 80 + [0.0] * 20)
    correct = np.array([1] * 80 + [0, 1] * 10)
    found = selection.choose_threshold(criterion, correct, 0.05)
    assert found.threshold == 1
    assert found.coverage == 0.8
    np.testing.assert_array_equal(selection.coverage_curve(criterion, correct).accuracy, [1, 0.9])


def test_bad_arguments_are_refused():
    criterion, correct = make_rows(10)
    with pytest.raises(ValueError, match=r"arrays must be \(N,\), N >= 1, got \(10,\) and \(9,\)"):
        selection.coverage_curve(criterion, correct[:9])
    with pytest.raises(ValueError, match="criterion is NaN in 1 rows"):
        selection.coverage_curve([np.nan, 1], [0, 1])
    with pytest.raises(ValueError, match=r"max_risk must lie in \[0, 1\]"):
        selection.choose_threshold(criterion, correct, 1.2)
    with pytest.raises(ValueError, match="correct must be 0 or 1"):
        selection.choose_threshold(criterion, 0.5 * correct, 0.2)
