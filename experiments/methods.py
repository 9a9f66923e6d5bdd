"""The fusion methods under comparison, each as a function of logits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from jacfuse_jax import fusion
from jacfuse_jax.linalg import GramSpectrum

METHODS = ("unimodal", "mean", "statistical", "scaled", "robust")


class Method(NamedTuple):
    """A fusion rule with its parameter.

    Attributes:
      rule: "unimodal:<modality>", "mean", "statistical", "scaled" or "robust".
      parameter: scale of "scaled", gamma of "robust", None for the others.
    """

    rule: str
    parameter: float | None

    @property
    def label(self) -> str:
        """Rule and parameter for people to read."""
        symbols = {"scaled": "t", "robust": "γ"}
        if self.parameter is None:
            return self.rule
        return f"{self.rule} {symbols[self.rule]}={self.parameter:g}"


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
) -> list[Method]:
    """Lists every rule with every parameter, in the order of the names."""
    parameters: dict[str, Sequence[float | None]] = {"scaled": scales, "robust": gammas}
    methods: list[Method] = []
    for name in names:
        if name == "unimodal":
            methods += [Method(f"unimodal:{modality}", None) for modality in modalities]
        else:
            methods += [Method(name, value) for value in parameters.get(name, (None,))]
    return methods


def fuse(
    rule: str,
    logits: Mapping[str, ArrayLike],
    evidence: Evidence,
    *,
    perturbed: str,
    parameter: Any,
) -> jax.Array:
    """Log-probabilities (B, K) of a rule.

    Args:
      rule: as in `Method`; static.
      logits: {modality: (B, K)}.
      evidence: Gram matrices and prior.
      perturbed: the modality that the rule believes perturbed; static.
      parameter: scale or gamma, traced or not; None for rules that have none.

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
    if rule == "scaled":
        return fusion.scaled_fusion(logits, class_prior, perturbed=perturbed, scale=parameter)
    if rule == "robust":
        # Gram matrices per sample depend on the inputs, and attacks differentiate through them.
        is_spectrum = isinstance(grams[perturbed], GramSpectrum)
        return fusion.robust_fusion(
            logits,
            grams,
            class_prior,
            perturbed=perturbed,
            gamma=parameter,
            solver="closed_form" if is_spectrum else "eigh",
        ).log_probs
    raise ValueError(f"unknown fusion rule {rule!r}")
