"""Rules that check inputs, attacked as by somebody who knows the check."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import evaluation, fusion
from jacfuse_jax.evaluation.input_checks import Projection, ResidualCheck
from jacfuse_jax.evaluation.measure import ENSEMBLE
from jacfuse_jax.evaluation.names import APGD_ENSEMBLE
from jacfuse_jax.evaluation.outcomes import certified_rows
from jacfuse_jax.evaluation.stages import stages_of
from jacfuse_jax.evaluation.targets import STRENGTHS, Step, Target
from tests import independent_attack
from tests.evaluation import tiny

EPSILONS = STRENGTHS[APGD_ENSEMBLE]


@pytest.fixture(scope="module")
def models():
    return tiny.make_models(with_subspaces=True)


@pytest.fixture(scope="module")
def rows(models):
    return tiny.make_rows(models, 100, seed=4)


def worst_cases(models, rows, rule):
    """Accuracies at every budget."""
    found = evaluation.worst_case(
        models,
        rows.inputs,
        rows.labels,
        [rule],
        perturbed=["image"],
        perturbations=["clean", APGD_ENSEMBLE],
    ).rows
    of_rule = [r for r in found if (r.rule, r.attack_target) == (rule, ENSEMBLE)]
    return [r.accuracy for r in of_rule if r.perturbation == APGD_ENSEMBLE]


class Plane:
    """The hyperplane of `tiny`, by its normal."""

    def __init__(self, models):
        subspace = models.subspaces["image"]
        basis = np.asarray(subspace.basis)
        self.normal = np.linalg.svd(basis.T)[2][-1]
        self.offset = self.normal @ np.asarray(subspace.point)
        self.threshold = float(subspace.threshold)

    def levels(self, low, high):
        """How far the corners of a box, (N, D), are along the normal: the least and the most."""
        ends = ((low, high), (high, low))
        return (np.where(self.normal > 0, *end) @ self.normal - self.offset for end in ends)

    def can_leave(self, low, high):
        """Whether some corner of a box, (N, D), is outside."""
        down, up = self.levels(low, high)
        return np.maximum(up, -down) > self.threshold

    def cannot_enter(self, low, high):
        """Whether all of a box is outside."""
        down, up = self.levels(low, high)
        return np.maximum(down, -up) > self.threshold

    def come_inside(self, x, low, high):
        """By bisection: how far along the normal, clipped to the box, the slab is."""
        flat = x.reshape(len(x), -1)
        low, high = low.reshape(flat.shape), high.reshape(flat.shape)
        level = flat @ self.normal - self.offset
        goal = jnp.clip(level, -self.threshold * (1 - 1e-9), self.threshold * (1 - 1e-9))
        near, far = -10 * jnp.ones(len(flat)), 10 * jnp.ones(len(flat))
        for _ in range(60):
            shift = (near + far) / 2
            moved = jnp.clip(flat + shift[:, None] * self.normal[None], low, high)
            is_below = moved @ self.normal - self.offset < goal
            near, far = jnp.where(is_below, shift, near), jnp.where(is_below, far, shift)
        shift = jax.lax.stop_gradient((near + far) / 2)
        moved = jnp.clip(flat + shift[:, None] * self.normal[None], low, high)
        inside: Any = jnp.where((goal != level)[:, None], moved, flat)
        return inside.reshape(x.shape)


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [1.0, 0.5])
def test_a_residual_check_is_overcome_as_by_hand(models, rows, confidence):
    plane = Plane(models)
    prior, clean = models.evidence.class_prior, rows.inputs["image"]
    audio = rows.outputs["standard"]["audio"].logits
    kernel = models.classifiers["standard"]["image"].parameters

    def log_prob_fn(x, given):
        inside = plane.come_inside(x, given["low"], given["high"])
        logits = {"image": tiny.classify(kernel, inside)[0], "audio": given["audio"]}
        return fusion.cascade_fusion(logits, prior, perturbed="image", confidence=confidence)

    dropped = fusion.statistical_fusion({"audio": audio}, prior).argmax(axis=1) == rows.labels
    is_outside = rows.residuals["image"] > 1
    assert 0 < is_outside.mean() < 0.5
    expected, left = [], np.ones(len(rows.labels), bool)
    for epsilon in EPSILONS:
        low, high = (np.clip(clean + side * epsilon, 0, 1) for side in (-1, 1))
        inside = independent_attack.withstands(
            log_prob_fn,
            clean,
            {"audio": audio, "low": low, "high": high},
            rows.labels,
            epsilons=[epsilon],
            valid_range=models.valid_ranges["image"],
            num_targets=5,
            num_steps=60,
        )[0]
        low, high = low.reshape(len(low), -1), high.reshape(len(high), -1)
        # Those that start too far outside may not come inside at all.
        cannot = is_outside & plane.cannot_enter(low, high)
        left &= np.where(plane.can_leave(low, high), dropped, True) & (inside | cannot)
        expected.append(left.mean())
    ours = worst_cases(models, rows, ResidualCheck(confidence))
    assert np.max(np.subtract(ours, expected)) <= 0.01 + 1e-9
    assert np.max(np.subtract(expected, ours)) <= 0.05
    assert ours[-1] < ours[0]
    # As it stands, the check hides the gradient of what it drops.
    assert np.all(np.diff(ours) <= 0)


@pytest.mark.slow
def test_a_projection_is_overcome_as_by_hand(models, rows):
    plane = Plane(models)
    audio = rows.outputs["standard"]["audio"].logits
    kernel = models.classifiers["standard"]["image"].parameters

    def log_prob_fn(x, given):
        flat = x.reshape(len(x), -1)
        level = flat @ plane.normal - plane.offset
        kept = (flat - level[:, None] * plane.normal[None]).reshape(x.shape)
        logits = {"image": tiny.classify(kernel, kept)[0], "audio": given}
        return fusion.statistical_fusion(logits, models.evidence.class_prior)

    expected = independent_attack.withstands(
        log_prob_fn,
        rows.inputs["image"],
        audio,
        rows.labels,
        epsilons=EPSILONS,
        valid_range=models.valid_ranges["image"],
        num_targets=5,
        num_steps=60,
    ).mean(axis=1)
    ours = worst_cases(models, rows, Projection(1.0))
    assert np.max(np.subtract(ours, expected)) <= 0.01 + 1e-9
    assert np.max(np.subtract(expected, ours)) <= 0.05
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("check", [Projection, ResidualCheck])
def test_a_cascade_after_a_check_is_certified_as_without_where_all_it_checks_is_corrupted(
    check, models, rows
):
    def certified(rule, believed):
        return certified_rows(rule, believed, ("image",), rows, models.evidence)

    found = certified(check(0.5), ("image",))
    np.testing.assert_array_equal(found, certified(fusion.Cascade(0.5), ("image",)))
    assert 0 < found.sum() < len(found)
    assert not certified(check(0.5), ("audio",)).any()
    assert not certified(check(1.0), ("image",)).any()


def test_attacks_stay_inside_then_leave_and_differentiate_averages():
    def through(rule, perturbation):
        step = Step(("image",), perturbation, 3, Target(rule, ("image",)))
        return [stage.through for stage in stages_of(step, num_classes=10)]

    found = through(ResidualCheck(1.0), APGD_ENSEMBLE)
    assert set(found) == {"inside", "outside", "averaged", "averaged_anew"}
    assert through(ResidualCheck(1.0), "apgd") == ["inside"]
    for rule in (Projection(1.0), fusion.Statistical()):
        assert set(through(rule, APGD_ENSEMBLE)) == {""}


def test_a_rule_with_a_check_needs_subspaces(rows):
    without: Any = tiny.make_models()
    with pytest.raises(ValueError, match=r"projection.*subspaces"):
        evaluation.worst_case(without, rows.inputs, rows.labels, [Projection(1.0)])
