import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.methods import METHODS, Evidence, Method, Parameters, expand_methods, fuse
from jacfuse_jax import fusion
from jacfuse_jax.linalg import spectrum_from_kernel

GRID = {
    "gammas": (0.5, 0.1),
    "scales": (0.2,),
    "contaminations": (0.7, 0.3),
    "temperings": (1.0, 0.5),
}


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    logits = {name: jnp.asarray(rng.normal(size=(6, 4))) for name in ("image", "audio")}
    spectrum = spectrum_from_kernel(rng.normal(size=(5, 4)))
    return logits, Evidence({"image": spectrum}, jnp.asarray(rng.dirichlet(np.full(4, 3.0))))


def test_every_combination_of_parameters_is_a_method():
    methods = expand_methods(METHODS, ("image", "audio"), **GRID)
    assert len(set(methods)) == len(methods) == 2 + 2 + 2 + 1 + 2 + 4 + 4
    labels = [method.label for method in methods]
    assert labels[:3] == ["unimodal:image", "unimodal:audio", "mean"]
    assert "scaled t=0.2" in labels
    assert "contaminated e=0.7 t=0.5" in labels
    assert "contaminated_robust γ=0.1 e=0.3" in labels


def test_every_method_is_the_rule_that_it_names(problem):
    logits, evidence = problem
    grams, prior = evidence
    bounded = {
        **logits,
        "image": fusion.contaminated_log_probs(logits["image"], prior, contamination=0.3),
    }
    expected = {
        Method("unimodal:audio"): jax.nn.log_softmax(logits["audio"]),
        Method("mean"): fusion.mean_fusion(logits),
        Method("max"): fusion.max_fusion(logits),
        Method("product"): fusion.product_fusion(logits),
        Method("statistical"): fusion.statistical_fusion(logits, prior),
        Method("scaled", Parameters(scale=0.2)): fusion.scaled_fusion(
            logits, prior, perturbed="image", scale=0.2
        ),
        Method("contaminated", Parameters(contamination=0.3, tempering=0.5)): (
            fusion.contaminated_fusion(
                logits, prior, contamination=0.3, tempering=0.5, perturbed="image"
            )
        ),
        Method("robust", Parameters(gamma=0.1)): fusion.robust_fusion(
            logits, grams, prior, perturbed="image", gamma=0.1
        ).log_probs,
        Method("contaminated_robust", Parameters(gamma=0.1, contamination=0.3)): (
            fusion.robust_fusion(bounded, grams, prior, perturbed="image", gamma=0.1).log_probs
        ),
    }
    assert {method.rule.partition(":")[0] for method in expected} == set(METHODS)
    for method, log_probs in expected.items():
        actual = fuse(
            method.rule, logits, evidence, perturbed="image", parameters=method.parameters
        )
        np.testing.assert_array_equal(actual, log_probs)


def test_unknown_rule(problem):
    with pytest.raises(ValueError, match="unknown fusion rule 'magic'"):
        fuse("magic", *problem, perturbed="image", parameters=Parameters())
