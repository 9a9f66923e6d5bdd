import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import register_dataclass

from jacfuse_jax import fusion
from jacfuse_jax.linalg import spectrum_from_kernel
from tests.evaluation import oracles

RNG = np.random.default_rng(0)
B, K, H = 5, 4, 3
LOGITS = {name: 2 * RNG.normal(size=(B, K)) for name in ("audio", "image", "text")}
PRIOR = RNG.dirichlet(np.full(K, 5.0))
KERNELS = {name: RNG.normal(size=(H, K)) for name in LOGITS}
PERTURBED = ("audio", "text")
WEIGHTS = tuple(
    tuple(float(x) for x in 0.1 * RNG.normal(size=2 * K + 1) + [first, *[0] * (2 * K - 1), last])
    for first, last in ((3.0, 1.0), (0.2, 0.5), (0.1, -1.0))
)
RULES = [
    fusion.Mean(),
    fusion.Max(),
    fusion.Product(),
    fusion.Statistical(),
    fusion.Robust(0.2),
    fusion.Robust(0.2, num_iterations=3),
    fusion.Robust(0.2, solver="eigh"),
    fusion.Scaled(0.3),
    fusion.Contaminated(0.2),
    fusion.Contaminated(0.2, tempering=0.5),
    fusion.ContaminatedRobust(0.2, 0.3),
    fusion.Cascade(0.6),
    fusion.Cascade(0.6, tempering=0.5, contamination=0.2),
    fusion.LearnedCascade(0.3, *WEIGHTS),
    fusion.LearnedCascade(0.3, WEIGHTS[0], WEIGHTS[1], ()),
    fusion.MajorityVote(),
    fusion.Median(),
    fusion.TrimmedMean(),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)


def grams():
    return {name: spectrum_from_kernel(jnp.asarray(kernel)) for name, kernel in KERNELS.items()}


def fuse(rule, logits=LOGITS):
    return fusion.fuse(rule, logits, PRIOR, perturbed=PERTURBED, grams=grams())


def by_formula(rule):
    """Log-probabilities (B, K) in NumPy, but for robust fusion, which the library's function is."""
    q = {name: np.asarray(jax.nn.log_softmax(z)) for name, z in LOGITS.items()}
    log_prior = np.log(PRIOR)
    match rule:
        case fusion.Mean():
            return np.log(np.mean([np.exp(x) for x in q.values()], axis=0))
        case fusion.Max():
            found = np.log(np.max([np.exp(x) for x in q.values()], axis=0))
        case fusion.Product():
            found = sum(q.values())
        case fusion.Statistical():
            found = sum(q.values()) - 2 * log_prior
        case fusion.Scaled():
            weights = {m: rule.scale if m in PERTURBED else 1 for m in q}
            found = log_prior + sum(weights[m] * (q[m] - log_prior) for m in q)
        case fusion.Contaminated(e, t):
            found = contaminated(q, e, t)
        case fusion.Cascade(c, t, e):
            trusted = q["image"]
            is_sure = np.exp(trusted.max(axis=1, keepdims=True)) > c
            assert 0 < is_sure.sum() < B
            found = np.where(
                is_sure, trusted, np.asarray(jax.nn.log_softmax(contaminated(q, e, t)))
            )
        case fusion.LearnedCascade(share, alone, fused, attacked):
            trusted = q["image"]
            values = [worth(weights, trusted) for weights in (alone, fused, attacked)]
            is_sure = values[0] > (1 - share) * values[1] + share * values[2]
            assert 0 < is_sure.sum() < B
            of_all = np.asarray(jax.nn.log_softmax(sum(q.values()) - 2 * log_prior))
            found = np.where(is_sure[:, None], trusted, of_all)
        case fusion.MajorityVote():
            found = oracles.majority_vote(LOGITS)
        case fusion.Median():
            found = oracles.median(LOGITS)
        case fusion.TrimmedMean():
            found = oracles.trimmed_mean(LOGITS)
        case fusion.ContaminatedRobust(e, gamma):
            mixed = {m: np.log((1 - e) * np.exp(x) + e * PRIOR) for m, x in q.items()}
            inputs = {m: mixed[m] if m in PERTURBED else z for m, z in LOGITS.items()}
            found = fusion.robust_fusion(
                inputs, grams(), PRIOR, perturbed=PERTURBED, gamma=gamma
            ).log_probs
        case fusion.Robust(gamma, num_iterations, solver):
            found = fusion.robust_fusion(
                LOGITS,
                grams(),
                PRIOR,
                perturbed=PERTURBED,
                gamma=gamma,
                num_iterations=num_iterations,
                solver=solver,
            ).log_probs
        case _:
            raise AssertionError(rule)
    return np.asarray(jax.nn.log_softmax(found))


def worth(weights, log_probs):
    """The probability that weights give rows, zero without any."""
    if not weights:
        return np.zeros(len(log_probs))
    rows = []
    for row in log_probs:
        one_hot = [float(k == row.argmax()) for k in range(K)]
        rows.append([*sorted(row, reverse=True), *one_hot, 1.0])
    return 1 / (1 + np.exp(-np.array(rows) @ weights))


def contaminated(q, e, t):
    log_prior = np.log(PRIOR)
    found = log_prior + q["image"] - log_prior
    for m in PERTURBED:
        found = found + t * (np.log((1 - e) * np.exp(q[m]) + e * PRIOR) - log_prior)
    return found


@every_rule
def test_a_rule_is_its_formula(rule):
    np.testing.assert_allclose(fuse(rule), by_formula(rule), rtol=1e-12, atol=1e-12)


def test_every_rule_of_the_package_is_tested():
    assert {type(rule) for rule in RULES} == {*fusion.RULES}


@every_rule
def test_numbers_are_data_and_all_else_is_static(rule):
    fields = dataclasses.astuple(rule)
    listed = [x if isinstance(x, tuple) else (x,) for x in fields]
    numbers = [x for each in listed for x in each if isinstance(x, float)]
    assert jax.tree.leaves(rule) == numbers
    traces = []

    @jax.jit
    def fuse_traced(rule):
        traces.append(rule)
        return fuse(rule)

    for factor in (1, 0.5):
        moved = jax.tree.map(lambda x, f=factor: f * x, rule)
        np.testing.assert_allclose(fuse_traced(moved), fuse(moved), rtol=1e-11, atol=1e-12)
    assert len(traces) == 1


def test_a_rule_of_arrays_is_a_batch_of_rules():
    scales, gammas = jnp.array([0.1, 0.5, 1.0]), jnp.array([0.1, 1.0])
    found = jax.vmap(fuse)(fusion.Scaled(scales))
    for scale, log_probs in zip(scales, found, strict=True):
        np.testing.assert_allclose(log_probs, fuse(fusion.Scaled(float(scale))), rtol=1e-12)
    found = jax.vmap(fuse)(fusion.Robust(gammas))
    np.testing.assert_allclose(found[1], fuse(fusion.Statistical()), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rule", [r for r in RULES if r.parameters], ids=lambda r: r.label)
def test_gradients_in_the_parameters_match_finite_differences(rule):
    def total(rule):
        return (fuse(rule) * jnp.arange(K, dtype=float)[None]).sum()

    rule = jax.tree.map(lambda x: 0.9 * x, rule)  # inside the intervals of its parameters
    gradient = jax.grad(total)(rule)
    for name in rule.searched:
        step = 1e-6
        up, down = (
            total(dataclasses.replace(rule, **{name: getattr(rule, name) + sign * step}))
            for sign in (1, -1)
        )
        np.testing.assert_allclose(
            getattr(gradient, name), (up - down) / (2 * step), rtol=1e-6, atol=1e-7
        )


@every_rule
def test_json_reads_back_what_was_written(rule):
    text = rule.to_json()
    assert json.loads(text)["schema"] == 1
    assert fusion.rule_from_json(text) == rule
    of_arrays = jax.tree.map(jnp.asarray, rule)
    assert fusion.rule_from_json(of_arrays.to_json()) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", "not a rule of schema 1"),
        ('{"schema": 2, "rule": "mean"}', "not a rule of schema 1"),
        ('{"schema": 1, "rule": "mode"}', "rule must be one of mean, .*cascade, got 'mode'"),
        ('{"schema": 1}', "got None"),
        ('{"schema": 1, "rule": "scaled"}', r"a rule scaled has the fields \['scale'\], got \[\]"),
        ('{"schema": 1, "rule": "mean", "scale": 1}', r"fields \[\], got \['scale'\]"),
    ],
)
def test_json_of_no_rule_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        fusion.rule_from_json(text)


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        (fusion.Statistical(), "statistical"),
        (fusion.Robust(0.1), "robust γ=0.1"),
        (fusion.Robust(0.1, num_iterations=3), "robust γ=0.1 num_iterations=3"),
        (fusion.Contaminated(0.3), "contaminated e=0.3 t=1"),
        (fusion.ContaminatedRobust(0.3, 0.1), "contaminated_robust e=0.3 γ=0.1"),
        (fusion.Cascade(0.8, 0.33), "cascade c=0.8 t=0.33"),
        (fusion.Cascade(0.8, 0.33, 0.1), "cascade c=0.8 t=0.33 contamination=0.1"),
    ],
)
def test_labels_tell_rules_apart(rule, label):
    assert rule.label == label


def test_equal_rules_are_one_key():
    assert len({fusion.Robust(0.1), fusion.Robust(0.1), fusion.Robust(0.2)}) == 2


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (fusion.Scaled(1.5), "scale"),
        (fusion.Robust(0.0), "gamma"),
        (fusion.Contaminated(0.1, tempering=-1.0), "tempering"),
        (fusion.Cascade(2.0), "confidence"),
    ],
)
def test_numbers_out_of_range_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        fuse(rule)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="rule robust needs grams"):
        fusion.fuse(fusion.Robust(0.1), LOGITS, PRIOR, perturbed="audio")
    with pytest.raises(ValueError, match="perturbed"):
        fusion.fuse(fusion.Scaled(0.1), LOGITS, PRIOR, perturbed="smell")


def test_a_rule_of_ones_own_is_a_class():
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Power(fusion.Rule):
        kind = "power"
        exponent: float = 1.0

        def apply(self, inputs):
            return jax.nn.log_softmax(self.exponent * fusion.product_fusion(inputs.logits), axis=-1)

    found = jax.jit(fuse)(Power(2.0))
    expected = jax.nn.log_softmax(2 * fusion.product_fusion(LOGITS))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert fusion.rule_from_json(Power(2.0).to_json(), [Power]) == Power(2.0)
    with pytest.raises(ValueError, match="rule power does not take rows that lack modalities"):
        fusion.fuse(Power(2.0), LOGITS, PRIOR, perturbed="audio", present={})
