"""The fusion methods under comparison, each as a function of what the classifiers say."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jacfuse_jax import detection, fusion
from jacfuse_jax.evaluation.evidence import Evidence
from jacfuse_jax.evaluation.names import GRIDS, HEADS, REGIME_OF
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.jacobians import softmax_jacobian
from jacfuse_jax.linalg import recalibrate, solve_generalized

# Rules whose recalibration an attacker may replace by something easier to differentiate.
RECALIBRATED = ("robust", "contaminated_robust")
Surrogate = Literal["", "stop_gradient", "iterated"]
_NUM_ITERATIONS = 3  # of the surrogate "iterated"
_HIGHEST = jax.lax.Precision.HIGHEST
_SYMBOLS = {"gamma": "γ", "scale": "t", "contamination": "e", "tempering": "t", "confidence": "c"}


class Parameters(NamedTuple):
    """Parameters of a rule; None for those that it does not have, see `GRIDS`."""

    gamma: Any = None
    scale: Any = None
    contamination: Any = None
    tempering: Any = None
    confidence: Any = None


class Method(NamedTuple):
    """A fusion rule with its parameters.

    Attributes:
      rule: "unimodal:<modality>", or one of `METHODS` but "unimodal".
      parameters: of the rule.
    """

    rule: str
    parameters: Parameters = Parameters()

    @property
    def label(self) -> str:
        """Rule and parameters for people to read."""
        values = (
            f" {_SYMBOLS[name]}={value:.12g}"
            for name, value in self.parameters._asdict().items()
            if value is not None
        )
        return self.rule + "".join(values)


class Observed(NamedTuple):
    """What classifiers say of a batch.

    Attributes:
      logits: {regime of training: {modality: (B, K)}}, "standard" among the regimes.
      heads: {trained head: log-probabilities (B, K)}.
      grams: {modality: (B, K, K)}, of the Jacobians of the standard logits in the input; empty
        where the last linear layer's serve all samples.
    """

    logits: dict[str, dict[str, Any]]
    heads: dict[str, Any]
    grams: dict[str, Any]


def expand_methods(
    names: Sequence[str], modalities: Sequence[str], values: Mapping[str, Sequence[float]]
) -> list[Method]:
    """Lists every rule with every combination of its parameters, in the order of the names.

    Args:
      names: of `METHODS`.
      modalities: "unimodal" stands for one method each.
      values: of every parameter.
    """
    methods: list[Method] = []
    for name in names:
        if name == "unimodal":
            methods += [Method(f"unimodal:{modality}") for modality in modalities]
            continue
        grid = GRIDS.get(name, ())
        methods += [
            Method(name, Parameters(**dict(zip(grid, combination, strict=True))))
            for combination in itertools.product(*(values[parameter] for parameter in grid))
        ]
    return methods


def predict(
    rule: str,
    observed: Observed,
    parameters: Parameters,
    *,
    evidence: Evidence,
    believed: tuple[str, ...],
    surrogate: Surrogate = "",
) -> jax.Array:
    """Log-probabilities (B, K) of a rule.

    Args:
      rule: as in `Method`, or "unimodal": the sum of the log-probabilities of the believed
        modalities, which is attacked where each of them is attacked by itself; static.
      observed: what the classifiers say.
      parameters: of the rule, traced or not; those that it does not have are not looked at.
      evidence: what is known of the classifiers.
      believed: the modalities that the rule believes perturbed; static. `DETECT` averages over
        them as `detection.detected_fusion` does.
      surrogate: what an attacker differentiates in place of a recalibrated rule; static:
        "stop_gradient" holds the matrices R fixed, so that gradients see p = softmax(R z + ...)
        alone (the same prediction); "iterated" recalibrates three times.

    Returns:
      (B, K).

    Raises:
      ValueError: unknown rule.
    """
    class_prior = evidence.class_prior
    if believed == DETECT and rule in GRIDS:
        return detection.detected_fusion(
            lambda names: predict(
                rule,
                observed,
                parameters,
                evidence=evidence,
                believed=names,
                surrogate=surrogate,
            ),
            observed.logits["standard"],
            evidence.detector,
            class_prior,
        )
    if rule in HEADS:
        return observed.heads[rule]
    logits = dict(observed.logits[REGIME_OF.get(rule, "standard")])
    if rule.startswith("unimodal:"):
        return jax.nn.log_softmax(logits[rule.removeprefix("unimodal:")])
    if rule == "unimodal":
        return sum(
            (jax.nn.log_softmax(logits[name]) for name in believed[1:]),
            start=jax.nn.log_softmax(logits[believed[0]]),
        )
    if rule == "temperature":
        logits = {name: z / evidence.temperatures[name] for name, z in logits.items()}
    if rule in ("statistical", "temperature", *REGIME_OF):
        return fusion.statistical_fusion(logits, class_prior)
    if rule == "mean":
        return fusion.mean_fusion(logits)
    if rule == "max":
        return fusion.max_fusion(logits)
    if rule == "product":
        return fusion.product_fusion(logits)
    gamma, scale, contamination, tempering, confidence = parameters
    if rule == "scaled":
        return fusion.scaled_fusion(logits, class_prior, perturbed=believed, scale=scale)
    if rule == "contaminated":
        return fusion.contaminated_fusion(
            logits,
            class_prior,
            contamination=contamination,
            tempering=tempering,
            perturbed=believed,
        )
    if rule == "cascade":
        return fusion.cascade_fusion(
            logits, class_prior, perturbed=believed, confidence=confidence, tempering=tempering
        )
    if rule == "fixed_robust":
        for name in believed:
            matrix = _fixed_recalibration(evidence, name, gamma, logits[name].dtype)
            logits[name] = jnp.matmul(logits[name], matrix.T, precision=_HIGHEST)
        return fusion.statistical_fusion(logits, class_prior)
    if rule not in RECALIBRATED:
        raise ValueError(f"unknown fusion rule {rule!r}")
    if rule == "contaminated_robust":
        logits = fusion.contaminate_modalities(
            logits, class_prior, contamination=contamination, perturbed=believed
        )
    if surrogate == "stop_gradient":
        probs = jax.lax.stop_gradient(jnp.exp(fusion.statistical_fusion(logits, class_prior)))
        strength = (1 - gamma) / gamma
        for name in believed:
            if observed.grams:
                J = softmax_jacobian(probs)
                A = strength * jnp.matmul(J, J, precision=_HIGHEST)
                gram = jax.lax.stop_gradient(observed.grams[name])
                R = solve_generalized(A, gram, jnp.eye(A.shape[-1], dtype=A.dtype), method="eigh")
                logits[name] = jnp.einsum("bij,bj->bi", R, logits[name], precision=_HIGHEST)
            else:
                logits[name] = recalibrate(logits[name], probs, evidence.grams[name], strength)
        return fusion.statistical_fusion(logits, class_prior)
    return fusion.robust_fusion(
        logits,
        observed.grams or evidence.grams,
        class_prior,
        perturbed=believed,
        gamma=gamma,
        num_iterations=_NUM_ITERATIONS if surrogate == "iterated" else 1,
        # Gram matrices per sample depend on the inputs, and attacks differentiate through them.
        solver="eigh" if observed.grams else "closed_form",
    ).log_probs


def _fixed_recalibration(
    evidence: Evidence, modality: str, gamma: Any, dtype: jnp.dtype
) -> jax.Array:
    """R (K, K) that minimises the mean of the robust objective over validation data."""
    eigenvalues, vectors = evidence.grams[modality]
    gram = (vectors * eigenvalues[None]) @ vectors.T
    squared = (1 - gamma) / gamma * evidence.mean_squared_jacobian
    identity = jnp.eye(len(squared), dtype=squared.dtype)
    return solve_generalized(squared, gram, identity, method="eigh").astype(dtype)
