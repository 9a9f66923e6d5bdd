"""What fuses predictions: contaminated, then recalibrated; with parameters or a choice."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jacfuse_jax import calibration, fusion, linalg, metrics
from jacfuse_jax.fusion import ContaminatedRobust
from jacfuse_jax.programs import InputError


class FittedRule(NamedTuple):
    """A rule, and what else it takes beside logits.

    Attributes:
      rule: with its parameters.
      grams: {modality believed perturbed: spectrum of its Gram matrix}.
      class_prior: (K,), sums to one.
    """

    rule: ContaminatedRobust
    grams: dict[str, linalg.GramSpectrum]
    class_prior: Any

    @property
    def perturbed(self) -> tuple[str, ...]:
        """Names of the modalities believed perturbed."""
        return tuple(self.grams)


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
def fuse(
    fitted: FittedRule, logits: Mapping[str, Any], present: Mapping[str, Any] | None = None
) -> fusion.FusedOutput:
    """Fuses the logits of a batch.

    Args:
      fitted: the rule.
      logits: {modality: (B, K)}.
      present: {modality: (B,)}, as in `fusion.fuse`.

    Returns:
      As `fusion.robust_fusion`.
    """
    return fitted.rule.fuse_output(
        fusion.FusionInputs(logits, fitted.class_prior, fitted.perturbed, fitted.grams, present)
    )


@jax.jit
def evaluate(
    fitted: FittedRule,
    logits: Mapping[str, Any],
    log_probs: Any,
    labels: Any,
    mask: Any,
    present: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Sums of metrics over a batch.

    Args:
      fitted: that gave the result.
      logits: {modality: (B, K)}.
      log_probs: (B, K), the result.
      labels: (B,).
      mask: (B,), bool, rows that count.
      present: {modality: (B,)}, as in `fusion.fuse`; alone, a modality counts where it is.

    Returns:
      The sums.
    """
    sums = functools.partial(metrics.classification_sums, labels=labels)
    has = present or {}
    return Evaluation(
        {
            name: sums(jax.nn.log_softmax(z), mask=mask & has.get(name, True))
            for name, z in logits.items()
        },
        sums(fusion.statistical_fusion(logits, fitted.class_prior, present=present), mask=mask),
        sums(log_probs, mask=mask),
    )


def choose(
    fitted: FittedRule, logits: Mapping[str, Any], labels: Any, *, names: Sequence[str]
) -> FittedRule:
    """Chooses parameters on clean labelled rows: contamination first, then gamma, given it.

    Args:
      fitted: the rule; what is chosen is not looked at.
      logits: {modality: (N, K)}; each says something of every row, see `fusion`.
      labels: (N,).
      names: of the parameters to choose, by `calibration.choose_contamination`, `choose_gamma`.

    Returns:
      The rule with what was chosen, to seven digits.

    Raises:
      InputError: no gamma has a finite likelihood.
    """
    if "contamination" in names:
        chosen = _choose_contamination(fitted, logits, labels).contamination
        fitted = _with(fitted, contamination=chosen)
    if "gamma" in names:
        choice = _choose_gamma(fitted, logits, labels)
        if not np.isfinite(choice.nll).any():
            raise InputError(
                "--gamma=auto: no gamma has a finite likelihood, since logits of -inf exclude "
                "labels; leave those rows out, or give --contamination above 0 or a --gamma"
            )
        fitted = _with(fitted, gamma=choice.gamma)
    return fitted


def _with(fitted: FittedRule, **parameters: jax.Array) -> FittedRule:
    """Other parameters, as candidates were written before the dtype rounded them."""
    numbers = {name: float(f"{float(x):.7g}") for name, x in parameters.items()}
    return fitted._replace(rule=dataclasses.replace(fitted.rule, **numbers))


@jax.jit
def _choose_contamination(
    fitted: FittedRule, logits: Mapping[str, Any], labels: Any
) -> calibration.ContaminationChoice[ContaminatedRobust]:
    """The contamination that certifies most, whatever gamma."""
    return calibration.choose_contamination(
        fitted.rule, logits, labels, fitted.class_prior, perturbed=fitted.perturbed
    )


@jax.jit
def _choose_gamma(
    fitted: FittedRule, logits: Mapping[str, Any], labels: Any
) -> calibration.GammaChoice[ContaminatedRobust]:
    """The best gamma for what is contaminated."""
    return calibration.choose_gamma(
        fitted.rule,
        logits,
        labels,
        fitted.class_prior,
        jax.random.key(0),
        perturbed=fitted.perturbed,
        grams=fitted.grams,
    )
