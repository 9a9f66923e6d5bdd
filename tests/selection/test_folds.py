import numpy as np
import pytest

from jacfuse_jax import selection


def test_groups_stay_whole_and_folds_are_alike():
    groups = np.random.default_rng(0).integers(0, 23, size=400) * 7 - 3
    folds = selection.assign_folds(400, groups=groups, num_folds=4, seed=1)
    for group in np.unique(groups):
        assert len(set(folds[groups == group])) == 1
    sizes = np.bincount(folds)
    assert len(sizes) == 4
    assert sizes.max() - sizes.min() <= np.bincount(groups + 3).max()
    again = selection.assign_folds(400, groups=groups, num_folds=4, seed=1)
    np.testing.assert_array_equal(folds, again)
    assert (folds != selection.assign_folds(400, groups=groups, num_folds=4, seed=2)).any()


def test_there_are_no_more_folds_than_groups():
    folds = selection.assign_folds(6, groups=np.array(list("aabbcc")), num_folds=5)
    assert sorted(np.bincount(folds)) == [2, 2, 2]
    assert sorted(np.bincount(selection.assign_folds(7, num_folds=3))) == [2, 2, 3]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="two groups and two folds are needed at least, got 1 and"):
        selection.assign_folds(5, groups=np.zeros(5, int))
    with pytest.raises(ValueError, match="two groups and two folds .* got 5 and 1"):
        selection.assign_folds(5, num_folds=1)
    with pytest.raises(ValueError, match=r"groups must have shape \(5,\), got \(4,\)"):
        selection.assign_folds(5, groups=np.zeros(4, int))
