"""Small classifiers that can be inverted, so that what was done to their inputs is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax import detection, fusion, jacobians
from jacfuse_jax.evaluation import rules
from jacfuse_jax.evaluation.baselines import TrimmedMean
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.measure import Row
from jacfuse_jax.evaluation.models import (
    Classifier,
    Models,
    add_subspaces,
    input_residuals,
)
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.subspaces import Subspace
from jacfuse_jax.evaluation.targets import branch_of
from jacfuse_jax.fusion import Rule
from jacfuse_jax.linalg import spectrum_from_kernel
from jacfuse_jax.models import UnimodalOutput
from jacfuse_jax.training import FusionHead

SHAPE = (2, 3, 1)
NUM_CLASSES = 6  # as many as entries of an input: logits tell them
KINDS = {"image": "image", "audio": "spectrogram"}
MODALITIES = tuple(KINDS)


def make_models(
    modalities=MODALITIES, regimes=("standard",), head_names=(), *, with_subspaces=False
) -> Models:
    """Classifiers with logits f(x) W of features f(x) = x + x^2 / 4, heads linear in features.

    With subspaces, clean inputs of `make_rows` are up to 0.4 from a hyperplane, and many further.
    """
    rng = np.random.default_rng(0)

    def kernel():
        return jnp.asarray(3 * np.eye(NUM_CLASSES) + 0.7 * rng.normal(size=2 * [NUM_CLASSES]))

    classifiers = {
        regime: {
            modality: Classifier(classify, kernel(), kernel=jnp.zeros(0)) for modality in modalities
        }
        for regime in regimes
    }
    classifiers = {
        regime: {m: c._replace(kernel=c.parameters) for m, c in of_regime.items()}
        for regime, of_regime in classifiers.items()
    }
    prior = rng.dirichlet(np.full(NUM_CLASSES, 9.0))
    jac = [np.diag(p) - np.outer(p, p) for p in rng.dirichlet(np.ones(NUM_CLASSES), size=5)]
    evidence = Evidence(
        {m: spectrum_from_kernel(c.kernel) for m, c in classifiers["standard"].items()},
        jnp.asarray(prior),
        {m: jnp.asarray(1.5 + index) for index, m in enumerate(modalities)},
        jnp.asarray(np.mean([j @ j for j in jac], axis=0)),
        make_detector(classifiers["standard"], prior),
        {m: jnp.asarray(0.1 + 0.2 * index) for index, m in enumerate(modalities)},
    )
    heads = {
        name: FusionHead(combine, {modality: kernel() for modality in modalities})
        for name in head_names
    }
    fill_values = {modality: np.full(SHAPE, 0.3) for modality in modalities}
    models = Models(
        classifiers, heads, evidence, dict.fromkeys(modalities, (0.0, 1.0)), fill_values
    )
    if not with_subspaces:
        return models
    basis = jnp.asarray(np.linalg.qr(rng.normal(size=(NUM_CLASSES, NUM_CLASSES - 1)))[0])
    subspace = Subspace(jnp.full(NUM_CLASSES, 0.4), basis, jnp.asarray(0.4))
    return add_subspaces(models, dict.fromkeys(modalities, subspace))


def make_detector(classifiers: dict[str, Classifier], prior: Any) -> Any:
    """Fitted to noisy indicators of the labels."""
    rng = np.random.default_rng(2)
    labels = np.arange(60) % NUM_CLASSES
    noise = {m: rng.normal(size=(60, NUM_CLASSES)) for m in classifiers}
    logits = {m: 3 * np.eye(NUM_CLASSES)[labels] + noise[m] for m in classifiers}
    return detection.fit_detector(logits, labels, prior)


def classify(parameters: Any, x: jax.Array) -> UnimodalOutput:
    features = (x + x**2 / 4).reshape(len(x), -1)
    return UnimodalOutput(features @ parameters, features)


def combine(parameters: Any, outputs: Any) -> jax.Array:
    return jax.nn.log_softmax(sum(outputs[m].features @ parameters[m] for m in parameters))


def inputs_of(models: Models, modality: str, logits: Any) -> Any:
    """The inputs (N, 2, 3, 1) at which the standard classifier says this."""
    features = np.asarray(logits) @ np.linalg.inv(models.classifiers["standard"][modality].kernel)
    return (2 * (np.sqrt(1 + features) - 1)).reshape(-1, *SHAPE)


def make_rows(models: Models, num_rows: int, *, with_grams: bool = False, seed: int = 1) -> Rows:
    """Rows that the classifiers get right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(NUM_CLASSES, size=num_rows)
    standard = models.classifiers["standard"]
    inputs = {}
    for modality in standard:
        x = rng.uniform(0, 0.75, size=(num_rows, NUM_CLASSES))
        x[np.arange(num_rows), labels] += 0.25
        inputs[modality] = x.reshape(-1, *SHAPE)
    outputs = {
        regime: {
            m: jax.tree.map(np.asarray, c.output_fn(c.parameters, inputs[m]))
            for m, c in of_regime.items()
        }
        for regime, of_regime in models.classifiers.items()
    }
    heads = {
        name: np.asarray(head.log_probs_fn(head.parameters, outputs["standard"]))
        for name, head in models.heads.items()
    }
    grams = {m: grams_of(c.parameters, inputs[m]) for m, c in standard.items() if with_grams}
    residuals = input_residuals(models.subspaces, inputs, batch_size=num_rows)
    groups = np.arange(num_rows, dtype=np.int32)
    return Rows(inputs, labels, groups, outputs, heads, grams, residuals)


def grams_of(kernel: Any, x: Any) -> Any:
    """(N, K, K), of the Jacobians W^T diag(1 + x / 2)."""
    jac = np.asarray(kernel).T * (1 + x.reshape(len(x), 1, -1) / 2)
    return np.asarray(jacobians.gram_from_jacobian(jac))


def observe_all(rows: Rows) -> Observed:
    """What classifiers say of clean rows, of all modalities."""
    logits = {
        regime: {m: output.logits for m, output in of_regime.items()}
        for regime, of_regime in rows.outputs.items()
    }
    return Observed(logits, rows.heads, rows.grams, rows.residuals)


def branches_of(*steps) -> Any:
    return tuple(dict.fromkeys(branch_of(step) for step in steps))


def robust(gamma: float = 0.1) -> Rule:
    return fusion.Robust(gamma)


def scaled(scale: float = 0.2) -> Rule:
    return fusion.Scaled(scale)


def make_learned(num_classes: int) -> fusion.LearnedCascade:
    """A learned cascade that was not fitted: sure where trusted modalities give a class over 0.6.

    But for small weights of everything.
    """
    rng = np.random.default_rng(0)
    gate = 0.1 * rng.normal(size=(3, min(5, num_classes) + num_classes + 1))
    gate[0, 0] += 4
    gate[:, -1] += 2, 0.4, -2
    return fusion.LearnedCascade(0.3, *(tuple(map(float, weights)) for weights in gate))


STATISTICAL = fusion.Statistical()
NAMES = tuple(name for name in rules.NAMES if name != TrimmedMean.kind)  # two modalities are few
VALUES = {
    "gamma": (0.1,),
    "scale": (0.2,),
    "contamination": (0.3,),
    "tempering": (0.5,),
    "confidence": (0.5,),
}


def make_rule(name: str) -> Rule:
    """The rule of this name, with `VALUES`; the first modality where it is of one alone."""
    if name == rules.LEARNED:
        return make_learned(NUM_CLASSES)
    return rules.expand([name], MODALITIES, VALUES)[0]


def make_row(rule: Rule = STATISTICAL, **changes: Any) -> Row:
    """A line of results.csv, of clean rows unless changed."""
    values: dict[str, Any] = {
        "dataset": "digits",
        "seed": 0,
        "threat_model": "known",
        "perturbed": "image",
        "perturbation": "clean",
        "severity": 0,
        "attack_target": None,
        "rule": rule,
        "selected": None,
        "accuracy": 0.75,
        "ci_low": 0.5,
        "ci_high": 0.9,
        "nll": 1 / 3,
        "brier": 0.25,
        "ece": 0.0,
        "macro_accuracy": 0.625,
        "num_examples": 8,
        "certified": None,
    }
    return Row(**{**values, **changes})
