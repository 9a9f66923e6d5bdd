import itertools

import jax
import numpy as np
import pytest

from jacfuse_jax import fusion
from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.measure import ENSEMBLE, WORST_ATTACK, evaluate
from jacfuse_jax.evaluation.names import LINF_ATTACKS
from jacfuse_jax.evaluation.outcomes import predict_all, worst_of
from jacfuse_jax.evaluation.plan import Contest, make_plan
from jacfuse_jax.evaluation.rules import expand, is_recalibrated
from jacfuse_jax.evaluation.steps import run_steps
from jacfuse_jax.evaluation.targets import OWN, Target, applies
from jacfuse_jax.evaluation.threat_models import DETECT, THREAT_MODELS, make_scenarios
from tests.evaluation import tiny

BOTH = tiny.MODALITIES
VALUES = {
    "gamma": (0.5, 0.1),
    "scale": (0.2,),
    "contamination": (0.5,),
    "tempering": (1.0,),
    "confidence": (0.8,),
}


class TestWorstCase:
    def test_takes_the_worst_for_the_label_sample_by_sample(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(7, 60, 4)).round(1)  # rounded, for ties
        candidates = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        candidates[rng.uniform(size=(7, 60)) < 0.02] = np.nan
        candidates[2, 5, 1] = np.nan
        labels = rng.integers(4, size=60)
        found = worst_of(candidates, labels)

        def badness(log_probs, label):
            # A tie is an error where argmax takes the other class.
            margin = np.delete(log_probs, label).max() - log_probs[label]
            if np.isnan(margin):
                return True, np.inf
            return bool(log_probs.argmax() != label), margin.round(9)

        for row, label in enumerate(labels):
            assert any(np.array_equal(found[row], c, equal_nan=True) for c in candidates[:, row])
            worst = max(badness(log_probs, label) for log_probs in candidates[:, row])
            assert badness(found[row], label) == worst

    def test_a_wrong_tie_beats_a_right_one(self):
        labels = np.array([1, 0])
        right, tie = np.log([[0.1, 0.9], [0.9, 0.1]]), np.log([[0.5, 0.5], [0.5, 0.5]])
        np.testing.assert_array_equal(worst_of([right, tie], labels), tie)

    def test_not_a_number_is_the_worst_of_all(self):
        candidates = np.array([[[np.nan, np.nan]], [[-30.0, 0.0]]])
        assert np.isnan(worst_of(candidates, np.array([0]))).all()

    def test_a_certain_prediction_is_not_taken_for_a_wrong_one(self):
        certain, wrong = np.array([[0.0, -np.inf]]), np.array([[-np.inf, 0.0]])
        for order in ([certain, wrong], [wrong, certain]):
            np.testing.assert_array_equal(worst_of(order, np.array([0])), wrong)
        np.testing.assert_array_equal(worst_of([certain], np.array([0])), certain)


def make_contests(scenarios, rules, selected=frozenset()):
    beliefs = dict.fromkeys(scenario.believed for scenario in scenarios)
    return dict.fromkeys(beliefs, Contest(rules, selected))


SCENARIOS = make_scenarios(THREAT_MODELS, BOTH, BOTH)
EVERY_RULE = expand(tiny.NAMES, BOTH, VALUES)


def targets_of(attacked, scenarios, contests):
    plan = make_plan(scenarios, contests, ["fgm"], tiny.KINDS, num_classes=3)
    return [step.target or OWN for step in plan.found[attacked, "fgm", 1]]


class TestTargets:
    @pytest.mark.parametrize("attacked", [("image",), ("audio",), BOTH], ids="+".join)
    def test_are_own_classifiers_fused_rules_under_every_belief_and_surrogates(self, attacked):
        targets = targets_of(attacked, SCENARIOS, make_contests(SCENARIOS, EVERY_RULE))
        others = tuple(m for m in BOTH if m not in attacked)
        beliefs = [BOTH] if len(attacked) == 2 else [attacked, others, BOTH, DETECT]
        expected = {OWN, Target(fusion.Statistical())}
        for rule in EVERY_RULE:
            if rule.searched:
                expected |= {Target(rule, believed) for believed in beliefs}
            elif not rule.name.startswith("unimodal:"):
                expected.add(Target(rule))
            if is_recalibrated(rule):
                expected |= {
                    Target(rule, believed, surrogate)
                    for believed in beliefs
                    for surrogate in ("stop_gradient", "iterated")
                }
        assert targets[0] == OWN
        assert set(targets) == expected
        assert len(targets) == len(expected)

    def test_statistical_fusion_is_attacked_though_nobody_evaluates_it(self):
        scenarios = make_scenarios(["known"], BOTH, BOTH)
        targets = targets_of(("image",), scenarios, make_contests(scenarios, [fusion.Mean()]))
        assert targets == [OWN, Target(fusion.Statistical()), Target(fusion.Mean())]

    def test_surrogates_are_those_of_chosen_parameters(self):
        chosen, other = tiny.robust(0.1), tiny.robust(0.5)
        scenarios = make_scenarios(["known", "unknown"], BOTH, BOTH)
        contests = make_contests(scenarios, [chosen, other], frozenset([chosen]))
        targets = targets_of(("image",), scenarios, contests)
        assert {t for t in targets if t.surrogate} == {
            Target(chosen, believed, surrogate)
            for believed in (("image",), BOTH)
            for surrogate in ("stop_gradient", "iterated")
        }
        # The trade-off is shown where the defender knows; elsewhere what was chosen.
        assert {t.believed for t in targets if t.rule == other} == {("image",)}


def test_steps_are_listed_once_and_only_where_they_apply():
    perturbations = ("clean", "missing", "occlusion", "time_mask", "fgm", "hop_skip_jump")
    contests = make_contests(SCENARIOS, EVERY_RULE)
    steps = make_plan(SCENARIOS, contests, perturbations, tiny.KINDS, num_classes=3).steps
    assert len(set(steps)) == len(steps)
    kinds = {(step.attacked, step.perturbation) for step in steps}
    assert kinds == {
        *itertools.product([("image",), ("audio",)], ["missing", "fgm", "hop_skip_jump"]),
        *itertools.product([BOTH], ["missing", "fgm"]),
        *((("image",), "occlusion"), (("audio",), "time_mask")),
    }
    for attacked, perturbation in kinds:
        of_kind = [s for s in steps if (s.attacked, s.perturbation) == (attacked, perturbation)]
        targets = [None]
        if perturbation in LINF_ATTACKS:
            targets = targets_of(attacked, SCENARIOS, contests)
        assert len(of_kind) == 5 * len(targets)
        assert {(s.severity, s.target) for s in of_kind} == {
            *itertools.product(range(1, 6), targets)
        }
        assert applies(perturbation, attacked, tiny.KINDS)


class Evaluated:
    """An evaluation of all threat models; what was perturbed is random, and worse when severe."""

    PERTURBATIONS = ("clean", "missing", "fgm", "pgd_l2", "pgd")

    def __init__(self):
        self.store = {}
        self.models = tiny.make_models()
        rows = tiny.make_rows(self.models, 20)
        self.rows = rows._replace(groups=np.arange(20, dtype=np.int32) // 4)
        names = ("unimodal", "statistical", "scaled", "robust")
        self.rules = expand(names, BOTH, {**VALUES, "gamma": (0.1,)})
        self.pairs = [(scenario, rule) for scenario in SCENARIOS for rule in self.rules]
        self.contests = make_contests(SCENARIOS, self.rules)
        plan = make_plan(SCENARIOS, self.contests, self.PERTURBATIONS, tiny.KINDS, num_classes=3)
        steps = plan.steps

        def perturb(step, rows):
            rng = np.random.default_rng(steps.index(step))
            z = tiny.observe_all(rows).logits["standard"]
            noisy = {m: z[m] + 0.5 * step.severity * rng.normal(size=z[m].shape) for m in z}
            return Observed({"standard": {m: noisy[m] for m in step.attacked}}, {}, {}, {})

        def perturb_fn(chain, branches, key, rows, found):
            del branches, key, found
            return [perturb(step, rows) for step in chain]

        run_steps(steps, perturb_fn, self.rows, num_attack=12, store=self.store, seed=0)
        self.steps = steps
        self.results, self.outcomes = evaluate(
            plan,
            self.rows,
            self.models.evidence,
            self.store,
            num_attack=12,
            dataset="digits",
            seed=7,
        )

    def correct(self, scenario, method, steps, rows):
        """Rows (N,) that are right whatever step is taken, from the files."""
        results = []
        for step in steps:
            observed = self.store[step]
            log_probs = predict_all(
                method, scenario.believed, [observed], rows, self.models.evidence
            )[0]
            results.append(log_probs.argmax(axis=1) == rows.labels)
        return np.all(results, axis=0)


@pytest.fixture(scope="module")
def evaluated():
    return Evaluated()


def cell_of(row):
    return row.threat_model, row.perturbed, row.perturbation, row.severity, row.rule


def test_every_cell_has_its_rows(evaluated):
    counts = {}
    for row in evaluated.results:
        key = row.threat_model, row.perturbed, row.perturbation, row.severity
        counts[key] = counts.get(key, 0) + 1
        assert (row.dataset, row.seed) == ("digits", 7)
        attacked = row.perturbation not in ("clean", "missing")
        assert row.num_examples == (12 if attacked else 20)
    expected = {}
    for scenario in SCENARIOS:
        key = scenario.threat_model, scenario.perturbed
        expected[*key, "clean", 0] = 5
        for severity in range(1, 6):
            expected[*key, "missing", severity] = 5
            # All of transfer and worst case, the three fused ones of an adaptive attack.
            expected |= {(*key, a, severity): 5 + 5 + 3 for a in ("fgm", "pgd", "pgd_l2")}
            expected[*key, WORST_ATTACK, severity] = 5
    assert counts == expected


def test_an_ensemble_is_right_where_every_attack_fails(evaluated):
    checked = 0
    rows = evaluated.rows.first(12)
    ensembles = [r for r in evaluated.results if r.attack_target == ENSEMBLE]
    by_cell = {cell_of(row): row for row in ensembles}
    for scenario, method in evaluated.pairs:
        of_linf = []
        for perturbation in ("fgm", "pgd", "pgd_l2"):
            steps = [
                step
                for step in evaluated.steps
                if (step.perturbation, step.severity <= 2) == (perturbation, True)
                and step.attacked in scenario.alternatives
            ]
            correct = evaluated.correct(scenario, method, steps, rows)
            key = scenario.threat_model, scenario.perturbed, perturbation, 2
            row = by_cell[*key, method]
            assert row.accuracy == pytest.approx(correct.mean())
            np.testing.assert_array_equal(evaluated.outcomes[*key, method], correct)
            checked += 0 < correct.mean() < 1
            if perturbation != "pgd_l2":
                of_linf.append(correct)
        worst = by_cell[scenario.threat_model, scenario.perturbed, WORST_ATTACK, 2, method]
        assert worst.accuracy == pytest.approx(np.all(of_linf, axis=0).mean())
    assert checked > 50


def test_the_worst_case_is_at_most_each_single_case(evaluated):
    results = evaluated.results
    ensembles = {cell_of(r): r.accuracy for r in results if r.attack_target == ENSEMBLE}
    strictly = 0
    for row in results:
        if row.attack_target is not None:
            assert ensembles[cell_of(row)] <= row.accuracy
            strictly += ensembles[cell_of(row)] < row.accuracy
        if row.perturbation in ("fgm", "pgd") and row.attack_target == ENSEMBLE:
            worst = row._replace(perturbation=WORST_ATTACK)
            assert ensembles[cell_of(worst)] <= row.accuracy
    assert strictly > 10


def test_whichever_hurts_most_hurts_at_least_as_either_alone(evaluated):
    by_cell = {(*cell_of(row), row.attack_target): row.accuracy for row in evaluated.results}
    strictly = 0
    for key, accuracy in by_cell.items():
        if key[0] == "either":
            singles = [by_cell["unknown", modality, *key[2:]] for modality in BOTH]
            assert accuracy <= min(singles)
            strictly += accuracy < min(singles)
    assert strictly > 10


def test_clean_and_corrupted_rows_are_those_of_a_plain_computation(evaluated):
    rows = evaluated.rows
    clean = {cell_of(r): r for r in evaluated.results if r.perturbation in ("clean", "missing")}
    for scenario, method in evaluated.pairs:
        key = scenario.threat_model, scenario.perturbed
        log_probs = predict_all(
            method, scenario.believed, [rows.observed()], rows, evaluated.models.evidence
        )[0]
        accuracy = (log_probs.argmax(axis=1) == rows.labels).mean()
        row = clean[*key, "clean", 0, method]
        assert row.accuracy == pytest.approx(accuracy)
        predicted = log_probs.argmax(axis=1)
        recalls = [(predicted[rows.labels == k] == k).mean() for k in set(rows.labels)]
        assert row.macro_accuracy == pytest.approx(np.mean(recalls))
        assert row.nll == pytest.approx(-log_probs[np.arange(20), rows.labels].mean(), rel=1e-5)
        assert row.attack_target is None
        steps = [
            step
            for step in evaluated.steps
            if (step.perturbation, step.severity) == ("missing", 3)
            and step.attacked in scenario.alternatives
        ]
        correct = evaluated.correct(scenario, method, steps, rows)
        assert clean[*key, "missing", 3, method].accuracy == pytest.approx(correct.mean())


def test_intervals_contain_the_accuracy_and_heed_groups(evaluated):
    assert all(row.ci_low <= row.accuracy <= row.ci_high for row in evaluated.results)
    single = evaluated.rows._replace(groups=np.arange(20, dtype=np.int32))
    scenarios = make_scenarios(["known"], ["image"], BOTH)
    widths = {}
    for name, rows in (("grouped", evaluated.rows), ("single", single)):
        # Rows of a group are right or wrong together here.
        repeated = jax.tree.map(lambda a: a[np.arange(20) // 4 * 4], rows)
        repeated = repeated._replace(groups=rows.groups)
        found, _ = evaluate(
            make_plan(scenarios, evaluated.contests, ["clean"], {}, num_classes=3),
            repeated,
            evaluated.models.evidence,
            {},
            num_attack=12,
            dataset="digits",
            seed=0,
        )
        widths[name] = [row.ci_high - row.ci_low for row in found if 0 < row.accuracy < 1]
    assert widths["single"]
    assert np.all(np.array(widths["grouped"]) > np.array(widths["single"]))


def test_predictions_of_several_perturbations_are_those_of_each(evaluated):
    rows = evaluated.rows.first(12)
    observations = [
        evaluated.store[step]
        for step in evaluated.steps
        if (step.perturbation, step.severity, step.target) == ("fgm", 3, OWN)
    ]
    assert len(observations) == 3  # of image, audio and both
    evidence = evaluated.models.evidence
    found = predict_all(tiny.robust(), ("image",), observations, rows, evidence)
    assert found.shape == (3, 12, tiny.NUM_CLASSES)
    for log_probs, observed in zip(found, observations, strict=True):
        alone = predict_all(tiny.robust(), ("image",), [observed], rows, evidence)[0]
        np.testing.assert_allclose(log_probs, alone, rtol=1e-12)
