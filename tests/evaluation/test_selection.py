import functools

import jax
import numpy as np
import pytest

from jacfuse_jax import detection, fusion, metrics
from jacfuse_jax.evaluation.baselines import DropSuspect
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.rules import expand, predict
from jacfuse_jax.evaluation.selection import SHARES, select
from jacfuse_jax.evaluation.targets import OWN, Target
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.fusion import LearnedCascade
from jacfuse_jax.linalg import spectrum_from_kernel
from jacfuse_jax.models import UnimodalOutput
from jacfuse_jax.selection import assign_folds, fit_gate

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
RULES = tuple(
    expand(("unimodal", "mean", "statistical", "scaled", "robust", "contaminated"), BOTH, VALUES)
)
BELIEFS = (("image",), ("audio",), BOTH)
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


@functools.cache
def run(*, rules=RULES, share=0.1, beliefs=BELIEFS, learned=False, group_size=None):
    """What is selected, and the steps that were attacked for it."""
    rows, evidence = make_problem()
    if group_size is not None:
        rows = rows._replace(groups=two_groupings(group_size))
    perturb_fn = PerturbFn()
    selection = select(
        beliefs,
        rules,
        perturb_fn,
        rows,
        evidence,
        attack="pgd",
        num_attack=NUM_ATTACK,
        share=share,
        store={},
        seed=0,
        learned=learned,
    )
    return selection, perturb_fn.steps


def two_groupings(size):
    return np.stack([np.arange(NUM_ROWS), np.arange(NUM_ROWS) // size], axis=1).astype(np.int32)


@functools.cache
def is_right(method, believed, steps=()):
    """Which rows, (N,), are right under each of the steps; clean ones if there is none."""
    rows, evidence = make_problem()
    rows = rows.first(NUM_ATTACK) if steps else rows
    clean = {m: output.logits for m, output in rows.outputs["standard"].items()}
    correct = np.ones(len(rows.labels), bool)
    for step in steps or [None]:
        change = {} if step is None else perturbed_logits(step, rows)["standard"]
        observed = Observed({"standard": {**clean, **change}}, {}, {}, {})
        log_probs = PREDICT(method, observed, evidence=evidence, believed=believed)
        correct &= np.asarray(log_probs).argmax(axis=1) == rows.labels
    return correct


def accuracy(method, believed):
    return is_right(method, believed).mean()


def withstood(method, believed, steps):
    """By brute force: how often rows are right, over severities and modalities."""
    found = []
    for modality in BOTH if believed == DETECT else believed:
        for severity in (1, 2, 3, 4, 5):
            # What a smaller budget found counts for a larger one.
            chosen = tuple(s for s in steps if s.attacked == (modality,) and s.severity <= severity)
            assert chosen
            found.append(is_right(method, believed, chosen))
    return np.mean(found, axis=0)


def worth(method, believed, steps, share):
    """Of every row, (N,); the mean is that of clean rows and that of attacked ones, weighted."""
    clean = is_right(method, believed).astype(float)
    attacked = withstood(method, believed, steps)
    moved = np.zeros(NUM_ROWS)
    moved[:NUM_ATTACK] = (attacked - attacked.mean()) * NUM_ROWS / NUM_ATTACK
    return (1 - share) * clean + share * (attacked.mean() + moved)


def expected_choice(methods, believed, steps_of, share, groups=None):
    """What the documentation says: the cleanest of those not told from the best, if worth it."""
    values = {m: worth(m, believed, steps_of(m), share) for m in methods}
    best = max(values.values(), key=np.mean)
    bar = worth(STATISTICAL, believed, steps_of(STATISTICAL), share).mean()
    if believed in (("image",), ("audio",)):
        bar = max(bar, worth(DropSuspect(), believed, steps_of(DropSuspect()), share).mean())
    bar = min(bar, best.mean()) - 1e-9

    def low(method):
        columns = np.arange(NUM_ROWS)[:, None] if groups is None else groups
        return min(
            metrics.bootstrap_interval(best - values[method], 0, groups=column).low
            for column in columns.T
        )

    feasible = [m for m in methods if values[m].mean() >= bar and low(m) <= 1e-9]
    return max(feasible, key=lambda m: round(accuracy(m, believed), 9))


@pytest.fixture(scope="module")
def selected():
    return run()


def tunable(rule=None):
    return [m for m in RULES if m.searched and rule in (None, m.name)]


NAMES = list(dict.fromkeys(m.name for m in tunable()))
JUDGED = [m for m in RULES if m.name in ("mean", "statistical", *NAMES)]


def chosen_of(selection, believed):
    return {method.name: method for method in selection.contests[believed].selected}


def attacked_in(steps, modality):
    return {step.target for step in steps if step.attacked == (modality,)}


def test_scores_are_those_of_a_plain_computation(selected):
    selection, steps = selected
    assert [(s.believed, s.rule) for s in selection.scores] == [
        ("+".join(believed), method) for believed in BELIEFS for method in JUDGED
    ]
    scores = {(s.believed, s.rule): s for s in selection.scores}
    for believed in BELIEFS:
        for method in JUDGED:
            score = scores["+".join(believed), method]
            assert score.clean == pytest.approx(accuracy(method, believed))
            assert score.selected == (method in selection.contests[believed].selected)
            target = Target(method, believed if method.searched else ())
            was_attacked = all(target in attacked_in(steps, modality) for modality in believed)
            assert (score.robust is not None) == was_attacked
            if was_attacked:
                expected = withstood(method, believed, steps).mean()
                assert score.robust == pytest.approx(expected)
    assert {s.robust is None for s in selection.scores} == {True, False}  # both occur here


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("believed", BELIEFS, ids="+".join)
def test_chosen_is_the_cleanest_of_those_that_rows_do_not_tell_from_the_best(believed, share):
    selection, steps = run(share=share, beliefs=(believed,))
    chosen = chosen_of(selection, believed)
    assert set(chosen) == set(NAMES)

    def as_far_as_attacked(method):
        del method
        return steps

    def as_if_attacked(method):
        """What was found, and what would be if attacks were aimed at it, too."""
        (some, *_) = steps
        target = Target(method, believed if method.searched else ())
        own = [
            some._replace(attacked=(modality,), severity=severity, target=target)
            for modality in believed
            for severity in (1, 2, 3, 4, 5)
        ]
        return [*steps, *own]

    for name, method in chosen.items():
        for steps_of in (as_far_as_attacked, as_if_attacked):
            assert method == expected_choice(tunable(name), believed, steps_of, share)
    for best in selection.best:
        for steps_of in (as_far_as_attacked, as_if_attacked):
            assert best.rule == expected_choice(JUDGED, believed, steps_of, best.share)


def test_shares_choose_differently():
    of_none, of_all = (run(share=share)[0] for share in (0.0, 1.0))
    for believed in BELIEFS[:2]:
        assert of_none.contests[believed].selected != of_all.contests[believed].selected
        clean = [
            {name: accuracy(m, believed) for name, m in chosen_of(found, believed).items()}
            for found in (of_none, of_all)
        ]
        assert all(clean[0][name] >= clean[1][name] for name in NAMES)


def test_the_best_rule_of_every_share(selected):
    selection, steps = selected
    assert [(b.believed, b.share) for b in selection.best] == [
        ("+".join(believed), share) for believed in BELIEFS for share in SHARES
    ]
    for best in selection.best:
        believed = tuple(best.believed.split("+"))
        values = worth(best.rule, believed, steps, best.share)
        assert best.expected == pytest.approx(values.mean())
        mixed = (1 - best.share) * best.clean + best.share * best.robust
        assert best.expected == pytest.approx(mixed)
        assert best.low < best.expected < best.high
        scaled = expected_choice(tunable("scaled"), believed, lambda _: steps, best.share)
        baselines = [STATISTICAL, *([DropSuspect()] if len(believed) == 1 else []), scaled]
        assert list(best.baselines) == baselines
        for baseline, expected in best.baselines.items():
            of_baseline = worth(baseline, believed, steps, best.share).mean()
            assert expected == pytest.approx(of_baseline)
        assert best.num_candidates == len(tunable()) + 2


def test_intervals_are_the_widest_of_several_groupings():
    believed = ("image",)
    selection, steps = run(share=0.5, beliefs=(believed,), group_size=40)
    for name, method in chosen_of(selection, believed).items():
        expected = expected_choice(
            tunable(name), believed, lambda _: steps, 0.5, groups=two_groupings(40)
        )
        assert method == expected


def test_a_defender_who_detects_is_judged_on_attacks_against_itself():
    rules = (STATISTICAL, *(fusion.Scaled(t) for t in (0.5, 0.2)))
    selection, steps = run(rules=rules, share=0.5, beliefs=(DETECT,))
    assert {step.attacked for step in steps} == {("image",), ("audio",)}
    assert {step.target.believed for step in steps} == {(), DETECT}
    for method, score in zip(rules, selection.scores, strict=True):
        assert (score.believed, score.rule) == ("detect", method)
        assert score.clean == pytest.approx(accuracy(method, DETECT))
        if score.robust is not None:
            assert score.robust == pytest.approx(withstood(method, DETECT, steps).mean())
    (chosen,) = selection.contests[DETECT].selected
    assert chosen == expected_choice(rules[1:], DETECT, lambda _: steps, 0.5)


@pytest.mark.parametrize("believed", BELIEFS, ids="+".join)
def test_kept_are_what_is_chosen_for_any_share_and_rules_without_parameters(believed, selected):
    selection, steps = selected
    kept = selection.contests[believed].rules
    assert [m for m in RULES if m in kept] == kept  # in order
    assert [m for m in kept if not m.searched] == [m for m in RULES if not m.searched]
    chosen = {*selection.contests[believed].selected}
    for share in SHARES:
        chosen.add(expected_choice(tunable("scaled"), believed, lambda _: steps, share))
    chosen |= {best.rule for best in selection.best if best.believed == "+".join(believed)}
    assert {m for m in kept if m.searched} == {m for m in chosen if m.searched}


def test_attacked_are_the_classifiers_statistical_fusion_and_what_a_choice_rests_on(selected):
    selection, steps = selected
    assert len(set(steps)) == len(steps)
    for modality in BOTH:
        of_modality = [step for step in steps if step.attacked == (modality,)]
        assert {step.perturbation for step in of_modality} == {"pgd"}
        first = {s.target for s in of_modality[:10]}
        assert first == {OWN, Target(STATISTICAL)}
        found = attacked_in(steps, modality)
        for severity in (1, 2, 3, 4, 5):
            assert {s.target for s in of_modality if s.severity == severity} == found
        for believed in ((modality,), BOTH):
            for method in selection.contests[believed].selected:
                assert Target(method, believed) in found
        assert len(found) < 2 + 2 * len(tunable())


def test_a_prediction_that_is_not_a_number_is_never_right():
    rows, evidence = make_problem()
    rows = rows._replace(labels=np.zeros_like(rows.labels))  # argmax of NaN is class 0

    def perturb_fn(chain, branches, key, rows, found):
        del branches, key, found
        (modality,) = chain[0].attacked
        nothing = {modality: np.full((len(rows.labels), K), np.nan)}
        return [Observed({"standard": nothing}, {}, {}, {}) for _ in chain]

    selection = select(
        [("image",)],
        [STATISTICAL, fusion.Scaled(0.5)],
        perturb_fn,
        rows,
        evidence,
        attack="pgd",
        num_attack=NUM_ATTACK,
        share=0.5,
        store={},
        seed=0,
    )
    assert [score.robust for score in selection.scores] == [0.0, 0.0]


def flips(chain, branches, key, rows, found):
    """The image speaks for class 1, wherever it is attacked."""
    del branches, key, found
    driven = np.zeros((len(rows.labels), K))
    driven[:, 1] = 10
    return [Observed({"standard": {"image": driven}}, {}, {}, {}) for _ in chain]


def choose_scale(share, rules):
    """Of ten rows both get seven right, the image one more; nobody the last two."""
    labels = np.zeros(10, int)
    image, audio = np.zeros((10, K)), np.zeros((10, K))
    image[:7, 0], audio[:7, 0] = 5, 5
    image[7, 0], audio[7, 1] = 3, 1
    image[8:, 1], audio[8:, 1] = 5, 5
    outputs = {
        m: UnimodalOutput(z, np.zeros((10, 3)))  # pyright: ignore[reportArgumentType]
        for m, z in (("image", image), ("audio", audio))
    }
    return select(
        [("image",)],
        rules,
        flips,
        Rows({}, labels, np.arange(10, dtype=np.int32), {"standard": outputs}, {}, {}, {}),
        make_problem()[1],
        attack="pgd",
        num_attack=10,
        share=share,
        store={},
        seed=0,
    )


def test_what_is_worth_less_than_dropping_is_not_chosen():
    # One row tells them apart: no interval would.
    rules = [STATISTICAL, *(fusion.Scaled(t) for t in (0.9, 0.1))]
    for share, chosen in ((0.1, 0.9), (0.13, 0.1)):
        selection = choose_scale(share, rules)
        assert [(s.clean, s.robust) for s in selection.scores[:2]] == [(0.8, 0.0), (0.8, 0.0)]
        assert selection.scores[2].clean == 0.7
        assert selection.contests["image",].selected == {fusion.Scaled(chosen)}
        (best,) = (b for b in selection.best if b.share == share)
        assert best.rule == (STATISTICAL if chosen == 0.9 else fusion.Scaled(chosen))
        expected: dict[fusion.Rule, float] = {
            STATISTICAL: 0.8 * (1 - share),
            DropSuspect(): 0.7,
            fusion.Scaled(chosen): 0.7 if chosen == 0.1 else 0.8 * (1 - share),
        }
        assert best.baselines == pytest.approx(expected)


def test_a_belief_under_which_nothing_can_be_chosen_has_all_its_rules():
    for beliefs, learned in (((BOTH,), True), ((DETECT,), True), ((("image",), BOTH), False)):
        selection, _ = run(rules=RULES[:2], beliefs=beliefs, learned=learned)  # of one modality
        assert not selection.best
        for believed in beliefs:
            assert selection.contests[believed] == (list(RULES[:2]), frozenset())
    selection, _ = run(rules=RULES[:2], beliefs=(("image",), BOTH), learned=True)
    assert selection.contests[BOTH].rules == list(RULES[:2])
    assert {best.believed for best in selection.best} == {"image"}
    assert all(isinstance(best.rule, LearnedCascade) for best in selection.best)


class TestLearnedCascades:
    def test_are_fitted_to_what_attacks_on_statistical_fusion_leave(self):
        selection, steps = run(learned=True)
        rows, evidence = make_problem()
        for believed in BELIEFS:
            rules = [s.rule for s in selection.scores if s.believed == "+".join(believed)]
            learned = [rule for rule in rules if isinstance(rule, LearnedCascade)]
            if believed == BOTH:
                assert not learned  # nobody is trusted
                continue
            assert [rule.share for rule in learned] == [0.1, 0.02, 0.05, 0.2, 0.5, 0.8]
            targets = (OWN, Target(STATISTICAL))
            first = [step for step in steps if step.target in targets]
            attacked = np.full(NUM_ROWS, np.nan)
            attacked[:NUM_ATTACK] = withstood(STATISTICAL, believed, first)
            gate = fit_gate(
                {m: output.logits for m, output in rows.outputs["standard"].items()},
                rows.labels,
                evidence.class_prior,
                perturbed=believed,
                attacked=attacked,
                groups=rows.groups,
            )
            assert all(rule.gate == gate for rule in learned)
            chosen = [m for m in selection.contests[believed].selected if m in learned]
            assert len(chosen) == 1
            assert chosen[0] in selection.contests[believed].rules

    def test_are_judged_on_rows_that_they_were_not_fitted_to(self):
        selection, steps = run(learned=True)
        rows, evidence = make_problem()
        believed = ("image",)
        first = [step for step in steps if step.target in (OWN, Target(STATISTICAL))]
        attacked = np.full(NUM_ROWS, np.nan)
        attacked[:NUM_ATTACK] = withstood(STATISTICAL, believed, first)
        folds = assign_folds(NUM_ROWS, groups=rows.groups)
        logits = {m: output.logits for m, output in rows.outputs["standard"].items()}
        gates = [
            fit_gate(
                {m: z[folds != fold] for m, z in logits.items()},
                rows.labels[folds != fold],
                evidence.class_prior,
                perturbed=believed,
                attacked=attacked[folds != fold],
                groups=rows.groups[folds != fold],
            )
            for fold in range(folds.max() + 1)
        ]
        for score in selection.scores:
            if score.believed == "image" and score.rule.parameters.get("share") in (0.1, 0.8):
                share = score.rule.parameters["share"]
                right = [is_right(LearnedCascade(share, *gate), believed) for gate in gates]
                assert score.clean == np.stack(right)[folds, np.arange(NUM_ROWS)].mean()
