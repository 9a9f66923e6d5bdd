import itertools

import numpy as np
import pytest
import scipy.special

from jacfuse_jax import fusion
from jacfuse_jax.evaluation.measure import ENSEMBLE, WORST_ATTACK, flatten
from jacfuse_jax.evaluation.rules import Unimodal
from jacfuse_jax.evaluation.summary import compare, hypervolumes, summarise
from jacfuse_jax.evaluation.targets import STRENGTHS
from tests.evaluation.tiny import STATISTICAL, make_row, robust, scaled

NUM_ROWS, NUM_ATTACKED = 40, 20
MEAN, IMAGE = fusion.Mean(), Unimodal("image")
RULES = [IMAGE, MEAN, STATISTICAL, scaled(), robust(0.1), robust(0.5)]
SELECTED = {scaled(): True, robust(0.1): True, robust(0.5): False}
CORRUPTIONS = ("missing", "gaussian_noise")
ATTACKS = ("fgm", "pgd", "pgd_l2")
GROUPS = np.arange(NUM_ROWS, dtype=np.int32) // 2 * 2


class Run:
    """Rows and outcomes of one threat model, from random right and wrong rows."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.rows, self.outcomes = [], {}
        # Methods differ in how much they lose.
        strength = dict(zip(RULES, (0.75, 0.85, 0.9, 0.8, 0.88, 0.5), strict=True))
        for method in RULES:
            self.add(method, "clean", 0, None, rng, strength[method])
            for name, severity in itertools.product(CORRUPTIONS, range(1, 6)):
                self.add(method, name, severity, None, rng, strength[method] - 0.06 * severity)
            for name, severity in itertools.product(ATTACKS, range(1, 6)):
                for target in ("unimodal", method.name, ENSEMBLE):
                    if not (target == method.name and method == IMAGE):
                        self.add(method, name, severity, target, rng, 0.9 - 0.12 * severity)
            for severity in range(1, 6):
                share = strength[method] - 0.08 * severity
                self.add(method, WORST_ATTACK, severity, ENSEMBLE, rng, share)

    def add(self, method, perturbation, severity, target, rng, share):
        count = NUM_ROWS if perturbation in ("clean", *CORRUPTIONS) else NUM_ATTACKED
        correct = rng.uniform(size=count) < share
        row = make_row(
            method,
            perturbation=perturbation,
            severity=severity,
            attack_target=target,
            accuracy=float(correct.mean()),
            num_examples=count,
            selected=SELECTED.get(method),
        )
        self.rows.append(row)
        if target in (None, ENSEMBLE):
            self.outcomes["known", "image", perturbation, severity, method] = correct

    def accuracy(self, method, perturbation, severity, target=None):
        (found,) = (
            row.accuracy
            for row in self.rows
            if (row.rule, row.perturbation, row.severity, row.attack_target)
            == (method, perturbation, severity, target)
        )
        return found

    def curve(self, method):
        worst = [self.accuracy(method, WORST_ATTACK, s, ENSEMBLE) for s in range(1, 6)]
        return np.array([self.accuracy(method, "clean", 0), *worst])


@pytest.fixture(scope="module")
def measured():
    return Run()


@pytest.fixture(scope="module")
def lines(measured):
    found = summarise(measured.rows, measured.outcomes, GROUPS)
    return {x.rule: x for x in found}


def test_every_method_has_one_line(lines):
    assert list(lines) == RULES
    assert [line.selected for line in lines.values()] == [SELECTED.get(m) for m in RULES]
    assert {(x.seed, x.threat_model, x.perturbed) for x in lines.values()} == {
        (0, "known", "image")
    }


@pytest.mark.parametrize("method", RULES, ids=lambda method: method.label)
class TestNumbers:
    def test_means(self, method, measured, lines):
        line = lines[method]
        assert line.clean == measured.accuracy(method, "clean", 0)
        corrupted = [
            measured.accuracy(method, name, s) for name in CORRUPTIONS for s in range(1, 6)
        ]
        assert line.corruptions == pytest.approx(np.mean(corrupted))
        for field, target in (("transfer", "unimodal"), ("adaptive", method.name)):
            if (method, field) == (IMAGE, "adaptive"):
                assert line.adaptive is None
                continue
            of_linf = [
                measured.accuracy(method, name, s, target)
                for name in ("fgm", "pgd")
                for s in range(1, 6)
            ]
            assert getattr(line, field) == pytest.approx(np.mean(of_linf))

    def test_worst_case_and_its_interval(self, method, measured, lines):
        line = lines[method]
        assert line.worst == pytest.approx(measured.curve(method)[1:].mean())
        assert line.worst_low is not None
        assert line.worst_high is not None
        assert line.worst_low < line.worst < line.worst_high
        # Near the normal interval of means over the ten groups of two rows.
        correct = np.mean(
            [measured.outcomes["known", "image", WORST_ATTACK, s, method] for s in range(1, 6)],
            axis=0,
        )
        stddev = correct.reshape(-1, 2).mean(axis=1).std() / np.sqrt(NUM_ATTACKED / 2)
        assert (line.worst_high - line.worst_low) / (2 * 1.96 * stddev) == pytest.approx(1, abs=0.2)

    def test_areas(self, method, measured, lines):
        epsilons = np.array([0, *STRENGTHS["pgd"]])
        widths = np.diff(epsilons) / epsilons[-1]

        def area(curve):
            return ((curve[1:] + curve[:-1]) / 2 * widths).sum()

        curve, reference = measured.curve(method), measured.curve(STATISTICAL)
        assert lines[method].curve_area == pytest.approx(area(curve))
        beyond = area(curve - reference) - (curve[0] - reference[0])
        assert lines[method].effective_area == pytest.approx(beyond, abs=1e-12)

    def test_robustness_of_taori(self, method, measured, lines):
        clean, worst = {}, {}
        for m in RULES:
            curve = measured.curve(m)
            clean[m], worst[m] = curve[0], curve[1:].mean()
        line = lines[method]
        expected = worst[method] - worst[STATISTICAL]
        assert line.relative_robustness == pytest.approx(expected, abs=1e-12)
        x, y = (
            scipy.special.logit([of[m] for m in (IMAGE, MEAN, STATISTICAL)])
            for of in (clean, worst)
        )
        slope, intercept = np.polyfit(x, y, 1)
        beta = scipy.special.expit(slope * scipy.special.logit(clean[method]) + intercept)
        assert line.effective_robustness == pytest.approx(worst[method] - beta, abs=1e-9)

    def test_corruption_errors(self, method, measured, lines):
        def errors(of, name):
            return np.array([1 - measured.accuracy(of, name, s) for s in range(1, 6)])

        line, reference = lines[method], STATISTICAL
        own, other = (1 - measured.accuracy(m, "clean", 0) for m in (method, reference))
        ratios = [errors(method, n).sum() / errors(reference, n).sum() for n in CORRUPTIONS]
        assert line.mce == pytest.approx(np.mean(ratios))
        ratios = [
            (errors(method, n) - own).sum() / (errors(reference, n) - other).sum()
            for n in CORRUPTIONS
        ]
        assert line.relative_mce == pytest.approx(np.mean(ratios))


def test_threat_models_and_modalities_do_not_mix(measured, lines):
    other = Run(seed=1)
    rows, outcomes = list(measured.rows), dict(measured.outcomes)
    for threat_model, perturbed in (("known", "audio"), ("unknown", "image")):
        rows += [r._replace(threat_model=threat_model, perturbed=perturbed) for r in other.rows]
        outcomes |= {(threat_model, perturbed, *key[2:]): x for key, x in other.outcomes.items()}
    found = summarise(rows, outcomes, GROUPS)
    assert found[: len(RULES)] == list(lines.values())
    alone = summarise(other.rows, other.outcomes, GROUPS)
    assert alone != list(lines.values())
    assert found[len(RULES) :] == [
        line._replace(threat_model=threat_model, perturbed=perturbed)
        for threat_model, perturbed in (("known", "audio"), ("unknown", "image"))
        for line in alone
    ]
    compared = compare(0, rows, outcomes, GROUPS)
    of_first = [x for x in compared if (x.threat_model, x.perturbed) == ("known", "image")]
    assert of_first == compare(0, measured.rows, measured.outcomes, GROUPS)
    assert len(compared) == 3 * len(of_first)


def test_what_a_run_has_not_is_left_empty():
    (line,) = summarise([make_row(MEAN)], {}, GROUPS)
    empty = {name for name, value in flatten(line).items() if value is None}
    parameters = {"gamma", "scale", "contamination", "tempering", "confidence"}
    assert empty == {*flatten(line)} - {"seed", "threat_model", "perturbed", "method", "clean"}
    assert parameters <= empty


def cancelling():
    """Changes of right rows that sum to zero, whose errors do not in floating-point numbers."""
    for changes in itertools.product(range(-2, 3), repeat=5):
        errors = [(1 - (41 - change) / 60) - (1 - 41 / 60) for change in changes]
        if sum(changes) == 0 and sum(errors) > 0:
            return changes
    raise AssertionError("no such changes")


@pytest.mark.parametrize("changes", [(0, 0, 0, 0, 0), (-1, -1, -1, -1, -1), cancelling()], ids=str)
def test_a_corruption_that_does_not_degrade_the_reference_is_left_out(changes):
    statistical = STATISTICAL
    rows = [make_row(method, accuracy=41 / 60) for method in (statistical, MEAN)]
    for severity, change in enumerate(changes, start=1):
        for method in (statistical, MEAN):
            noisy = (36 if method == MEAN else 31) / 60
            missing = (21 if method == MEAN else 41 - change) / 60
            for name, accuracy in (("gaussian_noise", noisy), ("missing", missing)):
                changed = {"perturbation": name, "severity": severity, "accuracy": accuracy}
                rows.append(make_row(method, **changed))
    lines = {x.rule.name: x for x in summarise(rows, {}, GROUPS)}
    assert lines["statistical"].mce == lines["statistical"].relative_mce == 1
    assert lines["mean"].mce == pytest.approx(24 / 29)
    assert lines["mean"].relative_mce == pytest.approx(5 / 10)


class TestComparison:
    def test_is_of_the_chosen_against_the_chosen_scaled_method(self, measured):
        lines = compare(0, measured.rows, measured.outcomes, GROUPS)
        assert {x.baseline for x in lines} == {scaled()}
        assert {x.rule for x in lines} == {MEAN, STATISTICAL, robust(0.1)}
        severities = {}
        for line in lines:
            severities.setdefault((line.rule, line.perturbation), []).append(line.severity)
        assert severities == {
            (method, name): [0] if name == "clean" else [1, 2, 3, 4, 5, None]
            for method in (MEAN, STATISTICAL, robust(0.1))
            for name in ("clean", *CORRUPTIONS, WORST_ATTACK)
        }

    def test_is_positive_where_the_method_is_better(self, measured):
        for line in compare(0, measured.rows, measured.outcomes, GROUPS):
            severities = range(1, 6) if line.severity is None else [line.severity]
            a, b = (
                np.mean(
                    [
                        measured.outcomes["known", "image", line.perturbation, s, m]
                        for s in severities
                    ],
                    axis=0,
                )
                for m in (line.rule, scaled())
            )
            assert line.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
            assert line.low <= line.difference <= line.high
            # Paired, over groups: about the normal interval of their mean differences.
            differences = (a - b).reshape(-1, 2).mean(axis=1)
            width = 2 * 1.96 * differences.std() / np.sqrt(len(differences))
            assert line.high - line.low == pytest.approx(width, rel=0.35, abs=1e-12)

    def test_needs_a_chosen_scaled_method(self, measured):
        rows = [row._replace(selected=None) for row in measured.rows]
        assert compare(0, rows, measured.outcomes, GROUPS) == []


def test_hypervolume_is_the_union_of_rectangles(lines):
    areas = hypervolumes(lines.values())
    assert set(areas) == {"scaled", "robust"}
    grid = (np.arange(1000) + 0.5) / 1000
    for rule, area in areas.items():
        points = [x for x in lines.values() if x.rule.name in (rule, "statistical")]
        assert len(points) == (3 if rule == "robust" else 2)
        dominated = np.zeros((1000, 1000), bool)
        for x in points:
            dominated |= (grid[:, None] < x.clean) & (grid < x.worst)
        assert area == pytest.approx(dominated.mean(), abs=2e-3)
