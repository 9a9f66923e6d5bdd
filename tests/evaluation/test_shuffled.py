import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jacfuse_jax import detection, fusion
from jacfuse_jax.evaluation import worst_case
from jacfuse_jax.evaluation.baselines import EnergyWeighted
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.rules import predict
from jacfuse_jax.evaluation.shuffled import WEIGHTED, measure, predict_shuffled
from jacfuse_jax.linalg import spectrum_from_kernel
from jacfuse_jax.models import UnimodalOutput
from tests import reference
from tests.evaluation import tiny

K, NUM_ROWS = 4, 120
BOTH = ("image", "audio")
rng = np.random.default_rng(0)
LABELS = rng.integers(K, size=NUM_ROWS)
LOGITS = {
    m: strength * np.eye(K)[LABELS] + rng.normal(size=(NUM_ROWS, K)) * 1.5
    for m, strength in (("image", 2.0), ("audio", 2.5))
}
PRIOR = rng.dirichlet(np.full(K, 20.0))
KERNEL = 2 * rng.normal(size=(6, K))
EVIDENCE = Evidence(
    {m: spectrum_from_kernel(jnp.asarray(KERNEL)) for m in BOTH},
    jnp.asarray(PRIOR),
    {},
    jnp.eye(K),
    detection.fit_detector(LOGITS, LABELS, PRIOR),
    {},
)
RULES = (
    fusion.Robust(0.1),
    fusion.ContaminatedRobust(0.3, 0.1),
    fusion.Cascade(0.6, 0.2, 0.8),
    tiny.make_learned(K),
    EnergyWeighted(),
)
OBSERVED = Observed({"standard": LOGITS}, {}, {}, {})
ORDER = rng.permutation(NUM_ROWS)


def shuffled(rule, order, logits=None):
    observed = OBSERVED if logits is None else Observed({"standard": logits}, {}, {}, {})
    return np.asarray(
        predict_shuffled(rule, observed, jnp.asarray(order), evidence=EVIDENCE, believed="image")
    )


def test_all_kinds_are_tested():
    assert tuple(type(rule) for rule in RULES) == WEIGHTED


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
class TestPredictShuffled:
    def test_in_order_it_is_the_rule(self, rule):
        expected = predict(rule, OBSERVED, evidence=EVIDENCE, believed=("image",))
        found = shuffled(rule, np.arange(NUM_ROWS))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    def test_pairs_of_alike_rows_may_be_swapped(self, rule):
        twice = {m: np.repeat(z, 2, axis=0) for m, z in LOGITS.items()}
        order = np.arange(2 * NUM_ROWS).reshape(-1, 2)[:, ::-1].ravel()
        found = shuffled(rule, order, twice)
        expected = shuffled(rule, np.arange(2 * NUM_ROWS), twice)
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_weights_of_other_rows_change_it(self, rule):
        found = shuffled(rule, ORDER)
        assert np.abs(found - shuffled(rule, np.arange(NUM_ROWS))).max() > 0.1
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-9)


def test_recalibrations_are_those_of_the_other_rows():
    probs = reference.statistical_fusion(LOGITS, PRIOR)
    gram = KERNEL.T @ KERNEL
    changed = np.empty_like(LOGITS["image"])
    for row, other in enumerate(ORDER):
        p = probs[other]
        J = np.diag(p) - np.outer(p, p)
        system = np.eye(K * K) + 9 * np.kron(J @ J, gram.T)  # (1 - 0.1) / 0.1
        R = np.linalg.solve(system, np.eye(K).ravel()).reshape(K, K)
        changed[row] = R @ LOGITS["image"][row]
    expected = reference.statistical_fusion({**LOGITS, "image": changed}, PRIOR)
    found = np.exp(shuffled(fusion.Robust(0.1), ORDER))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-11)


def test_gates_are_those_of_the_other_rows():
    rule = fusion.Cascade(0.6)
    alone = scipy.special.log_softmax(LOGITS["audio"], axis=1)
    together = np.log(reference.statistical_fusion(LOGITS, PRIOR))
    is_sure = np.exp(alone).max(axis=1) > 0.6
    expected = np.where(is_sure[ORDER][:, None], alone, together)
    np.testing.assert_allclose(shuffled(rule, ORDER), expected, rtol=1e-8)


def test_energies_are_those_of_the_other_rows():
    weights = {m: 0.1 * np.log(np.exp(z).sum(axis=1)) for m, z in LOGITS.items()}
    expected = sum(weights[m][ORDER][:, None] * z for m, z in LOGITS.items())
    expected = scipy.special.log_softmax(np.asarray(expected), axis=1)
    np.testing.assert_allclose(shuffled(EnergyWeighted(), ORDER), expected, rtol=1e-9)


def make_rows(groups=None):
    outputs = {m: UnimodalOutput(z, np.zeros((NUM_ROWS, 3))) for m, z in LOGITS.items()}  # pyright: ignore[reportArgumentType]
    groups = np.arange(NUM_ROWS, dtype=np.int32) if groups is None else groups
    return Rows({}, LABELS, groups, {"standard": outputs}, {}, {}, {})


class TestMeasure:
    def test_is_the_mean_over_corruptions_and_permutations(self):
        noise = np.random.default_rng(1)
        corrupted = [
            {"image": LOGITS["image"] + scale * noise.normal(size=(NUM_ROWS, K))}
            for scale in (1.0, 3.0)
        ]
        observations = [Observed({"standard": z}, {}, {}, {}) for z in corrupted]
        rules = [fusion.Statistical(), *RULES]
        lines = measure(7, "image", rules, observations, make_rows(), EVIDENCE, num_permutations=5)
        assert [line.rule for line in lines] == [*RULES]
        drawn = np.random.default_rng(7)
        orders = [drawn.permutation(NUM_ROWS) for _ in range(5)]
        for line in lines:
            right = [
                np.mean(
                    [
                        shuffled(line.rule, order, {**LOGITS, **z}).argmax(axis=1) == LABELS
                        for z in corrupted
                    ]
                )
                for order in [np.arange(NUM_ROWS), *orders]
            ]
            assert line.accuracy == pytest.approx(right[0])
            assert line.shuffled == pytest.approx(np.mean(right[1:]))
            assert line.difference == pytest.approx(line.accuracy - line.shuffled)
            assert line.low <= line.difference <= line.high
            assert (line.seed, line.perturbed) == (7, "image")

    def test_of_a_rule_whose_weights_are_all_alike_nothing_is_lost(self):
        rules = [fusion.Cascade(1.0), fusion.Cascade(0.0), fusion.Robust(1.0)]
        lines = measure(0, "image", rules, [OBSERVED], make_rows(), EVIDENCE, num_permutations=3)
        assert [line[5:] for line in lines] == [(0.0, 0.0, 0.0)] * 3

    def test_rules_whose_weights_are_more_than_one_recalibration_are_left_out(self):
        rules = [fusion.Robust(0.1, num_iterations=3), fusion.Cascade(0.6)]
        options = {"num_permutations": 1}
        lines = measure(0, "image", rules, [OBSERVED], make_rows(), EVIDENCE, **options)
        assert [line.rule for line in lines] == rules[1:]
        grams = {"image": np.zeros((NUM_ROWS, K, K))}
        rows = make_rows()._replace(grams=grams)
        lines = measure(0, "image", [*RULES], [OBSERVED], rows, EVIDENCE, **options)
        assert [line.rule for line in lines] == [*RULES[2:]]

    def test_a_gate_that_knows_which_rows_to_ask_is_no_decoration(self):
        # The image is noise; the audio is certain where it is right, and level where it is wrong.
        is_known = np.arange(NUM_ROWS) % 2 == 0
        audio = np.where(is_known[:, None], 8.0, 0.0) * np.eye(K)[LABELS]
        image = np.where(is_known[:, None], 9 * np.eye(K)[(LABELS + 1) % K], 3 * np.eye(K)[LABELS])
        observed = Observed({"standard": {"image": image, "audio": audio}}, {}, {}, {})
        (line,) = measure(
            *(0, "image", [fusion.Cascade(0.9)], [observed], make_rows(), EVIDENCE),
            num_permutations=10,
        )
        assert line.accuracy == 1
        assert line.low > 0.3


def test_worst_case_tests_the_chosen_rules_where_the_modality_is_known():
    models = tiny.make_models()
    rows = tiny.make_rows(models, 40)
    found = worst_case(
        models,
        rows.inputs,
        rows.labels,
        [tiny.STATISTICAL, tiny.robust(), fusion.Cascade(0.5)],
        ["known", "unknown"],
        kinds=tiny.KINDS,
        perturbations=("clean", "gaussian_noise", "missing", "fgm"),
        num_permutations=2,
    )
    tested = [(line.perturbed, line.rule) for line in found.shuffled]
    rules = [tiny.robust(), fusion.Cascade(0.5)]
    assert tested == [(modality, rule) for modality in BOTH for rule in rules]
    for line in found.shuffled:
        accuracies = [
            row.accuracy
            for row in found.rows
            if (row.threat_model, row.perturbed, row.rule) == ("known", line.perturbed, line.rule)
            and row.perturbation in ("gaussian_noise", "missing")
        ]
        assert len(accuracies) == 10
        assert line.accuracy == pytest.approx(np.mean(accuracies))
