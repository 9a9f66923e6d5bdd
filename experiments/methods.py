"""The fusion methods under comparison, each as a function of logits."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from jacfuse_jax import fusion
from jacfuse_jax.linalg import GramSpectrum

DEFAULT_METHODS = ("unimodal", "mean", "statistical", "scaled", "robust")
METHODS = (*DEFAULT_METHODS, "max", "product", "contaminated", "contaminated_robust")
_SYMBOLS = {"gamma": "γ", "scale": "t", "contamination": "e", "tempering": "t"}


class Parameters(NamedTuple):
    """Parameters of a rule; None for those that it does not have.

    Attributes:
      gamma: of "robust" and "contaminated_robust".
      scale: of "scaled".
      contamination: of "contaminated" and "contaminated_robust".
      tempering: of "contaminated".
    """

    gamma: Any = None
    scale: Any = None
    contamination: Any = None
    tempering: Any = None


class Method(NamedTuple):
    """A fusion rule with its parameters.

    Attributes:
      rule: "unimodal:<modality>", "mean", "max", "product", "statistical", "scaled",
        "contaminated", "robust" or "contaminated_robust".
      parameters: of the rule.
    """

    rule: str
    parameters: Parameters = Parameters()

    @property
    def label(self) -> str:
        """Rule and parameters for people to read."""
        values = (
            f" {_SYMBOLS[name]}={value:g}"
            for name, value in self.parameters._asdict().items()
            if value is not None
        )
        return self.rule + "".join(values)


class Evidence(NamedTuple):
    """What fusion knows of the classifiers beside their logits.

    Attributes:
      grams: {modality: Gram matrix of the Jacobian of its logits}: the spectrum of that of the
        last linear layer, or a matrix for every sample, (B, K, K).
      class_prior: (K,), class frequencies of the training labels.
    """

    grams: dict[str, GramSpectrum | jax.Array]
    class_prior: jax.Array


def expand_methods(
    names: Sequence[str],
    modalities: Sequence[str],
    *,
    gammas: Sequence[float],
    scales: Sequence[float],
    contaminations: Sequence[float],
    temperings: Sequence[float],
) -> list[Method]:
    """Lists every rule with every combination of its parameters, in the order of the names."""
    grids: dict[str, dict[str, Sequence[float]]] = {
        "scaled": {"scale": scales},
        "robust": {"gamma": gammas},
        "contaminated": {"contamination": contaminations, "tempering": temperings},
        "contaminated_robust": {"contamination": contaminations, "gamma": gammas},
    }
    methods: list[Method] = []
    for name in names:
        if name == "unimodal":
            methods += [Method(f"unimodal:{modality}") for modality in modalities]
            continue
        grid = grids.get(name, {})
        methods += [
            Method(name, Parameters(**dict(zip(grid, values, strict=True))))
            for values in itertools.product(*grid.values())
        ]
    return methods


def fuse(
    rule: str,
    logits: Mapping[str, ArrayLike],
    evidence: Evidence,
    *,
    perturbed: str,
    parameters: Parameters,
) -> jax.Array:
    """Log-probabilities (B, K) of a rule.

    Args:
      rule: as in `Method`; static.
      logits: {modality: (B, K)}.
      evidence: Gram matrices and prior.
      perturbed: the modality that the rule believes perturbed; static.
      parameters: of the rule, traced or not.

    Returns:
      (B, K).

    Raises:
      ValueError: unknown rule.
    """
    grams, class_prior = evidence
    if rule.startswith("unimodal:"):
        return jax.nn.log_softmax(logits[rule.removeprefix("unimodal:")])
    if rule == "mean":
        return fusion.mean_fusion(logits)
    if rule == "statistical":
        return fusion.statistical_fusion(logits, class_prior)
    if rule == "max":
        return fusion.max_fusion(logits)
    if rule == "product":
        return fusion.product_fusion(logits)
    gamma, scale, contamination, tempering = parameters
    if rule == "scaled":
        return fusion.scaled_fusion(logits, class_prior, perturbed=perturbed, scale=scale)
    if rule == "contaminated":
        return fusion.contaminated_fusion(
            logits,
            class_prior,
            contamination=contamination,
            tempering=tempering,
            perturbed=perturbed,
        )
    if rule in ("robust", "contaminated_robust"):
        if rule == "contaminated_robust":
            bounded = fusion.contaminated_log_probs(
                logits[perturbed], class_prior, contamination=contamination
            )
            logits = {**logits, perturbed: bounded}
        # Gram matrices per sample depend on the inputs, and attacks differentiate through them.
        is_spectrum = isinstance(grams[perturbed], GramSpectrum)
        return fusion.robust_fusion(
            logits,
            grams,
            class_prior,
            perturbed=perturbed,
            gamma=gamma,
            solver="closed_form" if is_spectrum else "eigh",
        ).log_probs
    raise ValueError(f"unknown fusion rule {rule!r}")
