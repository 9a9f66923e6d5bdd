"""Arguments out of their range: known ones are refused in words, traced ones give NaN."""

from typing import Any

import jax
import numpy as np
import pytest

from jacfuse_jax import (
    attacks,
    bounds,
    calibration,
    certificates,
    corruptions,
    detection,
    fusion,
    metrics,
)
from tests.fusion import rules
from tests.fusion.three_samples import GRAMS, LABELS, LOGITS, PRIOR, K, rng

KEY = jax.random.key(0)
TO_IMAGE: Any = {"epsilon": {"image": 0.1}}
IN_RANGE: Any = {"valid_range": {"image": (-5.0, 5.0)}}


def log_prob_fn(inputs):
    return fusion.statistical_fusion(inputs, PRIOR)


# All that attacks take of labels; each with few steps, since every one is a program.
ATTACKS: dict[str, Any] = {
    "fgm": lambda y: attacks.fgm(log_prob_fn, LOGITS, y, **TO_IMAGE),
    "pgd": lambda y: attacks.pgd(log_prob_fn, LOGITS, y, KEY, **TO_IMAGE, num_steps=1),
    "apgd": lambda y: attacks.apgd(log_prob_fn, LOGITS, y, KEY, **TO_IMAGE, num_steps=2),
    "targeted": lambda y: attacks.apgd(
        log_prob_fn, LOGITS, y, KEY, **TO_IMAGE, num_steps=2, loss="targeted_dlr", num_targets=1
    ),
    "square": lambda y: attacks.square(log_prob_fn, LOGITS, y, KEY, **TO_IMAGE, num_queries=2),
    "random_search": lambda y: attacks.random_search(
        log_prob_fn, LOGITS, y, KEY, **TO_IMAGE, num_queries=1
    ),
    "hop_skip_jump": lambda y: attacks.hop_skip_jump(
        log_prob_fn,
        LOGITS,
        y,
        KEY,
        **TO_IMAGE,
        **IN_RANGE,
        num_iterations=1,
        num_draws=1,
        num_halvings=1,
        num_starts=1,
    ),
    "missing": lambda y: attacks.adversarial_missing(
        log_prob_fn, LOGITS, y, KEY, fraction={"image": 0.5}, fill_value={"image": 0.0}, num_steps=1
    ),
}
FIGURES: dict[str, Any] = {
    "fit_temperature": lambda y: calibration.fit_temperature(LOGITS["image"], y),
    "choose_gamma": lambda y: (
        calibration.choose_gamma(
            fusion.Robust(0.1),
            *(LOGITS, y, PRIOR, KEY),
            perturbed="image",
            grams=GRAMS,
            gammas=(1.0, 0.1),
        ).gamma
    ),
    "choose_contamination": lambda y: (
        calibration.choose_contamination(
            fusion.Contaminated(0.0), LOGITS, y, PRIOR, perturbed="image", contaminations=(0.5,)
        ).contamination
    ),
    "certified_accuracy": lambda y: (
        certificates.certified_accuracy(
            fusion.Contaminated(np.array([0.5])), LOGITS, y, PRIOR, corrupted="image"
        ).clean
    ),
    "fit_detector": lambda y: detection.fit_detector(LOGITS, y, PRIOR)["image"].center,
    "classification_sums": lambda y: metrics.classification_sums(LOGITS["image"], y).correct,
}


def robust_radius(logits, prior):
    return certificates.certified_radius(
        fusion.Robust(0.1), logits, prior, corrupted="image", perturbed="image", grams=GRAMS
    )


class TestLabels:
    @pytest.mark.parametrize("call", [*ATTACKS.values(), *FIGURES.values()])
    def test_known_ones_out_of_range_are_named_with_their_row(self, call):
        for labels, what in (
            (LABELS + 1, "got 4 in row 2"),
            (np.array([0, -1, -100]), "got -1 in row 1"),
        ):
            with pytest.raises(ValueError, match=rf"labels must lie in 0 \.\.\. 3, {what}"):
                call(labels)
        for dtype in (bool, float):
            with pytest.raises(TypeError, match="labels must be integer, got"):
                call(LABELS.astype(dtype))
        with pytest.raises(ValueError, match=r"labels must have shape \(3,\), .* got \(2,\)"):
            call(LABELS[:2])

    def test_traced_ones_out_of_range_make_inputs_under_attack_nan(self):
        @jax.jit
        def attack_all(labels):
            return {name: call(labels)["image"] for name, call in ATTACKS.items()}

        for attacked in attack_all(LABELS + 1).values():
            np.testing.assert_array_equal(np.isnan(attacked).any(axis=1), [False, False, True])
            np.testing.assert_array_equal(np.isnan(attacked).all(axis=1), [False, False, True])

    def test_targets_of_attacks_are_checked_as_labels_are(self):
        def attack(targets):
            options: Any = {**TO_IMAGE, "targets": targets}
            return attacks.fgm(log_prob_fn, LOGITS, LABELS, **options)["image"]

        with pytest.raises(ValueError, match=r"targets must lie in 0 \.\.\. 3, got 4 in row 2"):
            attack(LABELS + 1)
        with pytest.raises(TypeError, match="targets must be integer, got float64"):
            attack(LABELS.astype(float))
        attacked = jax.jit(attack)(LABELS + 1)
        np.testing.assert_array_equal(np.isnan(attacked).all(axis=1), [False, False, True])
        np.testing.assert_array_equal(np.isnan(attacked).any(axis=1), [False, False, True])

    def test_traced_ones_out_of_range_make_figures_nan(self):
        @jax.jit
        def measure_all(labels):
            return {name: call(labels) for name, call in FIGURES.items()}

        for labels, is_nan in ((LABELS + 1, True), (LABELS - 1, True), (LABELS, False)):
            for name, figure in measure_all(labels).items():
                assert np.isnan(figure).all() == is_nan, name
        losses = jax.jit(
            lambda y: [
                attacks.losses.cross_entropy(LOGITS["image"], y),
                attacks.losses.margin(LOGITS["image"], y),
                attacks.losses.dlr(LOGITS["image"], y),
                attacks.losses.targeted_dlr(LOGITS["image"], y, (y + 1) % K),
            ]
        )(LABELS - 1)
        for loss in losses:
            np.testing.assert_array_equal(np.isnan(loss), [True, False, False])


class TestClassPrior:
    @pytest.mark.parametrize(
        "call",
        [
            lambda prior: fusion.statistical_fusion(LOGITS, prior),
            lambda prior: fusion.contaminated_fusion(LOGITS, prior, contamination=0.3),
            lambda prior: fusion.cascade_fusion(
                LOGITS, prior, perturbed="image", confidence=0.5, contamination=0.3
            ),
            lambda prior: fusion.robust_fusion(LOGITS, GRAMS, prior, perturbed="image", gamma=0.1),
            lambda prior: certificates.certify_modality(
                fusion.Contaminated(0.5), LOGITS, prior, corrupted="image"
            ),
            lambda prior: certificates.certified_radius(
                fusion.Contaminated(0.5), LOGITS, prior, corrupted="image"
            ),
            lambda prior: robust_radius(LOGITS, prior),
            lambda prior: bounds.bias_bound(LOGITS, GRAMS, prior, perturbed="image", gamma=0.1),
        ],
    )
    def test_counts_are_refused(self, call):
        with pytest.raises(ValueError, match="must sum to one, got a sum of 200; divide by it"):
            call(200 * PRIOR)

    def test_is_normalised_where_it_was_rounded(self):
        rounded = np.array([0.1, 0.2, 0.3, 0.4005])
        options: Any = {"contamination": 0.3, "perturbed": "image"}
        np.testing.assert_allclose(
            rules.contaminated_fusion(LOGITS, rounded, **options),
            rules.contaminated_fusion(LOGITS, rounded / rounded.sum(), **options),
            rtol=1e-14,
        )

    @pytest.mark.parametrize("prior", [200 * PRIOR, PRIOR - 0.1, PRIOR * np.nan])
    def test_traced_one_out_of_range_gives_nan(self, prior):
        assert np.isnan(rules.statistical_fusion(LOGITS, prior)).all()


class TestScalars:
    def test_traced_ones_out_of_range_give_nan(self):
        options: Any = {"perturbed": "image"}
        for number in (-0.1, 1.1, np.nan):
            for fused in (
                rules.scaled_fusion(LOGITS, PRIOR, scale=number, **options),
                rules.contaminated_fusion(LOGITS, PRIOR, contamination=number, **options),
                rules.contaminated_fusion(
                    LOGITS, PRIOR, contamination=0.1, tempering=number, **options
                ),
                rules.robust_fusion(LOGITS, GRAMS, PRIOR, gamma=number, **options).log_probs,
            ):
                assert np.isnan(fused).all()

    def test_a_traced_fraction_out_of_range_corrupts_to_nan(self):
        x = rng.normal(size=(3, 4, 4, 1))

        @jax.jit
        def corrupt(fraction):
            return [
                corruptions.missing(KEY, x, fraction=fraction),
                corruptions.missing_modality(KEY, x, fraction=fraction),
                corruptions.mismatched_pair(KEY, x, fraction=fraction),
                corruptions.impulse_noise(KEY, x, fraction=fraction, valid_range=(0, 1)),
            ]

        for number in (-0.1, 1.1):
            assert all(np.isnan(corrupted).all() for corrupted in corrupt(number))
        assert not any(np.isnan(corrupted).any() for corrupted in corrupt(0.5))

    def test_candidates(self):
        with pytest.raises(ValueError, match=r"gammas must lie in \(0, 1\], got \(0.1, 0.0\)"):
            calibration.choose_gamma(
                fusion.Robust(0.1),
                *(LOGITS, LABELS, PRIOR, KEY),
                perturbed="image",
                grams=GRAMS,
                gammas=(0.1, 0.0),
            )
        with pytest.raises(ValueError, match=r"contaminations must lie in \[0, 1\], got"):
            calibration.choose_contamination(
                fusion.Contaminated(0.0),
                *(LOGITS, LABELS, PRIOR),
                perturbed="image",
                contaminations=(0.1, 2.0),
            )

    def test_wilson_interval(self):
        for successes, count in ((0, 0), (-1, 2), (3, 2), (1, np.inf)):
            with pytest.raises(ValueError, match=r"successes must lie in \[0, count\]"):
                metrics.wilson_interval(successes, count)


class TestForms:
    def attack(self, **options: Any):
        return attacks.pgd(log_prob_fn, LOGITS, LABELS, KEY, num_steps=1, **options)

    def test_epsilon_and_ranges_are_for_each_modality(self):
        for epsilon, got in ((0.1, "float"), (np.array([0.1]), "ndarray"), (None, "NoneType")):
            with pytest.raises(
                TypeError, match=rf"epsilon must be {{modality: radius}}, got {got}"
            ):
                self.attack(epsilon=epsilon)
        with pytest.raises(TypeError, match=r"valid_range must be {modality: \(low, high\)}"):
            self.attack(**TO_IMAGE, valid_range=(0, 1))
        share: Any = 0.5
        with pytest.raises(TypeError, match=r"fraction must be {modality: share}, got float"):
            attacks.adversarial_missing(
                log_prob_fn, LOGITS, LABELS, KEY, fraction=share, fill_value={"image": 0.0}
            )

    @pytest.mark.parametrize(
        "valid_range", [(1, 0), (np.nan, 1), (0, np.nan), (0.0, np.array([1.0, -1.0, 1.0, 1.0]))]
    )
    def test_an_empty_range_is_refused(self, valid_range):
        with pytest.raises(ValueError, match=r"valid_range\['image'\] must be .* low <= high"):
            self.attack(**TO_IMAGE, valid_range={"image": valid_range})
        with pytest.raises(ValueError, match="valid_range must be .* low <= high"):
            corruptions.gaussian_noise(KEY, LOGITS["image"], stddev=0.1, valid_range=valid_range)
        with pytest.raises(ValueError, match="valid_range must be .* low <= high"):
            jax.jit(
                lambda x: corruptions.gaussian_noise(KEY, x, stddev=0.1, valid_range=valid_range)
            )(LOGITS["image"])

    def test_a_range_must_be_a_pair_that_broadcasts(self):
        with pytest.raises(ValueError, match=r"valid_range\['image'\] must be \(low, high\), got"):
            self.attack(**TO_IMAGE, valid_range={"image": (0, 1, 2)})
        with pytest.raises(ValueError, match=r"must broadcast .* \(7,\) and \(3, 4\)"):
            self.attack(**TO_IMAGE, valid_range={"image": (np.zeros(7), 1)})

    @pytest.mark.parametrize("attack_fn", [attacks.pgd, attacks.apgd])
    def test_traced_ones_out_of_range_give_nan(self, attack_fn):
        @jax.jit
        def attack(low, radius, step):
            return attack_fn(
                *(log_prob_fn, LOGITS, LABELS, KEY),
                num_steps=1,
                epsilon={"image": radius},
                valid_range={"image": (low, 0.0)},
                relative_step_size=step,
            )["image"]

        assert np.isfinite(attack(-1.0, 0.1, 0.5)).all()
        for arguments in ((1.0, 0.1, 0.5), (-1.0, -0.1, 0.5), (-1.0, 0.1, -0.5)):
            assert np.isnan(attack(*arguments)).all()

    def test_logits_grams_and_names(self):
        with pytest.raises(TypeError, match=r"logits must be {modality: \(B, K\)}, got ndarray"):
            fusion.statistical_fusion(LOGITS["image"], PRIOR)  # pyright: ignore
        with pytest.raises(TypeError, match="grams must be {modality: .*}, got GramSpectrum"):
            fusion.robust_fusion(LOGITS, GRAMS["image"], PRIOR, perturbed="image", gamma=0.1)  # pyright: ignore
        with pytest.raises(TypeError, match="perturbed must be a name or a tuple .* got None"):
            fusion.scaled_fusion(LOGITS, PRIOR, perturbed=None, scale=0.5)  # pyright: ignore
        with pytest.raises(ValueError, match=r"log_prob_fn must return shape \(B, K\), got \(3,\)"):
            attacks.fgm(lambda x: x["image"].sum(axis=1), LOGITS, LABELS, **TO_IMAGE)


def fuse_robustly(solver):
    def call(z, _):
        options: Any = {"perturbed": "image", "gamma": 0.1, "solver": solver}
        return rules.robust_fusion(z, GRAMS, PRIOR, **options).log_probs

    return call


@pytest.mark.parametrize(
    "call",
    [
        lambda z, _: rules.statistical_fusion(z, PRIOR),
        lambda z, _: rules.cascade_fusion(z, PRIOR, perturbed="image", confidence=0.5),
        *(fuse_robustly(solver) for solver in ("closed_form", "eigh", "bartels_stewart")),
        lambda z, _: robust_radius(z, PRIOR),
        lambda z, y: metrics.classification_sums(z["image"], y).nll,
        lambda z, y: attacks.square(log_prob_fn, z, y, KEY, **TO_IMAGE, num_queries=2)["image"],
        lambda z, y: attacks.hop_skip_jump(
            log_prob_fn,
            z,
            y,
            KEY,
            **TO_IMAGE,
            **IN_RANGE,
            num_iterations=1,
            num_draws=1,
            num_halvings=1,
            num_starts=1,
        )["image"],
        lambda z, y: attacks.adversarial_missing(
            log_prob_fn, z, y, KEY, fraction={"image": 0.5}, fill_value={"image": 0.0}, num_steps=1
        )["image"],
    ],
)
def test_an_empty_batch_stays_empty(call):
    result = call({name: z[:0] for name, z in LOGITS.items()}, LABELS[:0])
    assert result.shape[:1] in ((0,), ())
