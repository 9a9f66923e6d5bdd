from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import evaluation, fusion
from jacfuse_jax.evaluation.measure import WORST_ATTACK, flatten
from jacfuse_jax.evaluation.targets import STRENGTHS

N, SHAPE = 60, (2, 2, 1)
MODALITIES = ("image", "audio", "text")
RULES = [fusion.Statistical(), fusion.Scaled(0.25), fusion.Scaled(0.0)]


def classify(kernel, x):
    features = x.reshape(len(x), -1)
    return evaluation.UnimodalOutput(features @ kernel, features)


def make_problem(modalities):
    """Linear classifiers of two classes: what the strongest attack does to them is known."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=N)
    kernels = {m: np.stack([np.zeros(4), rng.normal(size=4)], axis=1) for m in modalities}
    arrays = {}
    for m, kernel in kernels.items():
        towards = np.where(labels == 1, 1, -1)[:, None] * kernel[:, 1]
        arrays[m] = (0.15 * towards + 0.4 * rng.normal(size=(N, 4))).reshape(N, *SHAPE)
    return kernels, arrays, labels


def make_classifiers(kernels):
    return {
        m: evaluation.Classifier(classify, kernel, kernel=jnp.asarray(kernel))
        for m, kernel in kernels.items()
    }


def make_models(kernels, arrays, labels):
    ranges = dict.fromkeys(kernels, (-100.0, 100.0))
    return evaluation.make_models(
        make_classifiers(kernels), arrays, labels, class_prior=np.full(2, 0.5), valid_ranges=ranges
    )


def exact_accuracy(kernels, arrays, labels, perturbed, weight, epsilon):
    """The log-odds of the label less what the 1-norm of the perturbed weights can take."""
    log_odds = np.zeros(N)
    for m, kernel in kernels.items():
        own = weight if m == perturbed else 1
        log_odds += own * arrays[m].reshape(N, -1) @ kernel[:, 1]
    margin = np.where(labels == 1, log_odds, -log_odds)
    return (margin - weight * epsilon * np.abs(kernels[perturbed][:, 1]).sum() > 0).mean()


@pytest.mark.parametrize("modalities", [MODALITIES[:2], MODALITIES], ids="+".join)
def test_linear_classifiers_are_as_robust_as_their_margins_say(modalities):
    kernels, arrays, labels = make_problem(modalities)
    found = evaluation.worst_case(
        make_models(kernels, arrays, labels), arrays, labels, RULES, perturbations=["clean", "pgd"]
    )
    seen = set()
    for row in found.rows:
        if row.perturbation not in ("clean", WORST_ATTACK):
            continue
        epsilon = (0.0, *STRENGTHS["pgd"])[row.severity]
        weight = row.rule.parameters.get("scale", 1)
        expected = exact_accuracy(kernels, arrays, labels, row.perturbed, weight, epsilon)
        assert row.accuracy == pytest.approx(expected)
        seen.add((row.perturbed, row.severity, row.rule))
    assert len(seen) == len(modalities) * 6 * len(RULES)
    # Attacks matter here, and not to a rule that drops what they are on.
    worst = {(x.perturbed, x.rule): x.worst or 0 for x in found.summary()}
    clean = {(x.perturbed, x.rule): x.clean or 0 for x in found.summary()}
    for modality in modalities:
        assert worst[modality, RULES[0]] < clean[modality, RULES[0]]
        assert worst[modality, RULES[2]] == clean[modality, RULES[2]]


def test_what_was_kept_is_not_done_again():
    kernels, arrays, labels = make_problem(MODALITIES[:2])
    models = make_models(kernels, arrays, labels)

    class Store(dict[Any, Any]):
        def __setitem__(self, step, observed):
            added.append(step)
            super().__setitem__(step, observed)

    added, store = [], Store()
    options: Any = {"perturbations": ["clean", "missing", "fgm"], "store": store, "num_attack": 20}
    first = evaluation.worst_case(models, arrays, labels, RULES[:1], **options)
    assert len(added) == len(set(added)) == 2 * (5 + 5 * 2)  # both modalities; two targets
    again = evaluation.worst_case(models, arrays, labels, RULES[:1], **options)
    assert len(added) == 30
    assert [flatten(row) for row in again.rows] == [flatten(row) for row in first.rows]


def test_defaults_are_those_of_the_rows():
    kernels, arrays, labels = make_problem(MODALITIES[:2])
    models = evaluation.make_models(make_classifiers(kernels), arrays, labels)
    for modality, x in arrays.items():
        assert models.valid_ranges[modality] == (x.min(), x.max())
        np.testing.assert_array_equal(models.fill_values[modality], x.mean(axis=0))
        spread = x.reshape(-1, x.shape[-1]).std(axis=0)
        np.testing.assert_allclose(models.stddevs[modality], spread, rtol=1e-5)
    np.testing.assert_allclose(models.evidence.class_prior, [0.5, 0.5])
