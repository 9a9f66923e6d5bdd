from typing import Any

import numpy as np
import pytest

from jacfuse_jax import fusion, selection
from jacfuse_jax.selection import _measure

NUM_ROWS = 1000
STATISTICAL, DROP = fusion.Statistical(), fusion.Cascade(0.0)
NOTHING = _measure.Figures(0.0, 0.0, 0.0)


def rows(share, first=0):
    """Right in so large a share of the rows, from one on."""
    right = np.zeros(NUM_ROWS)
    right[(first + np.arange(round(share * NUM_ROWS))) % NUM_ROWS] = 1
    return right


def measured(rule, clean, worst, *, any_input=None, first=0):
    faults = {fault: rows(clean, first) for fault in selection.FAULTS}
    faults["frozen"] = rows(worst, first)
    known = None if any_input is None else rows(any_input, first) > 0
    return selection.Measured(
        rule, rows(clean, first), faults, np.ones(NUM_ROWS), known, {"clean": NOTHING}
    )


def three():
    return [
        measured(STATISTICAL, 0.90, 0.10, any_input=0.0),
        measured(DROP, 0.60, 0.60, any_input=0.60),
        measured(fusion.Cascade(0.7), 0.88, 0.45, any_input=0.40),
        measured(fusion.Robust(0.1), 0.88, 0.50),
    ]


@pytest.mark.parametrize(
    ("share", "against", "expected"),
    [
        (0.0, "faults", STATISTICAL),
        (0.1, "faults", fusion.Robust(0.1)),
        (0.9, "faults", DROP),
        (0.1, "anything", fusion.Cascade(0.7)),
        (0.9, "anything", DROP),
        (1.0, "faults", DROP),
    ],
)
def test_the_share_decides(share, against, expected):
    found = selection.choose(three(), share, against=against)
    assert found.rule == expected
    clean, worst, value = found.worth
    assert value == pytest.approx((1 - share) * clean + share * worst)
    assert found.low <= value <= found.high
    assert found.num_candidates == (4 if against == "faults" else 3)
    assert set(found.baselines) == {STATISTICAL, DROP}
    of_faults = "silent" if expected == DROP else "frozen"  # the first of equal ones
    assert found.worst_case == (of_faults if against == "faults" else "anything")


def test_of_rules_that_are_not_told_apart_the_cleanest_and_of_these_the_first():
    rules = [
        measured(STATISTICAL, 0.800, 0.10),
        measured(fusion.Cascade(0.5), 0.796, 0.512),
        measured(fusion.Cascade(0.6), 0.799, 0.500, first=2),
        measured(fusion.Cascade(0.7), 0.799, 0.500, first=1),
    ]
    assert selection.choose(rules, 0.1).rule == fusion.Cascade(0.6)
    # As groups of equal rows they are told apart no better, as single rows of 1,000 they are.
    best = rules[1]
    far = measured(fusion.Scaled(0.5), 0.799, 0.40)
    assert selection.choose([best, far], 0.5).rule == best.rule


def test_groups_widen_what_is_not_told_apart():
    better = measured(fusion.Cascade(0.5), 0.80, 0.30)
    cleaner = measured(fusion.Scaled(0.5), 0.82, 0.20)
    options: Any = {"share": 0.5, "seed": 1}
    assert selection.choose([better, cleaner], **options).rule == better.rule
    groups = np.arange(NUM_ROWS) // 250  # four of them
    assert selection.choose([better, cleaner], **options, groups=groups).rule == cleaner.rule


def test_never_less_than_what_anybody_would_do():
    """The cleanest that is not told apart is worth less than statistical fusion: not that one."""
    noise = np.random.default_rng(0).permutation(NUM_ROWS)
    best = measured(fusion.Cascade(0.5), 0.800, 0.320)
    statistical = measured(STATISTICAL, 0.801, 0.318)
    worse = measured(fusion.Scaled(0.9), 0.806, 0.290)
    worse = worse._replace(
        clean=worse.clean[noise], faults={f: x[noise] for f, x in worse.faults.items()}
    )
    found = selection.choose([statistical, best, worse], 0.3)
    assert found.rule == STATISTICAL
    assert selection.choose([best, worse], 0.3).rule == worse.rule  # where it is no candidate


def test_weights_are_repeated_rows():
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 3, size=NUM_ROWS)
    repeat = np.repeat(np.arange(NUM_ROWS), weights)
    rules = [
        measured(STATISTICAL, 0.9, 0.1),
        measured(fusion.Scaled(0.5), 0.88, 0.35, first=300),
        measured(DROP, 0.5, 0.5, first=500),
    ]
    repeated = [
        each._replace(
            clean=each.clean[repeat], faults={f: x[repeat] for f, x in each.faults.items()}
        )
        for each in rules
    ]
    for share in (0.05, 0.3, 0.8):
        found = selection.choose(rules, share, weights=weights)
        expected = selection.choose(repeated, share)
        assert found.rule == expected.rule
        np.testing.assert_allclose(found.worth, expected.worth)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got 1.5"):
        selection.choose(three(), 1.5)
    with pytest.raises(ValueError, match="against must be one of faults, anything, got 'all'"):
        selection.choose(three(), 0.1, against="all")  # pyright: ignore[reportArgumentType]
    robust = [measured(fusion.Robust(0.1), 0.8, 0.5)]
    with pytest.raises(ValueError, match="of none of the rules the worst case is known"):
        selection.choose(robust, 0.1, against="anything")
