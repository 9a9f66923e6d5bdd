"""The rule that fuses predictions: contaminated, then recalibrated; with parameters or a choice."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jacfuse_jax import calibration, fusion, linalg, metrics
from jacfuse_jax.programs import InputError


class Rule(NamedTuple):
    """Robust fusion on contaminated log-probabilities.

    Attributes:
      grams: {modality believed perturbed: spectrum of its Gram matrix}.
      class_prior: (K,), sums to one.
      gamma: in (0, 1]; 1 recalibrates nothing.
      contamination: in [0, 1]; 0 contaminates nothing.
    """

    grams: dict[str, linalg.GramSpectrum]
    class_prior: Any
    gamma: Any
    contamination: Any


class Evaluation(NamedTuple):
    """Sums of metrics, which add over batches.

    Attributes:
      unimodal: of each modality alone.
      statistical: of statistical fusion.
      result: of what was fused by the rule.
    """

    unimodal: dict[str, metrics.ClassificationSums]
    statistical: metrics.ClassificationSums
    result: metrics.ClassificationSums


@jax.jit
def fuse(rule: Rule, logits: Mapping[str, Any]) -> fusion.FusedOutput:
    """Fuses the logits of a batch.

    Args:
      rule: the rule.
      logits: {modality: (B, K)}.

    Returns:
      As `fusion.robust_fusion`.
    """
    return fusion.robust_fusion(
        _contaminate(rule, logits),
        rule.grams,
        rule.class_prior,
        perturbed=tuple(rule.grams),
        gamma=rule.gamma,
    )


@jax.jit
def evaluate(
    rule: Rule, logits: Mapping[str, Any], log_probs: Any, labels: Any, mask: Any
) -> Evaluation:
    """Sums of metrics over a batch.

    Args:
      rule: that gave the result.
      logits: {modality: (B, K)}.
      log_probs: (B, K), the result.
      labels: (B,).
      mask: (B,), 1 for rows that count.

    Returns:
      The sums.
    """
    sums = functools.partial(metrics.classification_sums, labels=labels, mask=mask)
    return Evaluation(
        {name: sums(jax.nn.log_softmax(z)) for name, z in logits.items()},
        sums(fusion.statistical_fusion(logits, rule.class_prior)),
        sums(log_probs),
    )


def choose(rule: Rule, logits: Mapping[str, Any], labels: Any, *, names: Sequence[str]) -> Rule:
    """Chooses parameters on clean labelled rows: contamination first, then gamma, given it.

    Args:
      rule: the rule; what is chosen is not looked at.
      logits: {modality: (N, K)}; each says something of every row, see `fusion`.
      labels: (N,).
      names: of the parameters to choose, by `calibration.choose_contamination`, `choose_gamma`.

    Returns:
      The rule with what was chosen.

    Raises:
      InputError: no gamma has a finite likelihood.
    """
    if "contamination" in names:
        rule = rule._replace(contamination=_choose_contamination(rule, logits, labels))
    if "gamma" in names:
        choice = _choose_gamma(rule, logits, labels)
        if not np.isfinite(choice.nll).any():
            raise InputError(
                "--gamma=auto: no gamma has a finite likelihood, since logits of -inf exclude "
                "labels; leave those rows out, or give --contamination above 0 or a --gamma"
            )
        rule = rule._replace(gamma=choice.gamma)
    return rule


@jax.jit
def _choose_contamination(rule: Rule, logits: Mapping[str, Any], labels: Any) -> jax.Array:
    """The contamination that certifies most, whatever gamma."""
    return calibration.choose_contamination(
        logits, labels, rule.class_prior, perturbed=tuple(rule.grams)
    ).contamination


@jax.jit
def _choose_gamma(rule: Rule, logits: Mapping[str, Any], labels: Any) -> calibration.GammaChoice:
    """The best gamma for what is contaminated."""
    return calibration.choose_gamma(
        _contaminate(rule, logits),
        rule.grams,
        labels,
        rule.class_prior,
        jax.random.key(0),
        perturbed=tuple(rule.grams),
    )


def _contaminate(rule: Rule, logits: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What is recalibrated."""
    return fusion.contaminate_modalities(
        logits,
        rule.class_prior,
        contamination=rule.contamination,
        perturbed=tuple(rule.grams),
    )
