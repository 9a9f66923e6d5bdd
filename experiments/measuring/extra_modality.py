"""What `experiments.extra_modality` measures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.run.start import Prepared
from jacfuse_jax import attacks, bounds, corruptions, fusion
from jacfuse_jax.evaluation.perturb import make_perturb_fn
from jacfuse_jax.evaluation.rows import Rows, make_rows
from jacfuse_jax.evaluation.rules import Unimodal
from jacfuse_jax.evaluation.targets import OWN, Step, branch_of
from jacfuse_jax.fusion import Rule
from jacfuse_jax.linalg import GramSpectrum, spectrum_from_kernel

GAUSSIAN = "gaussian"
_STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # distances of class means, over sqrt(2)
_PERTURBED_STRENGTH = 3.0
_RADIUS = 2.0
_NUM_CLASSES, _NUM_FEATURES, _NUM_ROWS = 10, 16, 2000
_ATTACK, _ATTACK_SEVERITY = "apgd", 3
_NOISE = "gaussian_noise"


class Row(NamedTuple):
    """One line of extra_modality.csv; means over the rows, None where a figure does not apply.

    Attributes:
      source: "gaussian" or a data set.
      perturbed: the modality believed perturbed, and attacked.
      strength: of the extra modality: a of the Gaussian model, or minus the noise's stddev.
      method: "statistical", "robust", "perturbed alone" or "extra alone".
      clean: accuracy.
      attacked: accuracy where the perturbed modality is attacked.
      bias: distance of clean probabilities from those of statistical fusion, in the 2-norm; on the
        Gaussian model from the exact posterior, which that is.
      bias_bound: what bounds it, see `bounds.bias_bound`.
      jacobian: Frobenius norm in the perturbed modality's features, matrices R held fixed.
      total_jacobian: the same through the solve.
      a_priori_bound: see `bounds.a_priori_bound`.
      above_bound: share of rows with `jacobian` above it.
    """

    source: str
    perturbed: str
    strength: float
    method: str
    gamma: float | None
    clean: float
    attacked: float
    bias: float | None
    bias_bound: float | None
    jacobian: float | None
    total_jacobian: float | None
    a_priori_bound: float | None
    above_bound: float | None


class _Problem(NamedTuple):
    """What is fused: logits of both modalities, (N, K) each."""

    logits: dict[str, jax.Array]
    grams: dict[str, GramSpectrum]
    class_prior: jax.Array
    labels: jax.Array


def measure_gaussian(gammas: Sequence[float], *, attack_steps: int, seed: int) -> list[Row]:
    """Measures on the Gaussian model, both modalities in features that an attacker may move.

    Args:
      gammas: of robust fusion.
      attack_steps: of PGD.
      seed: of the model and of the attacks.

    Returns:
      Rows of extra_modality.csv.
    """
    keys = jax.random.split(jax.random.key(seed), 5)
    means = jax.random.normal(keys[0], (_NUM_CLASSES, _NUM_FEATURES))
    means /= jnp.linalg.norm(means, axis=1, keepdims=True)
    labels = jax.random.randint(keys[1], (_NUM_ROWS,), 0, _NUM_CLASSES)
    noise = {
        m: jax.random.normal(k, (_NUM_ROWS, _NUM_FEATURES))
        for m, k in zip("xy", keys[2:4], strict=True)
    }
    class_prior = jnp.full(_NUM_CLASSES, 1 / _NUM_CLASSES)

    rows: list[Row] = []
    for strength in _STRENGTHS:
        strengths = {"x": _PERTURBED_STRENGTH, "y": strength}
        features = {m: a * means[labels] + noise[m] for m, a in strengths.items()}
        problem = _Problem(
            {m: _gaussian_logits(features[m], means, a) for m, a in strengths.items()},
            {m: spectrum_from_kernel(a * means.T) for m, a in strengths.items()},
            class_prior,
            labels,
        )
        attack_fn = partial(
            _attack_gaussian,
            problem=problem,
            features=features["x"],
            means=means,
            key=keys[4],
            num_steps=attack_steps,
        )
        rows += _measure(GAUSSIAN, strength, problem, "x", attack_fn, gammas)
    return rows


def _gaussian_logits(features: jax.Array, means: jax.Array, strength: Any) -> jax.Array:
    """Logits log p(k | x), up to a constant; all means have length one."""
    return strength * features @ means.T - strength**2 / 2


@partial(jax.jit, static_argnames="num_steps")
def _attack_gaussian(
    rule: Rule,
    *,
    problem: _Problem,
    features: jax.Array,
    means: jax.Array,
    key: jax.Array,
    num_steps: int,
) -> jax.Array:
    """Logits of "x" after an attack on a rule that goes through it."""

    def log_prob_fn(inputs: Mapping[str, Any]) -> jax.Array:
        moved = _gaussian_logits(inputs["x"], means, _PERTURBED_STRENGTH)
        logits = {**problem.logits, "x": moved}
        return _predict(rule, problem._replace(logits=logits), "x")

    adversarial = attacks.pgd(
        log_prob_fn,
        {"x": features},
        problem.labels,
        key,
        epsilon={"x": _RADIUS},
        norm="l2",
        num_steps=num_steps,
        loss="margin",
    )
    return _gaussian_logits(adversarial["x"], means, _PERTURBED_STRENGTH)


def measure_dataset(
    prepared: Prepared,
    perturbed: str,
    gammas: Sequence[float],
    *,
    num_attack: int,
    attack_steps: int,
    num_restarts: int,
    batch_size: int,
) -> list[Row]:
    """Measures on test rows of a data set, with noise on the extra modality.

    Args:
      prepared: data of two modalities, and their classifiers.
      perturbed: the modality to attack.
      gammas: of robust fusion.
      num_attack: rows.
      attack_steps: of APGD.
      num_restarts: of APGD.
      batch_size: rows at a time.

    Returns:
      Rows of extra_modality.csv.
    """
    models, split = prepared.models, prepared.dataset.splits["test"]
    test = make_rows(models, split, batch_size=batch_size, with_grams=False).first(num_attack)
    perturb_fn = make_perturb_fn(
        models,
        attack_steps=attack_steps,
        num_restarts=num_restarts,
        batch_size=batch_size,
        with_grams=False,
    )
    key = jax.random.key(prepared.seed)

    def logits_after(step: Step, rows: Rows) -> jax.Array:
        (observed,) = perturb_fn([step], (branch_of(step),), key, rows, [[]])
        return jnp.asarray(observed.logits["standard"][step.attacked[0]])

    found = logits_after(Step((perturbed,), _ATTACK, _ATTACK_SEVERITY, OWN), test)
    (extra,) = (name for name in test.inputs if name != perturbed)
    clean = {m: jnp.asarray(o.logits) for m, o in test.outputs["standard"].items()}
    rows: list[Row] = []
    for severity, stddev in [
        *reversed(list(enumerate(corruptions.SEVERITIES[_NOISE].values, 1))),
        (0, 0.0),
    ]:
        noisy = clean[extra]
        if severity:
            noisy = logits_after(Step((extra,), _NOISE, severity, None), test)
        problem = _Problem(
            {**clean, extra: noisy},
            models.evidence.grams,
            models.evidence.class_prior,
            jnp.asarray(test.labels),
        )
        rows += _measure(
            prepared.dataset.name, 0.0 - stddev, problem, perturbed, lambda *_: found, gammas
        )
    return rows


def _measure(
    source: str,
    strength: float,
    problem: _Problem,
    perturbed: str,
    attack_fn: Callable[[Rule], jax.Array],
    gammas: Sequence[float],
) -> list[Row]:
    """All rules on one problem; the attack returns logits of the perturbed modality for a rule."""
    (extra,) = (name for name in problem.logits if name != perturbed)
    rules: list[tuple[str, Rule]] = [("statistical", fusion.Statistical())]
    rules += [("robust", fusion.Robust(gamma)) for gamma in gammas]
    rules += [("perturbed alone", Unimodal(perturbed)), ("extra alone", Unimodal(extra))]
    rows: list[Row] = []
    for method, rule in rules:
        logits = problem.logits
        if rule != Unimodal(extra):
            logits = {**logits, perturbed: attack_fn(rule)}
        accuracies = [
            _accuracy(_predict(rule, p, perturbed), problem.labels)
            for p in (problem, problem._replace(logits=logits))
        ]
        gamma = rule.parameters.get("gamma")
        figures: Sequence[float | None] = [None] * 6
        if gamma is not None:
            figures = [float(x) for x in _sensitivity(problem, jnp.asarray(gamma), perturbed)]
        rows.append(Row(source, perturbed, strength, method, gamma, *accuracies, *figures))
    return rows


def _accuracy(log_probs: jax.Array, labels: jax.Array) -> float:
    return float((log_probs.argmax(axis=-1).astype(labels.dtype) == labels).mean())


@partial(jax.jit, static_argnames="perturbed")
def _sensitivity(problem: _Problem, gamma: jax.Array, perturbed: str) -> tuple[jax.Array, ...]:
    """Figures of robust fusion from `bias` to `above_bound`."""
    logits, grams, class_prior, _ = problem
    options: Any = {"perturbed": perturbed, "gamma": gamma}
    robust = fusion.robust_fusion(logits, grams, class_prior, **options)
    plain = fusion.statistical_fusion(logits, class_prior)
    bias = jnp.linalg.norm(jnp.exp(robust.log_probs) - jnp.exp(plain), axis=-1)
    total = bounds.total_jacobian(logits, grams, class_prior, batch_size=128, **options)
    norms = bounds.jacobian_norms({perturbed: total[perturbed]}, grams)
    bound = bounds.a_priori_bound(gamma, plain.shape[-1])
    return (
        bias.mean(),
        bounds.bias_bound(logits, grams, class_prior, **options).mean(),
        robust.jacobian_norm.mean(),
        norms.frobenius.mean(),
        bound,
        (robust.jacobian_norm > bound).mean(),
    )


@partial(jax.jit, static_argnames="perturbed")
def _predict(rule: Rule, problem: _Problem, perturbed: str) -> jax.Array:
    logits, grams, class_prior, _ = problem
    return fusion.fuse(rule, logits, class_prior, perturbed=perturbed, grams=grams)
