import itertools

import numpy as np
import pytest

from jacfuse_jax.evaluation import envelope
from jacfuse_jax.evaluation.baselines import DropSuspect
from jacfuse_jax.evaluation.intervals import (
    bootstrap_interval,
    paired_bootstrap_interval,
    share_values,
)
from jacfuse_jax.evaluation.measure import WORST_ATTACK
from jacfuse_jax.evaluation.selection import BestRule
from tests.evaluation.tiny import STATISTICAL, scaled

NUM_ROWS, NUM_ATTACKED = 300, 120
GROUPS = np.arange(NUM_ROWS, dtype=np.int32) // 2
RULES = (STATISTICAL, scaled(), DropSuspect())


def make_outcomes(seed=0, modality="image"):
    rng = np.random.default_rng(seed)
    outcomes = {}
    for place, rule in enumerate(RULES):
        outcomes["known", modality, "clean", 0, rule] = rng.uniform(size=NUM_ROWS) < 0.9
        for severity in range(1, 6):
            share = 0.9 - 0.05 * severity * (2 - place)
            withstood = rng.uniform(size=NUM_ATTACKED) < share
            outcomes["known", modality, WORST_ATTACK, severity, rule] = withstood
    return outcomes


def make_best(rule, share, modality="image", baselines=RULES):
    expected = dict.fromkeys(baselines, 0.5)
    return BestRule(modality, share, rule, 0.9, 0.1, 0.5, 0.4, 0.6, expected, 9)


class TestShareValues:
    def test_the_mean_is_that_of_clean_and_attacked_rows(self):
        rng = np.random.default_rng(0)
        clean, withstood = rng.uniform(size=50) < 0.8, rng.uniform(size=20)
        values = share_values(clean, withstood, 0.3)
        assert values.shape == (50,)
        assert values.mean() == pytest.approx(0.7 * clean.mean() + 0.3 * withstood.mean())

    def test_the_interval_is_that_of_two_means_resampled_apart(self):
        # Few attacked rows of many: the variance of the sum is that of both means, which a share of
        # rows has in common.
        rng = np.random.default_rng(1)
        clean, withstood = rng.uniform(size=2000) < 0.8, rng.uniform(size=100) < 0.3
        share = 0.4
        means = []
        for _ in range(4000):
            drawn = rng.integers(2000, size=2000)
            of_attacked = withstood[drawn[drawn < 100]].mean()
            means.append((1 - share) * clean[drawn].mean() + share * of_attacked)
        found = bootstrap_interval(share_values(clean, withstood, share), np.arange(2000))
        low, high = np.quantile(means, [0.025, 0.975])
        width = high - low
        assert float(found.low) == pytest.approx(low, abs=0.06 * width)
        assert float(found.high) == pytest.approx(high, abs=0.06 * width)

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_the_ends(self, share):
        clean, withstood = np.array([True, False, True, True]), np.array([0.5, 0.0])
        mean = share_values(clean, withstood, share).mean()
        assert mean == pytest.approx(0.25 if share else 0.75)


def test_lines_compare_the_chosen_rule_with_its_baselines_on_the_same_rows():
    outcomes = make_outcomes()
    best = [make_best(rule, share) for rule, share in ((STATISTICAL, 0.02), (scaled(), 0.5))]
    lines = envelope.measure(3, best, outcomes, GROUPS)
    assert [(x.seed, x.perturbed, x.share, x.rule, x.baseline) for x in lines] == [
        (3, "image", b.share, b.rule, rule) for b, rule in itertools.product(best, RULES)
    ]

    def worth(rule, share):
        worst = [outcomes["known", "image", WORST_ATTACK, s, rule] for s in range(1, 6)]
        clean = outcomes["known", "image", "clean", 0, rule]
        return share_values(clean, np.mean(worst, axis=0), share)

    for line in lines:
        own, other = (worth(rule, line.share) for rule in (line.rule, line.baseline))
        assert line[5:8] == pytest.approx([float(x) for x in bootstrap_interval(own, GROUPS)])
        paired = paired_bootstrap_interval(own, other, GROUPS)
        assert line[9:] == pytest.approx([float(x) for x in paired])
        if line.rule == line.baseline:
            assert line[9:] == (0.0, 0.0, 0.0)


def test_what_was_not_measured_has_no_line():
    outcomes = make_outcomes()
    without = {key: value for key, value in outcomes.items() if key[-1] != DropSuspect()}
    lines = envelope.measure(0, [make_best(scaled(), 0.1)], without, GROUPS)
    assert [line.baseline for line in lines] == [STATISTICAL, scaled()]
    assert not envelope.measure(0, [make_best(DropSuspect(), 0.1)], without, GROUPS)
    assert not envelope.measure(0, [make_best(scaled(), 0.1, "image+audio")], outcomes, GROUPS)
    clean_only = {key: value for key, value in outcomes.items() if key[2] == "clean"}
    assert not envelope.measure(0, [make_best(scaled(), 0.1)], clean_only, GROUPS)
