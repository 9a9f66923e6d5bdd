import functools

import jax
import numpy as np
import pytest

from jacfuse_jax import detection, fusion
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.rules import expand, predict
from jacfuse_jax.evaluation.selection import select
from jacfuse_jax.evaluation.targets import OWN, Target
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.linalg import spectrum_from_kernel
from jacfuse_jax.models import UnimodalOutput

BOTH = ("image", "audio")
K = 4
NUM_ROWS, NUM_ATTACK = 200, 60
GAMMAS, SCALES = (0.5, 0.05, 0.001), (0.9, 0.6, 0.3, 0.1)
VALUES = {
    "gamma": GAMMAS,
    "scale": SCALES,
    "contamination": (0.3, 0.9),
    "tempering": (1.0, 0.5),
}
RULES = expand(
    ("unimodal", "mean", "statistical", "scaled", "robust", "contaminated"), BOTH, VALUES
)
BELIEFS = [("image",), ("audio",), BOTH]
STATISTICAL = fusion.Statistical()
PREDICT = jax.jit(predict, static_argnames="believed")


@functools.cache
def make_problem(seed=0):
    """Rows with noisy logits; the audio is more often right than the image."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(K, size=NUM_ROWS)
    one_hot = np.eye(K)[labels]
    logits = {
        m: weight * one_hot + rng.normal(size=(NUM_ROWS, K))
        for m, weight in (("image", 1.2), ("audio", 1.6))
    }
    outputs = {m: UnimodalOutput(z, np.zeros((NUM_ROWS, 3))) for m, z in logits.items()}  # pyright: ignore[reportArgumentType]
    groups = np.arange(NUM_ROWS, dtype=np.int32)
    rows = Rows({}, labels, groups, {"standard": outputs}, {}, {}, {})
    evidence = Evidence(
        {m: spectrum_from_kernel(rng.normal(size=(6, K))) for m in BOTH},
        np.full(K, 1 / K),  # pyright: ignore[reportArgumentType]
        {},
        np.eye(K),  # pyright: ignore[reportArgumentType]
        detection.fit_detector(logits, labels, np.full(K, 1 / K)),
        {},
    )
    return rows, evidence


class PerturbFn:
    """Drives logits from the label, the more the severer; remembers what was attacked."""

    def __init__(self):
        self.steps = []

    def __call__(self, chain, branches, key, rows, found):
        del branches, key, found
        self.steps.extend(chain)
        return [Observed(perturbed_logits(step, rows), {}, {}, {}) for step in chain]


def perturbed_logits(step, rows):
    (modality,) = step.attacked
    seed = sum(map(ord, step.target.name)) + step.severity
    z = rows.outputs["standard"][modality].logits
    away = np.random.default_rng(seed).uniform(size=(len(z), K)) * (1 - np.eye(K)[rows.labels])
    return {"standard": {modality: z + 0.8 * step.severity * away}}


def run(*, rules=RULES, max_clean_loss=0.02, beliefs=BELIEFS):
    rows, evidence = make_problem()
    perturb_fn = PerturbFn()
    contests, scores = select(
        beliefs,
        rules,
        perturb_fn,
        rows,
        evidence,
        attack="pgd",
        num_attack=NUM_ATTACK,
        max_clean_loss=max_clean_loss,
        store={},
        seed=0,
    )
    return contests, scores, perturb_fn.steps


@functools.cache
def accuracy(method, believed, steps=()):
    """Share of rows that are right under each of the steps; of clean ones if there is none."""
    rows, evidence = make_problem()
    rows = rows.first(NUM_ATTACK) if steps else rows
    clean = {m: output.logits for m, output in rows.outputs["standard"].items()}
    correct = np.ones(len(rows.labels), bool)
    for step in steps or [None]:
        change = {} if step is None else perturbed_logits(step, rows)["standard"]
        observed = Observed({"standard": {**clean, **change}}, {}, {}, {})
        log_probs = PREDICT(method, observed, evidence=evidence, believed=believed)
        correct &= np.asarray(log_probs).argmax(axis=1) == rows.labels
    return correct.mean()


def robust_accuracy(method, believed, steps):
    """By brute force: right under all attacks of a severity, mean over severities, modalities."""
    found = []
    for modality in BOTH if believed == DETECT else believed:
        for severity in (2, 3, 4, 5):
            # What a smaller budget found counts for a larger one.
            chosen = tuple(s for s in steps if s.attacked == (modality,) and s.severity <= severity)
            assert chosen
            found.append(accuracy(method, believed, chosen))
    return np.mean(found)


@pytest.fixture(scope="module")
def selected():
    return run()


def tunable(rule=None):
    return [m for m in RULES if m.searched and rule in (None, m.name)]


def test_scores_are_those_of_a_plain_computation(selected):
    contests, scores, steps = selected
    assert [(s.believed, s.rule) for s in scores] == [
        ("+".join(believed), method) for believed in BELIEFS for method in tunable()
    ]
    for believed in BELIEFS:
        for method in tunable():
            (score,) = (s for s in scores if (s.believed, s.rule) == ("+".join(believed), method))
            assert score.clean == pytest.approx(accuracy(method, believed))
            assert score.selected == (method in contests[believed].selected)
            hopeless = score.clean < accuracy(STATISTICAL, ()) - 3 * 0.02 - 1e-9
            assert (score.robust is None) == hopeless
            if score.robust is not None:
                expected = robust_accuracy(method, believed, steps)
                assert score.robust == pytest.approx(expected)
    assert {s.robust is None for s in scores} == {True, False}  # both occur here


@pytest.mark.parametrize("believed", BELIEFS, ids="+".join)
def test_the_most_robust_that_keeps_clean_accuracy_is_chosen(believed, selected):
    contests, _, steps = selected
    least = accuracy(STATISTICAL, ()) - 0.02
    chosen = {method.name: method for method in contests[believed].selected}
    assert set(chosen) == {"scaled", "robust", "contaminated"}
    for rule, method in chosen.items():
        feasible = [m for m in tunable(rule) if accuracy(m, believed) >= least]
        if feasible:
            assert method in feasible
            best = max(robust_accuracy(m, believed, steps) for m in feasible)
            assert robust_accuracy(method, believed, steps) == pytest.approx(best)
        else:
            best = max(accuracy(m, believed) for m in tunable(rule))
            assert accuracy(method, believed) == pytest.approx(best)


def test_what_is_chosen_is_not_what_an_unbounded_loss_would_choose(selected):
    unbounded, scores, _ = run(max_clean_loss=1.0)
    assert all(score.robust is not None for score in scores)
    for believed in BELIEFS:
        for method in unbounded[believed].selected:
            of_rule = [s for s in scores if s.rule.name == method.name]
            of_rule = [s for s in of_rule if s.believed == "+".join(believed)]
            (own,) = (s for s in of_rule if s.rule == method)
            assert own.robust == max(s.robust for s in of_rule if s.robust is not None)
    assert any(unbounded[b].selected != selected[0][b].selected for b in BELIEFS)


def test_a_defender_who_detects_is_judged_on_attacks_against_those_who_know():
    rules = [STATISTICAL, *(fusion.Scaled(t) for t in (0.5, 0.2))]
    contests, scores, steps = run(rules=rules, max_clean_loss=1.0, beliefs=[DETECT])
    assert {step.attacked for step in steps} == {("image",), ("audio",)}
    assert all(step.target.believed in ((), step.attacked) for step in steps)
    for method, score in zip(rules[1:], scores, strict=True):
        assert (score.believed, score.rule) == ("detect", method)
        assert score.clean == pytest.approx(accuracy(method, DETECT))
        assert score.robust == pytest.approx(robust_accuracy(method, DETECT, steps))
    assert len({score.robust for score in scores}) == 2
    best = max(scores, key=lambda score: score.robust or 0)
    assert [*contests[DETECT].selected] == [best.rule]


def test_without_a_feasible_combination_the_highest_clean_accuracy_is_chosen():
    rules = [STATISTICAL, *(fusion.Scaled(s) for s in (0.0, 0.05, 0.02))]
    contests, _, _ = run(rules=rules, max_clean_loss=0.0, beliefs=[("audio",)])
    clean = [accuracy(m, ("audio",)) for m in rules]
    assert max(clean[1:]) < clean[0]  # none is feasible
    (chosen,) = contests["audio",].selected
    assert accuracy(chosen, ("audio",)) == max(clean[1:])


@pytest.mark.parametrize("believed", BELIEFS, ids="+".join)
def test_kept_are_the_chosen_the_front_and_rules_without_parameters(believed, selected):
    contests, scores, _ = selected
    kept = contests[believed].rules
    assert contests[believed].selected <= set(kept)
    assert [m for m in RULES if m in kept] == kept  # in order
    assert [m for m in kept if not m.searched] == [m for m in RULES if not m.searched]
    points = {s.rule: (s.clean, s.robust) for s in scores if s.believed == "+".join(believed)}
    for method in tunable():
        clean, robust = points[method]
        others = [points[m] for m in tunable(method.name) if points[m][1] is not None]
        dominated = robust is None or any(
            c >= clean and r >= robust and (c, r) != (clean, robust) for c, r in others
        )
        expected = not dominated or method in contests[believed].selected
        assert (method in kept) == expected


def test_attacked_are_the_classifiers_statistical_fusion_and_promising_combinations(selected):
    _, _, steps = selected
    assert len(set(steps)) == len(steps)
    least = accuracy(STATISTICAL, ()) - 3 * 0.02
    for modality in BOTH:
        promising = [m for m in tunable() if accuracy(m, (modality,)) >= least - 1e-9]
        expected = {OWN, Target(STATISTICAL), *(Target(m, (modality,)) for m in promising)}
        of_modality = [step for step in steps if step.attacked == (modality,)]
        assert {step.perturbation for step in of_modality} == {"pgd"}
        for severity in (2, 3, 4, 5):
            assert {s.target for s in of_modality if s.severity == severity} == expected
        assert len(of_modality) == 4 * len(expected)


def test_a_prediction_that_is_not_a_number_is_never_right():
    rows, evidence = make_problem()
    rows = rows._replace(labels=np.zeros_like(rows.labels))  # argmax of NaN is class 0

    def perturb_fn(chain, branches, key, rows, found):
        del branches, key, found
        (modality,) = chain[0].attacked
        nothing = {modality: np.full((len(rows.labels), K), np.nan)}
        return [Observed({"standard": nothing}, {}, {}, {}) for _ in chain]

    _, scores = select(
        [("image",)],
        [STATISTICAL, fusion.Scaled(0.5)],
        perturb_fn,
        rows,
        evidence,
        attack="pgd",
        num_attack=NUM_ATTACK,
        max_clean_loss=1.0,
        store={},
        seed=0,
    )
    assert [score.robust for score in scores] == [0.0]


def test_a_combination_at_the_bound_is_feasible():
    # Seven rows that both classifiers get right, one that the image alone does, two that none does.
    labels = np.zeros(10, int)
    image, audio = np.zeros((10, K)), np.zeros((10, K))
    image[:7, 0], audio[:7, 0] = 5, 5
    image[7, 0], audio[7, 1] = 3, 1
    image[8:, 1], audio[8:, 1] = 5, 5
    outputs = {
        m: UnimodalOutput(z, np.zeros((10, 3)))  # pyright: ignore[reportArgumentType]
        for m, z in (("image", image), ("audio", audio))
    }
    _, evidence = make_problem()

    def perturb_fn(chain, branches, key, rows, found):
        del branches, key, found
        driven = np.zeros((len(rows.labels), K))
        driven[:, 1] = 10
        return [Observed({"standard": {"image": driven}}, {}, {}, {}) for _ in chain]

    contests, scores = select(
        [("image",)],
        [STATISTICAL, *(fusion.Scaled(t) for t in (0.9, 0.1))],
        perturb_fn,
        Rows({}, labels, np.arange(10, dtype=np.int32), {"standard": outputs}, {}, {}, {}),
        evidence,
        attack="pgd",
        num_attack=10,
        max_clean_loss=0.1,  # 0.8 - 0.1 > 0.7 in floating-point numbers
        store={},
        seed=0,
    )
    assert [(s.clean, s.robust) for s in scores] == [(0.8, 0.0), (0.7, 0.7)]
    assert contests["image",].selected == {fusion.Scaled(0.1)}
