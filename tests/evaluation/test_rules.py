import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jacfuse_jax import detection, fusion
from jacfuse_jax.evaluation import rules
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.input_checks import INPUT_CHECKS, Projection, ResidualCheck
from jacfuse_jax.evaluation.models import PROJECTED
from jacfuse_jax.evaluation.rules import (
    HEADS,
    LEARNED,
    NAMES,
    PARAMETERS,
    EachAlone,
    Surrogate,
    Trained,
    expand,
    is_recalibrated,
    predict,
    regime_of,
)
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.linalg import spectrum_from_kernel
from tests import reference
from tests.evaluation import oracles, tiny

VALUES = {
    "gamma": (0.5, 0.1),
    "scale": (0.2,),
    "contamination": (0.7, 0.3),
    "tempering": (1.0, 0.5),
    "confidence": (0.8,),
}
MODALITIES = ("image", "audio", "text")
ALL = {"gamma": 0.1, "scale": 0.2, "contamination": 0.3, "tempering": 0.5, "confidence": 0.8}
GAMMA = ALL["gamma"]
K = 4

rng = np.random.default_rng(0)
KERNELS = {name: rng.normal(size=(6, K)) for name in MODALITIES}
LOGITS = {
    regime: {name: 2 * rng.normal(size=(5, K)) for name in MODALITIES}
    for regime in ("standard", PROJECTED, *Trained.names)
}
RESIDUALS = {name: rng.choice([0.5, 1.0, 1.5], size=5) for name in MODALITIES}
STANDARD = LOGITS["standard"]
PRIOR = rng.dirichlet(np.full(K, 3.0))
OBSERVED = Observed(LOGITS, {name: rng.normal(size=(5, K)) for name in HEADS}, {}, RESIDUALS)
SQUARED_JACOBIANS = [
    reference.softmax_jacobian(p) @ reference.softmax_jacobian(p)
    for p in rng.dirichlet(np.ones(K), size=7)
]
EVIDENCE = Evidence(
    {name: spectrum_from_kernel(kernel) for name, kernel in KERNELS.items()},
    jnp.asarray(PRIOR),
    {name: jnp.asarray(1.0 + index) for index, name in enumerate(MODALITIES)},
    jnp.asarray(np.mean(SQUARED_JACOBIANS, axis=0)),
    detection.fit_detector(STANDARD, np.arange(5) % K, PRIOR),
    {name: jnp.asarray(0.1 + 0.2 * index) for index, name in enumerate(MODALITIES)},
)
GRAMS = {name: kernel.T @ kernel for name, kernel in KERNELS.items()}


RULES = {
    rule.name: rule
    for rule in expand(NAMES, MODALITIES, {name: (value,) for name, value in ALL.items()})
}
RULES[LEARNED] = tiny.make_learned(K)
CHECKS = [check.kind for check in INPUT_CHECKS]
SEARCHED = [name for name, rule in RULES.items() if rule.searched]
RECALIBRATED = [name for name, rule in RULES.items() if is_recalibrated(rule)]


def fuse(name, believed, observed=OBSERVED, surrogate: Surrogate = ""):
    rule = EachAlone() if name == "unimodal" else RULES[name]
    return predict(rule, observed, evidence=EVIDENCE, believed=believed, surrogate=surrogate)


def log_normalise(z):
    return scipy.special.log_softmax(z, axis=-1)


def statistical(logits):
    return np.log(reference.statistical_fusion(logits, PRIOR))


def fixed_matrix(gram):
    """Minimises sum_n (1 - gamma) ||J_n R G^(1/2)||^2 + gamma ||R - I||^2, as one linear system.

    Row by row, vec(A R B) = (A kron B^T) vec(R).
    """
    system = GAMMA * np.eye(K * K)
    for squared in SQUARED_JACOBIANS:
        system += (1 - GAMMA) / len(SQUARED_JACOBIANS) * np.kron(squared, gram.T)
    return np.linalg.solve(system, GAMMA * np.eye(K).ravel()).reshape(K, K)


def kept_inside(modality, z):
    return np.where(RESIDUALS[modality][:, None] <= 1, z, np.log(PRIOR))


def contaminated(z):
    return np.log(0.7 * scipy.special.softmax(z, axis=-1) + 0.3 * PRIOR)


def cascade(log_probs, believed):
    log_prior = np.log(PRIOR)
    trusted, fused = (
        log_normalise(
            log_prior
            + sum((t if m in believed else 1) * (lp - log_prior) for m, lp in log_probs.items())
        )
        for t in (0, ALL["tempering"])
    )
    is_sure = np.exp(trusted).max(axis=-1, keepdims=True) > ALL["confidence"]
    assert is_sure.any()
    assert not is_sure.all()
    return np.where(is_sure, trusted, fused)


def learned_cascade(log_probs, believed):
    """By trusted modalities alone where these are worth more, by the gate's three probabilities."""
    log_prior = np.log(PRIOR)
    trusted, fused = (
        log_normalise(
            log_prior + sum(log_probs[m] - log_prior for m in MODALITIES if m not in without)
        )
        for without in (believed, ())
    )
    largest = -np.sort(-trusted, axis=-1)
    features = np.hstack([largest, np.eye(K)[trusted.argmax(axis=-1)], np.ones((5, 1))])
    rule = tiny.make_learned(K)
    alone, both, attacked = (scipy.special.expit(features @ np.array(w)) for w in rule.gate)
    is_sure = alone > (1 - rule.share) * both + rule.share * attacked
    assert is_sure.any()
    assert not is_sure.all()
    return np.where(is_sure[:, None], trusted, fused)


def expected_of(rule, believed):
    """The prediction, from the definition of the rule in NumPy."""

    def change(fn):
        return {name: fn(name, z) if name in believed else z for name, z in STANDARD.items()}

    def recalibrated(logits):
        probs, _ = reference.robust_fusion(logits, GRAMS, PRIOR, believed, GAMMA)
        return np.log(probs)

    log_prior = np.log(PRIOR)
    log_probs = {name: log_normalise(z) for name, z in STANDARD.items()}
    calibrated = {name: z / (1 + index) for index, (name, z) in enumerate(STANDARD.items())}
    if rule in HEADS:
        return OBSERVED.heads[rule]
    if rule in Trained.names.values():
        return statistical(LOGITS[regime_of(RULES[rule])])
    return {
        "unimodal": lambda: np.sum([log_probs[name] for name in believed], axis=0),
        "unimodal:audio": lambda: log_probs["audio"],
        "mean": lambda: np.log(np.mean([np.exp(lp) for lp in log_probs.values()], axis=0)),
        "max": lambda: log_normalise(np.max(list(log_probs.values()), axis=0)),
        "product": lambda: log_normalise(sum(log_probs.values())),
        "statistical": lambda: statistical(STANDARD),
        "temperature": lambda: statistical(calibrated),
        "prob_en": lambda: statistical(calibrated),
        "drop_suspect": lambda: statistical(
            {name: z for name, z in STANDARD.items() if name not in believed}
        ),
        "projection": lambda: statistical(change(lambda m, _: LOGITS[PROJECTED][m])),
        "residual_check": lambda: statistical(change(lambda m, z: kept_inside(m, z))),
        "dempster_shafer": lambda: oracles.dempster_shafer(
            STANDARD, EVIDENCE.temperatures, EVIDENCE.error_rates
        ),
        "energy_weighted": lambda: oracles.energy_weighted(STANDARD),
        "majority_vote": lambda: oracles.majority_vote(STANDARD),
        "median": lambda: oracles.median(STANDARD),
        "trimmed_mean": lambda: oracles.trimmed_mean(STANDARD),
        "scaled": lambda: log_normalise(
            log_prior
            + sum((0.2 if m in believed else 1) * (lp - log_prior) for m, lp in log_probs.items())
        ),
        "contaminated": lambda: log_normalise(
            log_prior
            + sum(
                0.5 * (contaminated(STANDARD[m]) - log_prior) if m in believed else lp - log_prior
                for m, lp in log_probs.items()
            )
        ),
        "cascade": lambda: cascade(log_probs, believed),
        "learned_cascade": lambda: learned_cascade(log_probs, believed),
        "fixed_robust": lambda: statistical(change(lambda m, z: z @ fixed_matrix(GRAMS[m]).T)),
        "robust": lambda: recalibrated(STANDARD),
        "contaminated_robust": lambda: recalibrated(change(lambda _, z: contaminated(z))),
    }[rule]()


class TestPredict:
    @pytest.mark.parametrize("believed", [("image",), ("audio", "text")], ids="+".join)
    @pytest.mark.parametrize("rule", ["unimodal", "unimodal:audio", *NAMES[1:]])
    def test_is_the_rule_by_its_definition(self, rule, believed):
        np.testing.assert_allclose(
            fuse(rule, believed), expected_of(rule, believed), rtol=1e-9, atol=1e-9
        )

    @pytest.mark.parametrize("rule", NAMES[1:])
    def test_heeds_the_belief_where_the_rule_has_parameters(self, rule):
        differs = np.abs(fuse(rule, ("image",)) - fuse(rule, ("audio",))).max() > 0.01
        assert differs == (rule in SEARCHED)

    def test_input_grams_take_the_place_of_the_heads(self):
        grams = {name: rng.normal(size=(5, K, K)) for name in MODALITIES}
        grams = {name: a @ a.swapaxes(1, 2) for name, a in grams.items()}
        observed = OBSERVED._replace(grams=grams)
        expected = [
            reference.robust_fusion(
                {name: z[[row]] for name, z in STANDARD.items()},
                {name: gram[row] for name, gram in grams.items()},
                PRIOR,
                ("image", "text"),
                GAMMA,
            )[0][0]
            for row in range(5)
        ]
        actual = fuse("robust", ("image", "text"), observed)
        np.testing.assert_allclose(np.exp(actual), expected, rtol=1e-8, atol=1e-10)


def image_gradient(rule, surrogate):
    def loss(z):
        observed = OBSERVED._replace(logits={"standard": {**STANDARD, "image": z}})
        return fuse(rule, ("image", "text"), observed, surrogate)[:, 0].sum()

    return np.asarray(jax.grad(loss)(jnp.asarray(STANDARD["image"])))


@pytest.mark.parametrize("rule", RECALIBRATED)
class TestSurrogates:
    def test_stop_gradient_predicts_the_same_but_holds_the_matrices_fixed(self, rule):
        believed = ("image", "text")
        np.testing.assert_allclose(
            fuse(rule, believed, surrogate="stop_gradient"), fuse(rule, believed), rtol=1e-10
        )
        surrogate = image_gradient(rule, "stop_gradient")
        assert np.abs(surrogate - image_gradient(rule, "")).max() > 1e-3

        # With R fixed, p = softmax(R z + c): d log p_0 / dz = R^T (e_0 - p), and for contaminated
        # likelihoods the derivative of log p~ in z comes on top.
        contaminate = contaminated if rule == "contaminated_robust" else lambda z: z
        logits = {m: contaminate(z) if m in believed else z for m, z in STANDARD.items()}
        for row in range(5):
            start = reference.statistical_fusion({m: z[[row]] for m, z in logits.items()}, PRIOR)
            R = reference.recalibration_matrix(start[0], GRAMS["image"], 9)
            p = np.exp(expected_of(rule, believed)[row])
            expected = R.T @ (np.eye(K)[0] - p)
            if rule == "contaminated_robust":
                q = scipy.special.softmax(STANDARD["image"][row])
                jac = 0.7 * reference.softmax_jacobian(q) / np.exp(logits["image"][row])[:, None]
                expected = jac.T @ expected
            np.testing.assert_allclose(surrogate[row], expected, rtol=1e-7, atol=1e-10)

    def test_stop_gradient_predicts_the_same_with_input_grams(self, rule):
        factors = rng.normal(size=(2, 5, K, K))
        grams = dict(zip(("image", "text"), factors @ factors.swapaxes(-1, -2), strict=True))
        observed, believed = OBSERVED._replace(grams=grams), ("image", "text")
        found = fuse(rule, believed, observed, "stop_gradient")
        np.testing.assert_allclose(found, fuse(rule, believed, observed), rtol=1e-9)
        assert np.abs(found - fuse(rule, believed)).max() > 1e-3

    def test_iterated_recalibrates_three_times(self, rule):
        logits = dict(STANDARD)
        if rule == "contaminated_robust":
            logits["image"] = contaminated(logits["image"])
        probs, _ = reference.robust_fusion(
            logits, GRAMS, PRIOR, ("image",), GAMMA, num_iterations=3
        )
        actual = fuse(rule, ("image",), surrogate="iterated")
        np.testing.assert_allclose(np.exp(actual), probs, rtol=1e-8, atol=1e-10)
        direct = fusion.robust_fusion(
            logits, EVIDENCE.grams, PRIOR, perturbed="image", gamma=GAMMA, num_iterations=3
        )
        np.testing.assert_allclose(actual, direct.log_probs, rtol=1e-10)
        assert np.abs(actual - fuse(rule, ("image",))).max() > 1e-3


@pytest.mark.parametrize("rule", [name for name in SEARCHED if name not in CHECKS])
def test_a_defender_who_detects_averages_over_whom_to_believe(rule):
    found = detection.detect(STANDARD, EVIDENCE.detector, PRIOR)
    expected = np.exp(found.log_unperturbed)[:, None] * np.exp(statistical(STANDARD))
    for name in MODALITIES:
        expected += np.exp(found.log_perturbed[name])[:, None] * np.exp(fuse(rule, (name,)))
    np.testing.assert_allclose(np.exp(fuse(rule, DETECT)), expected, rtol=1e-9, atol=1e-12)
    assert np.abs(expected - np.exp(fuse(rule, MODALITIES))).max() > 1e-3


def test_rules_without_parameters_detect_nothing():
    for rule in ("statistical", "mean", "concatenation", "unimodal:image"):
        np.testing.assert_array_equal(fuse(rule, DETECT), fuse(rule, ("image",)))


class TestExpand:
    def test_every_combination_of_parameters_is_a_rule(self):
        found = expand(NAMES, MODALITIES, VALUES)
        counts = dict.fromkeys(NAMES, 1) | {LEARNED: 0}
        counts |= {"unimodal": 3, "scaled": 1, "fixed_robust": 2, "robust": 2}
        counts |= {"contaminated": 4, "contaminated_robust": 4, "cascade": 2}
        counts |= dict.fromkeys(CHECKS, 2)
        assert len(set(found)) == len(found) == sum(counts.values())
        for name, count in counts.items():
            assert sum(rule.name.partition(":")[0] == name for rule in found) == count
        for rule in found:
            values = {"drop_suspect": {"confidence": (0.0,)}}.get(rule.name, VALUES)
            if rule.name in CHECKS:
                values = {"confidence": (*VALUES["confidence"], 1.0)}
            assert all(value in values[name] for name, value in rule.parameters.items())
        known = {name for rule in found for name in rule.parameters}
        assert {*known, "share"} == set(PARAMETERS)

    def test_labels_tell_rule_and_parameters_in_the_order_of_the_names(self):
        names = ["robust", "unimodal", "mean", "contaminated"]
        found = expand(names, ("image", "audio"), VALUES)
        assert [rule.label for rule in found] == [
            *("robust γ=0.5", "robust γ=0.1", "unimodal:image", "unimodal:audio", "mean"),
            *("contaminated e=0.7 t=1", "contaminated e=0.7 t=0.5"),
            *("contaminated e=0.3 t=1", "contaminated e=0.3 t=0.5"),
        ]

    def test_rules_without_parameters_need_no_values(self):
        assert expand(["max"], ("image",), {}) == [fusion.Max()]


@pytest.mark.parametrize("name", RULES)
def test_json_reads_back_what_was_written(name):
    rule = RULES[name]
    assert fusion.rule_from_json(rule.to_json(), rules.RULES) == rule


class TestInputChecks:
    def test_of_confidence_below_one_they_are_cascades_of_what_is_left(self):
        sure = {"image": ALL["confidence"], "audio": 1.0}
        for suspect, confidence in sure.items():
            for rule, logits in (
                (Projection(confidence), STANDARD | {suspect: LOGITS[PROJECTED][suspect]}),
                (
                    ResidualCheck(confidence),
                    STANDARD | {suspect: kept_inside(suspect, STANDARD[suspect])},
                ),
            ):
                actual = predict(rule, OBSERVED, evidence=EVIDENCE, believed=(suspect,))
                expected = fusion.cascade_fusion(
                    logits, PRIOR, perturbed=suspect, confidence=confidence
                )
                np.testing.assert_allclose(actual, expected, rtol=1e-10)

    def test_what_is_outside_is_dropped_unless_nothing_would_be_left(self):
        outside = np.array([True, True, False, True, False])
        residuals = {
            "image": np.where(outside, 1.01, 0.99),
            "audio": np.array([1.01, 0.99, 1.01, np.nan, 0.0]),
            "text": np.array([2.0, 2.0, 0.0, 1.01, 1.0]),
        }
        observed = OBSERVED._replace(residuals=residuals)
        kept = [MODALITIES, ("audio",), ("image", "text"), MODALITIES, MODALITIES]
        expected = [
            statistical({m: STANDARD[m][[row]] for m in names})[0] for row, names in enumerate(kept)
        ]
        for believed in (MODALITIES, DETECT):
            actual = predict(ResidualCheck(1.0), observed, evidence=EVIDENCE, believed=believed)
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)

    def test_who_detects_checks_every_modality(self):
        actual = predict(Projection(1.0), OBSERVED, evidence=EVIDENCE, believed=DETECT)
        np.testing.assert_allclose(actual, statistical(LOGITS[PROJECTED]), rtol=1e-9, atol=1e-9)

    def test_they_are_listed_with_the_surest_cascade_and_statistical_fusion(self):
        values = {**VALUES, "confidence": (0.5, 0.9, 0.7)}
        for check in INPUT_CHECKS:
            found = expand([check.kind], MODALITIES, values)
            assert found == [check(0.9), check(1.0)]
