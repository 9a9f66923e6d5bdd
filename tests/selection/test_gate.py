from typing import Any

import jax
import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression

from jacfuse_jax import fusion, selection
from jacfuse_jax.selection import _logistic


def make_regression(num_rows=600, seed=0):
    rng = np.random.default_rng(seed)
    features = np.append(rng.normal(2, [1, 5, 0.1], (num_rows, 3)), np.ones((num_rows, 1)), axis=1)
    w = np.array([0.8, -0.2, 3.0, -6.0])
    is_right = rng.uniform(size=num_rows) < scipy.special.expit(features @ w)
    return features, is_right.astype(float), rng.integers(0, 5, size=num_rows), w


class TestFitProbability:
    def test_is_scikit_learns_regression_at_the_penalty_that_is_best_held_out(self):
        features, targets, folds, _ = make_regression()
        ones = np.ones(len(targets))
        found = _logistic.fit_probability(features, targets, folds, ones)
        # Targets that are drawn in are rows of both classes, weighted.
        low, high = 1 / ((1 - targets).sum() + 2), (targets.sum() + 1) / (targets.sum() + 2)
        soft = low + (high - low) * targets
        x = (features[:, :3] - features[:, :3].mean(0)) / features[:, :3].std(0)

        def fit(rows, penalty):
            model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=1000)
            both = np.concatenate([x[rows], x[rows]])
            classes = np.repeat([1, 0], len(x[rows]))
            return model.fit(both, classes, np.concatenate([soft[rows], 1 - soft[rows]]))

        def held_out(penalty):
            total = 0.0
            for fold in range(5):
                p = fit(folds != fold, penalty).predict_proba(x[folds == fold])
                t = soft[folds == fold]
                total -= (t * np.log(p[:, 1]) + (1 - t) * np.log(p[:, 0])).sum()
            return total

        best = min((0.01, 0.1, 1.0, 10.0, 100.0, 1000.0), key=held_out)
        expected = fit(np.ones(len(x), bool), best)
        np.testing.assert_allclose(
            scipy.special.expit(features @ found), expected.predict_proba(x)[:, 1], atol=2e-4
        )

    def test_finds_what_made_the_data(self):
        features, targets, folds, w = make_regression(num_rows=40_000)
        found = _logistic.fit_probability(features, targets, folds, np.ones(len(targets)))
        truth = scipy.special.expit(features @ w)
        assert np.abs(scipy.special.expit(features @ found) - truth).max() < 0.03

    def test_integer_weights_are_repeated_rows(self):
        features, targets, folds, _ = make_regression(200)
        weights = np.random.default_rng(1).integers(0, 4, size=200)
        rows = np.repeat(np.arange(200), weights)
        # Features are standardised by the rows that there are.
        whole = _logistic.fit_probability(features, targets, folds, weights.astype(float))
        repeated = _logistic.fit_probability(
            features[rows], targets[rows], folds[rows], np.ones(len(rows))
        )
        np.testing.assert_allclose(features @ whole, features @ repeated, atol=2e-3)

    def test_rounding_of_a_constant_is_no_feature(self):
        rng = np.random.default_rng(0)
        constant = np.float32(np.log(1 / 3)) + 1e-7 * rng.normal(size=300)
        features = np.stack([constant, np.ones(300)], axis=1)
        targets = (rng.uniform(size=300) < 0.5).astype(float)
        w = _logistic.fit_probability(features, targets, np.arange(300) % 5, np.ones(300))
        assert np.abs(w).max() < 2

    @pytest.mark.parametrize("target", [0.0, 1.0])
    def test_of_targets_all_alike_it_is_sure_but_finite(self, target):
        features, _, folds, _ = make_regression(100)
        w = _logistic.fit_probability(features, np.full(100, target), folds, np.ones(100))
        found = scipy.special.expit(features @ w)
        np.testing.assert_allclose(found, (100 * target + 1) / 102, atol=1e-3)


def make_rows(num_rows=3000, num_classes=4, seed=0):
    """Two independent modalities, calibrated, of which the second is the better one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, size=num_rows)
    logits = {
        name: strength**2 * np.eye(num_classes)[labels]
        + strength * rng.normal(size=(num_rows, num_classes))
        for name, strength in (("image", 2.5), ("audio", 1.5))
    }
    return logits, labels, np.full(num_classes, 1 / num_classes)


def expected_worth(rule, logits, labels, prior, share):
    """(1 - share) clean + share (right whatever the image says)."""
    fused = np.asarray(fusion.fuse(rule, logits, prior, perturbed="image"))
    alone = np.asarray(jax.nn.log_softmax(logits["audio"]))
    is_right = fused.argmax(axis=1) == labels
    decides = np.isclose(fused, alone, rtol=1e-9).all(axis=1)
    return (1 - share) * is_right.mean() + share * (is_right & decides).mean()


class TestFitGate:
    @pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
    def test_no_confidence_is_better_by_more_than_noise(self, share):
        logits, labels, prior = make_rows()
        gate = selection.fit_gate(logits, labels, prior, perturbed="image")
        new = make_rows(20_000, seed=1)
        learned = expected_worth(fusion.LearnedCascade(share, *gate), *new, share)
        searched = max(
            expected_worth(fusion.Cascade(c), *new, share) for c in np.linspace(0, 1, 21)
        )
        baselines = [fusion.Statistical(), fusion.Cascade(0.0)]
        assert learned > searched - 0.004
        assert learned > max(expected_worth(rule, *new, share) for rule in baselines) - 0.002

    def test_the_ends_of_the_share_are_dropping_and_the_better_of_both(self):
        logits, labels, prior = make_rows()
        gate = selection.fit_gate(logits, labels, prior, perturbed="image")
        fused = fusion.fuse(fusion.LearnedCascade(1.0, *gate), logits, prior, perturbed="image")
        np.testing.assert_allclose(fused, jax.nn.log_softmax(logits["audio"]), rtol=1e-12)
        fused = fusion.fuse(fusion.LearnedCascade(0.0, *gate), logits, prior, perturbed="image")
        accuracy = (np.asarray(fused).argmax(axis=1) == labels).mean()
        statistical = fusion.statistical_fusion(logits, prior)
        assert accuracy >= (np.asarray(statistical).argmax(axis=1) == labels).mean() - 0.003

    def test_attacks_that_fail_are_asked_about(self):
        logits, labels, prior = make_rows()
        fused = np.asarray(fusion.statistical_fusion(logits, prior)).argmax(axis=1)
        options: Any = {"perturbed": "image", "attacked": fused == labels}
        gate = selection.fit_gate(logits, labels, prior, **options)
        np.testing.assert_allclose(np.array(gate.attacked), np.array(gate.fused), atol=1e-9)
        harmless = fusion.LearnedCascade(0.5, *gate)
        wary = fusion.LearnedCascade(0.5, *gate[:2], ())
        assert expected_worth(harmless, logits, labels, prior, 0) > expected_worth(
            wary, logits, labels, prior, 0
        )

    def test_rows_of_which_it_is_not_known_whether_they_withstand_enter_the_other_two(self):
        logits, labels, prior = make_rows(400)
        groups = np.arange(400) // 2
        rng = np.random.default_rng(0)
        withstood = (rng.uniform(size=400) < 0.3).astype(float)
        options: Any = {"perturbed": "image", "groups": groups}
        some = np.where(np.arange(400) < 150, withstood, np.nan)
        found = selection.fit_gate(logits, labels, prior, attacked=some, **options)
        never = selection.fit_gate(logits, labels, prior, **options)
        assert found[:2] == never[:2]
        first = selection.fit_gate(
            {m: z[:150] for m, z in logits.items()},
            labels[:150],
            prior,
            perturbed="image",
            attacked=withstood[:150],
            groups=groups[:150],
        )
        assert found.attacked == first.attacked
        alone = np.where(np.arange(400) < 2, withstood, np.nan)
        with pytest.raises(ValueError, match="two groups"):
            selection.fit_gate(logits, labels, prior, attacked=alone, **options)

    def test_rows_without_a_trusted_modality_are_not_used(self):
        logits, labels, prior = make_rows(300)
        present = {"audio": np.arange(300) % 3 > 0, "image": np.arange(300) % 5 > 0}
        holed = {m: np.where(present[m][:, None], z, np.nan) for m, z in logits.items()}
        found = selection.fit_gate(holed, labels, prior, perturbed="image", present=present)
        has = present["audio"]
        expected = selection.fit_gate(
            {m: z[has] for m, z in holed.items()},
            labels[has],
            prior,
            perturbed="image",
            present={m: mask[has] for m, mask in present.items()},
        )
        np.testing.assert_allclose(np.array(found.alone), np.array(expected.alone), rtol=1e-6)
        np.testing.assert_allclose(np.array(found.fused), np.array(expected.fused), rtol=1e-6)

    def test_many_classes_are_not_told_apart(self):
        logits, labels, prior = make_rows(500, num_classes=309)
        gate = selection.fit_gate(logits, labels, prior, perturbed="image")
        assert [len(weights) for weights in gate] == [6, 6, 0]
        fused = fusion.fuse(fusion.LearnedCascade(0.3, *gate), logits, prior, perturbed="image")
        assert np.isfinite(np.asarray(fused)).all()

    def test_bad_arguments_are_refused(self):
        logits, labels, prior = make_rows(50)
        with pytest.raises(ValueError, match="leaves no modality that could decide alone"):
            selection.fit_gate(logits, labels, prior, perturbed=("image", "audio"))
        logits["audio"][3] = np.nan
        with pytest.raises(ValueError, match="a trusted modality says nothing in some rows"):
            selection.fit_gate(logits, labels, prior, perturbed="image")
        gate = fusion.Gate((1.0,) * 3, (1.0,) * 9)
        with pytest.raises(ValueError, match="alone must have 9 weights for 4 classes, got 3"):
            fusion.fuse(fusion.LearnedCascade(0.1, *gate), logits, prior, perturbed="image")
