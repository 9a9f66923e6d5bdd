import numpy as np
import pytest

from jacfuse_jax import metrics
from jacfuse_jax.evaluation.intervals import bootstrap_interval, paired_bootstrap_interval

RNG = np.random.default_rng(0)
BY_RECORDING, BY_CLIP = np.arange(120) // 12, np.arange(120) % 30
GROUPS = np.stack([BY_RECORDING, BY_CLIP], axis=1)
# Two methods: rows of a recording are alike for the one, those of a clip for the other.
VALUES = np.stack([RNG.uniform(size=10)[BY_RECORDING], RNG.uniform(size=30)[BY_CLIP]], axis=1)


def test_the_widest_of_all_groupings_counts_each_way():
    found = bootstrap_interval(VALUES, GROUPS)
    each = [metrics.bootstrap_interval(VALUES, 0, groups=g) for g in (BY_RECORDING, BY_CLIP)]
    np.testing.assert_array_equal(found.low, np.minimum(each[0].low, each[1].low))
    np.testing.assert_array_equal(found.high, np.maximum(each[0].high, each[1].high))
    np.testing.assert_allclose(found.mean, VALUES.mean(axis=0))
    assert found.low[0] == each[0].low[0] < each[1].low[0]
    assert found.low[1] == each[1].low[1] < each[0].low[1]


def test_one_grouping_is_that_of_the_library():
    found = bootstrap_interval(VALUES[:, 0], BY_RECORDING)
    expected = metrics.bootstrap_interval(VALUES[:, 0], 0, groups=BY_RECORDING)
    assert tuple(map(float, found)) == pytest.approx(tuple(map(float, expected)))


def test_differences_likewise():
    found = paired_bootstrap_interval(VALUES, VALUES[::-1], GROUPS)
    each = [
        metrics.paired_bootstrap_interval(VALUES, VALUES[::-1], 0, groups=g)
        for g in (BY_RECORDING, BY_CLIP)
    ]
    np.testing.assert_array_equal(found.low, np.minimum(each[0].low, each[1].low))
    np.testing.assert_array_equal(found.high, np.maximum(each[0].high, each[1].high))
