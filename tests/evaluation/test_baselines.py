import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jacfuse_jax import fusion
from jacfuse_jax.evaluation.baselines import (
    BASELINES,
    Calibrated,
    DempsterShafer,
    DropSuspect,
    EnergyWeighted,
    MajorityVote,
    Median,
    ProbEn,
    TrimmedMean,
)
from jacfuse_jax.evaluation.evidence import fit_evidence
from jacfuse_jax.evaluation.rules import NAMES, expand
from tests import reference
from tests.evaluation import oracles

MODALITIES = ("image", "audio", "text")
TEMPERATURES = {"image": 1.0, "audio": 2.0, "text": 0.5}
ERROR_RATES = {"image": 0.3, "audio": 0.05, "text": 0.6}
RULES = {
    "prob_en": ProbEn(TEMPERATURES),
    "drop_suspect": DropSuspect(),
    "dempster_shafer": DempsterShafer(TEMPERATURES, ERROR_RATES),
    "energy_weighted": EnergyWeighted(),
    "majority_vote": MajorityVote(),
    "median": Median(),
    "trimmed_mean": TrimmedMean(),
}
every_rule = pytest.mark.parametrize("name", RULES)


def make_logits(num_classes, dtype="float64", num_rows=6, num_modalities=3, scale=2.0):
    rng = np.random.default_rng(num_classes)
    names = [*MODALITIES, "depth", "radar"][:num_modalities]
    return {m: (scale * rng.normal(size=(num_rows, num_classes))).astype(dtype) for m in names}


def make_prior(num_classes):
    prior = np.random.default_rng(1).uniform(1, 2, size=num_classes)
    return prior / prior.sum()


def fuse(rule, logits, prior=None, perturbed=("image",)):
    if prior is None:
        prior = make_prior(next(iter(logits.values())).shape[1])
    return fusion.fuse(rule, logits, prior, perturbed=perturbed)


def by_definition(name, logits, prior):
    match name:
        case "prob_en":
            calibrated = {m: np.float64(z) / TEMPERATURES[m] for m, z in logits.items()}
            return np.log(reference.statistical_fusion(calibrated, prior))
        case "drop_suspect":
            trusted = {m: z for m, z in logits.items() if m != "image"}
            return np.log(reference.statistical_fusion(trusted, prior))
        case "dempster_shafer":
            return oracles.dempster_shafer(logits, TEMPERATURES, ERROR_RATES)
        case _:
            return getattr(oracles, name)(logits)


def test_every_baseline_is_tested_and_has_a_name():
    assert [type(rule) for rule in RULES.values()] == [*BASELINES]
    assert [rule.name for rule in RULES.values()] == [*RULES] == [*NAMES[-len(RULES) - 1 : -1]]


class TestEveryRule:
    @pytest.mark.parametrize("num_classes", [2, 309])
    @every_rule
    def test_is_its_definition(self, name, num_classes, dtype):
        logits, prior = make_logits(num_classes, dtype), make_prior(num_classes)
        found = jax.jit(lambda z: fuse(RULES[name], z, prior))(logits)
        assert found.dtype == dtype
        tolerance = 4 * num_classes * float(jnp.finfo(dtype).eps) + 20 * float(jnp.finfo(dtype).eps)
        expected = by_definition(name, logits, prior)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)

    @every_rule
    def test_gradients_are_those_of_differences(self, name):
        logits = {m: jnp.asarray(z) for m, z in make_logits(4, num_rows=20).items()}
        weights = np.random.default_rng(2).normal(size=(20, 4))

        @jax.jit
        def loss(logits):
            return (fuse(RULES[name], logits) * weights).sum()

        gradient = jax.grad(loss)(logits)
        rng = np.random.default_rng(3)
        for _ in range(3):
            step = {m: 1e-6 * rng.normal(size=z.shape) for m, z in logits.items()}
            up, down = ({m: logits[m] + s * step[m] for m in logits} for s in (1, -1))
            along = sum(float((gradient[m] * step[m]).sum()) for m in logits)
            np.testing.assert_allclose(float(loss(up) - loss(down)) / 2, along, rtol=1e-6)

    @pytest.mark.parametrize(
        "rule",
        [
            *RULES.values(),
            *(
                DempsterShafer(TEMPERATURES, dict.fromkeys(MODALITIES, error_rate))
                for error_rate in (0.0, 1.0)
            ),
        ],
        ids=lambda rule: rule.name,
    )
    def test_gradients_are_finite_where_classes_are_excluded_or_saturated(self, rule, dtype):
        image = np.array([[0, 900, -900, 3], [-np.inf, 1, 2, -np.inf], [1, 1, 1, 1]], dtype)
        audio = np.array([[-900, 0, 900, 3], [-np.inf, -np.inf, 2, 1], [1, 1, 1, 1]], dtype)
        logits = {m: jnp.asarray(z) for m, z in zip(MODALITIES, (image, audio, audio), strict=True)}

        def loss(logits):
            # Class 2 is what no modality excludes.
            return fuse(rule, logits)[:, 2].sum()

        for gradient in jax.jit(jax.grad(loss))(logits).values():
            assert np.isfinite(gradient).all()

    @pytest.mark.parametrize("said", [np.nan, np.inf, -np.inf])
    @every_rule
    def test_a_row_that_says_nothing_is_nan_where_it_is_heard_and_no_other_is(self, name, said):
        logits = make_logits(4)
        logits["text"][2] = said
        found = np.asarray(fuse(RULES[name], logits))
        assert np.isnan(found).all(axis=1).tolist() == [False, False, True, False, False, False]
        assert np.isfinite(np.delete(found, 2, axis=0)).all()

    @every_rule
    def test_half_precision_is_computed_in_float32(self, name):
        half = {m: jnp.asarray(z, jnp.float16) for m, z in make_logits(4).items()}
        single = {m: z.astype(jnp.float32) for m, z in half.items()}
        if name == "prob_en":  # division by a number of Python's leaves the dtype alone
            single = {m: (z / TEMPERATURES[m]).astype(jnp.float32) for m, z in half.items()}
        rule = fusion.Statistical() if name == "prob_en" else RULES[name]
        found = fuse(RULES[name], half)
        assert found.dtype == jnp.float16
        np.testing.assert_allclose(np.float32(found), fuse(rule, single), rtol=2e-3)

    @pytest.mark.parametrize(
        ("name", "is_absolute"),
        [
            *(("prob_en", True), ("energy_weighted", True), ("majority_vote", True)),
            *(("dempster_shafer", False), ("median", False), ("trimmed_mean", False)),
        ],
    )
    def test_a_class_excluded_by_one_modality_is_excluded_or_outvoted(self, name, is_absolute):
        logits = {m: z.copy() for m, z in make_logits(4).items()}
        for z in logits.values():
            z[:, 0] -= 9  # nobody votes for it
        logits["audio"][:, 0] = -np.inf
        found = np.asarray(fuse(RULES[name], logits))
        assert np.isneginf(found[:, 0]).all() == is_absolute
        assert np.isfinite(found[:, 0]).all() != is_absolute
        assert np.isfinite(found[:, 1:]).all()
        if name not in ("energy_weighted", "trimmed_mean"):  # whose oracles find inf - inf
            with np.errstate(divide="ignore"):
                expected = by_definition(name, logits, make_prior(4))
            np.testing.assert_allclose(found, expected, rtol=1e-11)


class TestAliases:
    def test_prob_en_is_statistical_fusion_of_what_is_calibrated(self):
        logits = make_logits(5)
        np.testing.assert_array_equal(
            fuse(ProbEn(TEMPERATURES), logits), fuse(Calibrated(TEMPERATURES), logits)
        )

    @pytest.mark.parametrize("perturbed", [("image",), ("audio", "text")], ids="+".join)
    def test_drop_suspect_is_statistical_fusion_of_the_trusted_and_a_cascade(self, perturbed):
        logits, prior = make_logits(5), make_prior(5)
        logits[perturbed[0]][:3] = np.array([[np.nan], [np.inf], [1e6]])
        trusted = {m: z for m, z in logits.items() if m not in perturbed}
        found = fuse(DropSuspect(), logits, perturbed=perturbed)
        np.testing.assert_array_equal(found, fusion.statistical_fusion(trusted, prior))
        cascade = fuse(fusion.Cascade(0.0), logits, perturbed=perturbed)
        np.testing.assert_array_equal(found, cascade)

    def test_drop_suspect_is_told_to_trust_nobody(self):
        logits = make_logits(5)
        found = fuse(DropSuspect(), logits, perturbed=MODALITIES)
        cascade = fuse(fusion.Cascade(0.0), logits, perturbed=MODALITIES)
        np.testing.assert_array_equal(found, cascade)
        np.testing.assert_allclose(found, fuse(fusion.Statistical(), logits), rtol=1e-12)

    def test_the_label_tells_the_cascade(self):
        assert DropSuspect().label == "drop_suspect c=0"
        assert expand(["drop_suspect"], MODALITIES, {}) == [DropSuspect()]


class TestDempsterShafer:
    @pytest.mark.parametrize("num_classes", [2, 3])
    def test_is_the_combination_over_all_sets_of_classes(self, num_classes):
        logits = make_logits(num_classes)
        everything = frozenset(range(num_classes))
        found = fuse(RULES["dempster_shafer"], logits)
        for row in range(6):
            masses = []
            for m, z in logits.items():
                p = (1 - ERROR_RATES[m]) * scipy.special.softmax(z[row] / TEMPERATURES[m])
                masses.append({frozenset([k]): p[k] for k in everything})
                masses[-1][everything] = ERROR_RATES[m]
            combined = oracles.combine(masses, num_classes)
            assert sum(combined.values()) == pytest.approx(1)
            pignistic = [
                sum(mass / len(s) for s, mass in combined.items() if k in s) for k in everything
            ]
            np.testing.assert_allclose(np.exp(found[row]), pignistic, rtol=1e-13)

    @pytest.mark.parametrize("num_classes", [2, 3, 40])
    def test_plausibilities_are_contaminated_fusion_for_a_uniform_prior(self, num_classes):
        K = num_classes
        logits = make_logits(K, num_rows=200, scale=1.0)
        uniform = np.full(K, 1 / K)
        contaminations = {m: K * e / (1 + (K - 1) * e) for m, e in ERROR_RATES.items()}
        mixed = {
            m: fusion.contaminated_log_probs(
                z / TEMPERATURES[m], uniform, contamination=contaminations[m]
            )
            for m, z in logits.items()
        }
        expected = np.asarray(fusion.statistical_fusion(mixed, uniform))

        probs = {m: scipy.special.softmax(z / TEMPERATURES[m], -1) for m, z in logits.items()}
        joint = np.prod([(1 - ERROR_RATES[m]) * p + ERROR_RATES[m] for m, p in probs.items()], 0)
        np.testing.assert_allclose(
            np.exp(expected), joint / joint.sum(axis=1, keepdims=True), rtol=1e-12
        )
        # Of the rule itself: what all classes share, once more in full for each.
        frame = np.prod(list(ERROR_RATES.values()))
        total = (joint - frame).sum(axis=1, keepdims=True) + frame
        found = np.exp(fuse(RULES["dempster_shafer"], logits, uniform))
        plausibility = found + (1 - 1 / K) * frame / total
        np.testing.assert_allclose(
            plausibility / plausibility.sum(axis=1, keepdims=True), np.exp(expected), rtol=1e-12
        )
        np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))

    def test_equal_error_rates_are_one_contamination_of_all_modalities(self):
        K, e = 4, 0.2
        logits, uniform = make_logits(K, num_rows=200), np.full(K, 1 / K)
        rule = DempsterShafer(dict.fromkeys(MODALITIES, 1.0), dict.fromkeys(MODALITIES, e))
        contaminated = fusion.Contaminated(K * e / (1 + (K - 1) * e))
        expected = fuse(contaminated, logits, uniform, perturbed=MODALITIES).argmax(axis=1)
        np.testing.assert_array_equal(fuse(rule, logits, uniform).argmax(axis=1), expected)
        differs = expected != fuse(fusion.Product(), logits, uniform).argmax(axis=1)
        assert differs.any()

    def test_without_errors_it_is_the_product_and_with_nothing_else_uniform(self):
        logits = make_logits(5)
        for error_rate, expected in (
            (0.0, fuse(fusion.Product(), {m: z / TEMPERATURES[m] for m, z in logits.items()})),
            (1.0, np.full((6, 5), -np.log(5))),
        ):
            rule = DempsterShafer(TEMPERATURES, dict.fromkeys(MODALITIES, error_rate))
            np.testing.assert_allclose(fuse(rule, logits), expected, rtol=1e-12)

    @pytest.mark.parametrize("error_rate", [0.0, 0.1])
    def test_total_conflict_is_uniform(self, error_rate, dtype):
        certain = np.where(np.eye(3) > 0, 0, -np.inf).astype(dtype)
        logits = {m: certain[[k]] for k, m in enumerate(MODALITIES)}
        rule = DempsterShafer(TEMPERATURES, dict.fromkeys(MODALITIES, error_rate))

        @jax.jit
        def loss(logits):
            return fuse(rule, logits, np.full(3, 1 / 3))[0, 0]

        np.testing.assert_allclose(loss(logits), -np.log(3), rtol=1e-6)
        for gradient in jax.grad(loss)(logits).values():
            assert np.isfinite(gradient).all()

    def test_small_masses_keep_their_digits(self, dtype):
        logits = {m: 3 * z for m, z in make_logits(309, dtype).items()}
        errors = {m: 1e-7 * e for m, e in ERROR_RATES.items()}
        found = fuse(DempsterShafer(TEMPERATURES, errors), logits)
        double = {m: z.astype(float) for m, z in logits.items()}
        expected = oracles.dempster_shafer(double, TEMPERATURES, errors)
        np.testing.assert_allclose(found, expected, rtol=300 * float(jnp.finfo(dtype).eps))

    def test_evidence_counts_the_errors_of_each_modality(self, dtype):
        rng = np.random.default_rng(0)
        labels = np.arange(40) % 4
        logits = {
            m: (weight * np.eye(4)[labels] + rng.normal(size=(40, 4))).astype(dtype)
            for m, weight in (("image", 1.0), ("audio", 9.0))
        }
        kernels = {m: rng.normal(size=(6, 4)).astype(dtype) for m in logits}
        prior = jnp.full(4, 0.25, dtype)
        found = fit_evidence(kernels, logits, labels, prior).error_rates
        for m, z in logits.items():
            assert found[m].dtype == dtype
            assert float(found[m]) == pytest.approx(np.mean(z.argmax(axis=1) != labels))
        assert found["image"] > found["audio"] == 0


class TestEnergyWeighted:
    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
    def test_log_probabilities_are_refused_where_they_are_known(self, name):
        logits = {m: jnp.asarray(z, name) for m, z in make_logits(309).items()}
        fuse(EnergyWeighted(), logits)
        logits["audio"] = jax.nn.log_softmax(logits["audio"])
        message = r"energy_weighted needs the logits .* but logits\['audio'\] are log-probabilities"
        with pytest.raises(ValueError, match=message):
            fuse(EnergyWeighted(), logits)
        with pytest.raises(ValueError, match=message):
            jax.jit(lambda: fuse(EnergyWeighted(), logits))()
        assert np.isfinite(jax.jit(lambda z: fuse(EnergyWeighted(), z))(logits)).all()

    def test_no_rows_are_no_log_probabilities(self):
        assert fuse(EnergyWeighted(), make_logits(4, num_rows=0)).shape == (0, 4)

    def test_energetic_modalities_weigh_more(self):
        logits = make_logits(4)
        shifted = {**logits, "image": logits["image"] + 1e6}
        image = jax.nn.log_softmax(logits["image"] * 1e5)
        np.testing.assert_array_equal(
            fuse(EnergyWeighted(), shifted).argmax(axis=1), image.argmax(axis=1)
        )


class TestMajorityVote:
    @pytest.mark.parametrize("scale", [1.0, 1e3])
    @pytest.mark.parametrize("num_modalities", [2, 3, 5])
    def test_votes_decide_and_sums_of_log_probabilities_break_ties(
        self, num_modalities, scale, dtype
    ):
        logits = make_logits(4, dtype, 300, num_modalities, scale)
        found = np.asarray(fuse(MajorityVote(), logits))
        assert np.isfinite(found).all()
        stack = oracles.log_probs_of(logits)
        votes = (stack.argmax(axis=-1)[..., None] == np.arange(4)).sum(axis=0)
        is_leading = votes == votes.max(axis=1, keepdims=True)
        expected = np.where(is_leading, stack.sum(axis=0), -np.inf).argmax(axis=1)
        np.testing.assert_array_equal(found.argmax(axis=1), expected)
        is_tie = is_leading.sum(axis=1) > 1
        assert is_tie.any()
        assert not is_tie.all()
        differs = expected != stack.sum(axis=0).argmax(axis=1)
        assert differs.any() or num_modalities == 2

    def test_a_class_wins_though_a_modality_excludes_it(self):
        agree, against = np.array([[3.0, 0.0, 0.0]]), np.array([[-np.inf, 5.0, 0.0]])
        found = fuse(MajorityVote(), {"image": agree, "audio": agree, "text": against})
        # Votes 2, 1, 0; where all else is excluded the product leaves the classes 1 and 2.
        q = np.exp([0.0, 5.0, 0.0]) * [0, 1, 1]
        expected = np.array([2 + 0.5, 1, 0]) + q / q.sum() / 2
        np.testing.assert_allclose(np.exp(found[0]), expected / expected.sum(), rtol=1e-12)

    def test_leading_classes_that_exclude_each_other_share(self):
        first, second = np.array([[3.0, -np.inf, 0.0]]), np.array([[-np.inf, 3.0, 0.0]])
        found = fuse(MajorityVote(), {"image": first, "audio": second})
        np.testing.assert_allclose(np.exp(found[0]), np.array([1.25, 1.25, 0.5]) / 3, rtol=1e-12)

    def test_what_is_differentiated_is_the_product(self):
        # Two vote for class 0; what the third gains for class 1, which has no vote, is log q_1.
        logits = {
            "image": jnp.array([[4.0, 0.0, 1.0]]),
            "audio": jnp.array([[4.0, 0.0, 1.0]]),
            "text": jnp.array([[0.0, 1.0, 2.0]]),
        }

        def gain(rule, z):
            return fuse(rule, {**logits, "text": z})[0, 1]

        found = jax.grad(lambda z: gain(MajorityVote(), z))(logits["text"])
        product = jax.grad(lambda z: gain(fusion.Product(), z))(logits["text"])
        assert found[0, 1] > 0 > found[0, 0]
        np.testing.assert_allclose(found, product, atol=0.02)


class TestOrderStatistics:
    def test_the_median_of_two_is_the_mean_of_log_probabilities(self):
        logits = make_logits(5, num_modalities=2)
        expected = scipy.special.log_softmax(oracles.log_probs_of(logits).mean(axis=0), axis=-1)
        np.testing.assert_allclose(fuse(Median(), logits), expected, rtol=1e-12)

    @pytest.mark.parametrize("num_modalities", [3, 4, 5])
    def test_are_their_definitions_for_more_modalities(self, num_modalities, dtype):
        logits = make_logits(5, dtype, num_modalities=num_modalities)
        tolerance = 50 * float(jnp.finfo(dtype).eps)
        for rule in (Median(), TrimmedMean()):
            expected = getattr(oracles, rule.name)(logits)
            np.testing.assert_allclose(fuse(rule, logits), expected, rtol=tolerance, atol=tolerance)
        differs = np.abs(fuse(Median(), logits) - fuse(TrimmedMean(), logits)).max() > 0.01
        assert differs == (num_modalities == 5)  # the mean of the middle two, of four, too

    def test_one_modality_of_three_moves_no_entry_beyond_the_others(self):
        logits = make_logits(5)
        others = oracles.log_probs_of({m: logits[m] for m in ("audio", "text")})
        for said in (-np.inf, 1e3):
            moved = {**logits, "image": np.where(np.eye(6, 5) > 0, said, 1.0)}
            for rule in (Median(), TrimmedMean()):
                found = np.asarray(fuse(rule, moved))
                # Some constant, which normalises, puts the whole row between the others.
                least = (others.min(axis=0) - found).max(axis=1)
                assert (least <= (others.max(axis=0) - found).min(axis=1) + 1e-12).all()

    @pytest.mark.parametrize("modalities", [("image",), ("image", "audio")], ids="+".join)
    def test_a_trimmed_mean_of_fewer_than_three_is_refused(self, modalities):
        message = f"trimmed_mean needs three modalities or more, got {len(modalities)}: image"
        with pytest.raises(ValueError, match=message):
            expand(["mean", "trimmed_mean"], modalities, {})
        logits = {m: z for m, z in make_logits(4).items() if m in modalities}
        with pytest.raises(ValueError, match=message):
            fuse(TrimmedMean(), logits)
        assert expand(["trimmed_mean"], MODALITIES, {}) == [TrimmedMean()]
