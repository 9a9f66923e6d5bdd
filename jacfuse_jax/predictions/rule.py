"""What fuses predictions: a rule, given or chosen."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jacfuse_jax import fusion, linalg, metrics, selection
from jacfuse_jax.predictions.labelled import LabelledRows
from jacfuse_jax.programs import InputError
from jacfuse_jax.selection import Against


class FittedRule(NamedTuple):
    """A rule, and what else it takes beside logits.

    Attributes:
      rule: with its parameters.
      grams: {modality believed perturbed: spectrum of its Gram matrix}.
      class_prior: (K,), sums to one.
    """

    rule: fusion.Rule
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


class Fused(NamedTuple):
    """What a rule says of a batch.

    Attributes:
      log_probs: (B, K).
      jacobian_norm: (B,), see `fusion.FusedOutput`; None of rules that regularise no Jacobian.
    """

    log_probs: jax.Array
    jacobian_norm: jax.Array | None


@jax.jit
def fuse(
    fitted: FittedRule, logits: Mapping[str, Any], present: Mapping[str, Any] | None = None
) -> Fused:
    """Fuses the logits of a batch.

    Args:
      fitted: the rule.
      logits: {modality: (B, K)}.
      present: {modality: (B,)}, as in `fusion.fuse`.

    Returns:
      Log-probabilities, and norms of the Jacobian where the rule regularises it.
    """
    rule, inputs = fitted.rule, (logits, fitted.class_prior)
    if isinstance(rule, fusion.Robust | fusion.ContaminatedRobust):
        output = rule.fuse_output(
            fusion.FusionInputs(*inputs, fitted.perturbed, fitted.grams, present)
        )
        return Fused(output.log_probs, output.jacobian_norm)
    log_probs = fusion.fuse(rule, *inputs, perturbed=fitted.perturbed, present=present)
    return Fused(log_probs, None)


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
    fitted: FittedRule, rows: LabelledRows, names: Sequence[str], *, share: float, against: Against
) -> tuple[FittedRule, selection.Choice]:
    """Chooses a rule, or parameters of one, on clean labelled rows; see `selection.choose`.

    Args:
      fitted: the rule; what is chosen is not looked at.
      rows: labelled.
      names: of the parameters to choose; or "rule", of all rules.
      share: of inputs whose perturbed modalities fail.
      against: what these do then.

    Returns:
      The rule with what was chosen, and the choice. What anybody would do is compared with it where
      it could have been chosen.

    Raises:
      InputError: of no rule the exact worst case is known.
    """
    suspects = selection.Suspects.among(fitted.perturbed, rows.logits)
    arguments = (rows.logits, rows.labels, fitted.class_prior, suspects)
    baselines: list[selection.Candidate] = []
    if "rule" in names:
        candidates = selection.candidates(
            *arguments, shares=[share], groups=rows.groups, present=rows.present
        )
    elif against == "anything":
        raise InputError(
            f"--against=anything: of rules with a gamma the worst case is not known, so that "
            f"--{names[0]}=auto cannot be chosen by it; give --rule=auto"
        )
    else:
        candidates = [selection.Candidate(rule) for rule in selection.grid(fitted.rule, names)]
        simple = selection.baselines(suspects, rows.logits)
        baselines = [selection.Candidate(rule) for rule in simple]
    found = selection.measure(
        [*baselines, *candidates],
        *arguments,
        grams=fitted.grams,
        groups=rows.groups,
        present=rows.present,
    )
    choice = selection.choose(
        found[len(baselines) :],
        share,
        against=against,
        baselines=found[: len(baselines)],
        groups=rows.groups,
    )
    return fitted._replace(rule=choice.rule), choice
