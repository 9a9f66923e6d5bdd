"""Attacks of one budget after another: nested, started where the last one ended, never wasted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import attacks, evaluation, fusion
from jacfuse_jax.evaluation import chains, stages
from jacfuse_jax.evaluation.measure import ENSEMBLE
from jacfuse_jax.evaluation.names import APGD_ENSEMBLE
from jacfuse_jax.evaluation.outcomes import certified_rows, predict_all
from jacfuse_jax.evaluation.perturb import make_perturb_fn
from jacfuse_jax.evaluation.plan import Contest, make_plan
from jacfuse_jax.evaluation.rules import Trained
from jacfuse_jax.evaluation.stages import Stage
from jacfuse_jax.evaluation.targets import OWN, STRENGTHS, Step, Target, branch_of
from jacfuse_jax.evaluation.threat_models import make_scenarios
from tests import independent_attack
from tests.evaluation import tiny

KEY = jax.random.key(0)
SCALED = Target(tiny.scaled(0.5), ("image",))
CONTAMINATED = Target(fusion.Contaminated(0.7, 0.3), ("image",))


@pytest.fixture(scope="module")
def models():
    return tiny.make_models()


@pytest.fixture(scope="module")
def rows(models):
    return tiny.make_rows(models, 40)


def attack(models, rows, chain, found=None, **changes):
    options: Any = {"attack_steps": 5, "num_restarts": 1, "batch_size": 16, "with_grams": False}
    perturb_fn = make_perturb_fn(models, **{**options, **changes})
    branches = tuple(dict.fromkeys(branch_of(step) for step in chain))
    return perturb_fn(chain, branches, KEY, rows, found or [[] for _ in chain])


def chain_of(target, perturbation="apgd", severities=(1, 2, 3, 4, 5)):
    return [Step(("image",), perturbation, severity, target) for severity in severities]


def moved(models, rows, observed):
    """How far the image of each row was moved."""
    x = tiny.inputs_of(models, "image", observed.logits["standard"]["image"])
    return np.abs(x - rows.inputs["image"]).max(axis=(1, 2, 3))


def right(models, rows, target, observed):
    log_probs = predict_all(target.rule, target.believed, [observed], rows, models.evidence)[0]
    return log_probs.argmax(axis=1) == rows.labels


@pytest.mark.parametrize("perturbation", ["apgd", "pgd", "fgm", "square", APGD_ENSEMBLE])
def test_a_row_that_is_lost_stays_lost_and_is_not_touched_again(perturbation, models, rows):
    results = attack(models, rows, chain_of(SCALED, perturbation))
    before = right(models, rows, SCALED, rows.observed())
    assert 0 < before.sum() < len(before)
    x_before = rows.inputs["image"]
    num_lost = []
    for severity, observed in enumerate(results, 1):
        x = tiny.inputs_of(models, "image", observed.logits["standard"]["image"])
        np.testing.assert_allclose(x[~before], x_before[~before], atol=1e-8)
        distances = np.abs(x - rows.inputs["image"]).max(axis=(1, 2, 3))
        assert distances.max() <= STRENGTHS[perturbation][severity - 1] + 1e-8
        now = right(models, rows, SCALED, observed)
        assert not (now & ~before).any()
        num_lost.append((~now).sum())
        before, x_before = now, x
    assert num_lost[-1] > num_lost[0]


def test_a_budget_starts_from_what_the_smaller_one_found(models, rows):
    # From the clean input the same attack would find the same again.
    chain = chain_of(SCALED, "pgd_l2", severities=(2, 2))
    first, second = attack(models, rows, chain, attack_steps=1)
    left = right(models, rows, SCALED, first)
    before, after = (margin_of(models, rows, observed)[left] for observed in (first, second))
    assert (after >= before).all()
    assert (after > before).any()


def margin_of(models, rows, observed):
    """How much a wrong class is ahead."""
    log_probs = predict_all(SCALED.rule, ("image",), [observed], rows, models.evidence)[0].copy()
    of_label = log_probs[np.arange(len(log_probs)), rows.labels]
    log_probs[np.arange(len(log_probs)), rows.labels] = -np.inf
    return log_probs.max(axis=1) - of_label


def test_rows_that_are_certified_are_not_attacked(models, rows):
    certified = certified_rows(CONTAMINATED.rule, ("image",), ("image",), rows, models.evidence)
    assert 0 < certified.sum() < len(certified)
    *_, last = attack(models, rows, chain_of(CONTAMINATED))
    assert (moved(models, rows, last)[certified] < 1e-8).all()
    # Whoever does not believe the image perturbed has no certificate.
    others = certified_rows(CONTAMINATED.rule, ("audio",), ("image",), rows, models.evidence)
    assert not others.any()
    assert (moved(models, rows, attack(models, rows, chain_of(OWN))[-1]) > 0).all()


def test_rows_that_another_attack_has_overcome_are_not_attacked(models, rows):
    chain = chain_of(SCALED, severities=(1, 2))
    fooling = rows.observed()
    z = np.zeros((len(rows.labels), tiny.NUM_CLASSES))
    z[:20, 0] = 1e3 * (rows.labels[:20] != 0)
    z[:20, 1] = 1e3 * (rows.labels[:20] == 0)
    z[20:] = 1e3 * np.eye(tiny.NUM_CLASSES)[rows.labels[20:]]
    fooling = fooling._replace(logits={"standard": {"image": z}})
    first, second = attack(models, rows, chain, [[], [fooling]])
    was_right = right(models, rows, SCALED, first)
    same = moved(models, rows, second) == moved(models, rows, first)
    assert same[:20].all()
    assert not same[20:][was_right[20:]].all()


def test_gradients_are_counted_where_rows_are_attacked(models, rows):
    counts: list[int] = []
    options: Any = {"attack_steps": 6, "num_restarts": 2, "on_gradients": counts.append}
    attack(models, rows, chain_of(OWN), **options)
    assert counts == [40 * 6 * 2] * 5
    counts.clear()
    attack(models, rows, chain_of(OWN._replace(towards=1), APGD_ENSEMBLE), **options)
    assert counts == [40 * 3 * 2] * 5
    counts.clear()
    attack(models, rows, chain_of(OWN, "square", severities=(1,)), **options)
    assert counts == [0]
    for target in (CONTAMINATED, SCALED):
        counts.clear()
        results = attack(models, rows, chain_of(target), **options)
        certified = certified_rows(target.rule, ("image",), ("image",), rows, models.evidence)
        before = [rows.observed(), *results[:-1]]
        left = [(right(models, rows, target, o) & ~certified).sum() for o in before]
        assert counts == [12 * count for count in left]
        assert 0 < left[0] < 40
    assert left[0] > left[-1]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (Stage("apgd"), 10 * 3),
        (Stage("pgd_l2"), 10 * 3),
        (Stage("apgd_targeted"), 4 * 10 * 3),
        (Stage("apgd", through="inside"), 10 * 3),
        (Stage("apgd", through="averaged_anew"), 4 * 10 * 3),
        (Stage("fgm", through="outside"), 1),
        (Stage("adversarial_missing"), 10),
        (Stage("hop_skip_jump"), 0),
    ],
)
def test_gradients_of_a_row(stage, expected):
    assert stages.num_gradients(stage, 10, 3, num_classes=5) == expected


def test_closing_stages_are_for_rows_that_are_nearly_lost(models, rows, monkeypatch):
    chain = chain_of(SCALED, severities=(3,))
    first = Stage("fgm")
    monkeypatch.setattr(chains, "stages_of", lambda *_, **__: [first])
    (before,) = attack(models, rows, chain)
    clean, left = (-margin_of(models, rows, o) for o in (rows.observed(), before))
    closing = Stage("apgd_targeted", from_clean=True, share_left=0.5, batch_share=0.25)
    monkeypatch.setattr(chains, "stages_of", lambda *_, **__: [first, closing])
    (after,) = attack(models, rows, chain, attack_steps=20)
    is_near = (left > 0) & (left <= 0.5 * clean)
    changed = moved_by(models, before, after) > 1e-8
    assert 0 < is_near.sum() < (left > 0).sum()
    assert not changed[~is_near].any()
    assert changed[is_near].any()


def moved_by(models, before, after):
    """How far each image is from one attack's to another's."""
    x, y = (tiny.inputs_of(models, "image", o.logits["standard"]["image"]) for o in (before, after))
    return np.abs(x - y).max(axis=(1, 2, 3))


def test_a_rule_ends_on_every_wrong_class_and_a_classifier_on_short_steps():
    def stages_of(target, num_classes=10):
        return stages.stages_of(Step(("image",), APGD_ENSEMBLE, 1, target), num_classes=num_classes)

    of_rule, of_trained = stages_of(SCALED), stages_of(Target(Trained("pgd")))
    short = stages_of(OWN)[-1]
    assert [stage.attack for stage in of_rule] == ["apgd", "apgd_targeted", "apgd", "apgd_targeted"]
    assert of_rule[0].share_left == 1
    assert max(stage.share_left for stage in of_rule[1:]) < 1
    assert (short.from_clean, short.share_left) == (True, 1)
    assert of_trained == [of_rule[0], short, *of_rule[1:]]
    assert {stage.attack for stage in stages_of(SCALED, num_classes=3)} == {"apgd"}
    assert stages_of(SCALED._replace(surrogate="iterated")) == of_rule[:1]


@pytest.mark.parametrize(("num_classes", "expected"), [(4, 3), (6, 5), (10, 9), (40, 9)])
def test_the_targeted_attack_aims_at_every_wrong_class_or_nine(num_classes, expected, monkeypatch):
    given = []
    monkeypatch.setattr(attacks, "apgd", lambda *_, **options: given.append(options))
    x = {"image": jnp.zeros((2, num_classes))}
    labels = jnp.zeros(2, int)
    attack_fn = stages.make_attack("apgd_targeted", 3, 1, num_classes=num_classes)
    attack_fn(lambda x: x["image"], x, labels, KEY)
    assert [(o["loss"], o["num_targets"]) for o in given] == [("targeted_dlr", expected)]


def test_towards_a_class_every_wrong_one_is_reached_in_turn(models, rows):
    wide = models._replace(valid_ranges=dict.fromkeys(tiny.MODALITIES, (-9.0, 9.0)))
    classes = []
    for number in range(1, tiny.NUM_CLASSES):
        target = OWN._replace(towards=number)
        chain = chain_of(target, APGD_ENSEMBLE)
        *_, last = attack(wide, rows, chain, attack_steps=30)
        classes.append(last.logits["standard"]["image"].argmax(axis=1))
    reached = np.stack(classes)
    assert (reached != rows.labels).mean() > 0.9
    distinct = np.array([len(set(of_row)) for of_row in reached.T])
    assert np.median(distinct) >= tiny.NUM_CLASSES - 2


def test_the_plan_aims_the_ensemble_at_every_class_or_nine():
    scenarios = make_scenarios(["known"], ["image"], tiny.MODALITIES)
    contests = {("image",): Contest([fusion.Statistical(), tiny.scaled()], frozenset())}
    for num_classes, expected in ((2, 1), (6, 5), (10, 9), (309, 9)):
        plan = make_plan(scenarios, contests, [APGD_ENSEMBLE], {}, num_classes=num_classes)
        targets = [step.target for step in plan.found[("image",), APGD_ENSEMBLE, 1]]
        assert [t.towards for t in targets if t] == [*range(expected + 1), 0, 0]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_are_attacked_without_the_ratio(num_classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=12)
    x = {m: rng.normal(size=(12, 4)) + np.eye(4)[labels] for m in tiny.MODALITIES}
    kernel = jnp.asarray(np.eye(4)[:, :num_classes])
    classifiers = {
        m: evaluation.Classifier(
            lambda kernel, x: evaluation.UnimodalOutput(x @ kernel, x), kernel, kernel=kernel
        )
        for m in x
    }
    models = evaluation.make_models(classifiers, x, labels)
    found = evaluation.worst_case(
        models, x, labels, [fusion.Statistical()], perturbations=[APGD_ENSEMBLE], attack_steps=3
    )
    accuracies = [r.accuracy for r in found.rows if r.attack_target == ENSEMBLE]
    assert accuracies
    assert min(accuracies) < max(accuracies)


def test_blocks_of_rows_are_as_good_as_all_at_once(models, rows, monkeypatch):
    chain = chain_of(SCALED, "fgm")
    whole = attack(models, rows, chain)
    monkeypatch.setattr(chains, "BATCHES_A_BLOCK", 1)
    for expected, found in zip(whole, attack(models, rows, chain), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found, expected)


@pytest.mark.slow
def test_worst_cases_are_those_of_an_independent_attack(models):
    rows = tiny.make_rows(models, 100, seed=4)
    rules = [
        *(fusion.Statistical(), tiny.scaled(0.5), tiny.robust(0.1), tiny.robust(0.01)),
        *(fusion.Contaminated(0.3, 1.0), fusion.Cascade(0.5)),
    ]
    found = evaluation.worst_case(
        models,
        rows.inputs,
        rows.labels,
        rules,
        perturbed=["image"],
        perturbations=["clean", APGD_ENSEMBLE],
    )
    compared = 0
    for rule in rules:

        def log_prob_fn(x, given, rule=rule):
            z = {"image": tiny.classify(models.classifiers["standard"]["image"].parameters, x)[0]}
            return fusion.fuse(
                rule,
                {**z, "audio": given},
                models.evidence.class_prior,
                perturbed="image",
                grams=models.evidence.grams,
            )

        expected = independent_attack.withstands(
            log_prob_fn,
            rows.inputs["image"],
            rows.outputs["standard"]["audio"].logits,
            rows.labels,
            epsilons=STRENGTHS[APGD_ENSEMBLE],
            valid_range=models.valid_ranges["image"],
            num_targets=5,
        ).mean(axis=1)
        ours = [
            row.accuracy
            for row in found.rows
            if (row.rule, row.perturbation, row.attack_target) == (rule, APGD_ENSEMBLE, ENSEMBLE)
        ]
        assert (ours <= expected + 0.01 + 1e-9).all()  # what is found is real: less is no fault
        assert np.all(np.diff(ours) <= 0)
        certified = [row.certified for row in found.rows if row.rule == rule][-1]
        if certified is not None:
            assert certified <= min(ours) + 1e-9
        compared += ours[0] > ours[-1]
    assert compared >= 4
