"""Rules that check what a suspect modality is given before they believe what it says."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from jacfuse_jax import fusion
from jacfuse_jax.evaluation.evidence import Observed
from jacfuse_jax.evaluation.models import PROJECTED
from jacfuse_jax.fusion import FusionInputs, Rule


@register_dataclass
@dataclasses.dataclass(frozen=True)
class InputCheck(Rule):
    """`fusion.Cascade` of what is left after a check: of confidence one, statistical fusion.

    Attributes:
      confidence: c in [0, 1], of the cascade.
    """

    searched: ClassVar[Mapping[str, str]] = {"confidence": "c"}
    takes_missing = True

    confidence: ArrayLike

    def apply(self, inputs: FusionInputs) -> jax.Array:
        """The cascade."""
        return fusion.Cascade(self.confidence).apply(inputs)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Projection(InputCheck):
    """Projects inputs of suspects onto the subspace of the training inputs before classifying.

    The leading principal components of training inputs span it; attacks differentiate through it.

    References:
      Bhagoji, Cullina, Sitawarin, Mittal, "Enhancing Robustness of Machine Learning Systems via
      Data Transformations", 2018.
    """

    kind = "projection"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ResidualCheck(InputCheck):
    """Drops suspects whose inputs are further from the training subspace than clean ones.

    Those of almost all validation rows are closer. A modality is dropped by the prior in place of
    its logits; where every modality of a sample would be, none is. The gradient in what is dropped
    is zero, so attacks are to stay inside, or to leave on purpose, see `stages.stages_of`.

    References:
      Hendrycks, Gimpel, "Early Methods for Detecting Adversarial Images", 2017 (principal
      components). Carlini, Wagner, "Adversarial Examples Are Not Easily Detected", 2017 (attacks
      that stay inside).
    """

    kind = "residual_check"


INPUT_CHECKS: tuple[type[InputCheck], ...] = (Projection, ResidualCheck)


def checked_logits(
    rule: InputCheck, observed: Observed, suspects: tuple[str, ...], class_prior: Any
) -> dict[str, jax.Array]:
    """The logits that a rule fuses after its check, {modality: (B, K)}.

    Args:
      rule: with a check.
      observed: with projected logits, or residuals, of the suspects.
      suspects: modalities whose inputs are checked.
      class_prior: (K,).
    """
    logits = {modality: jnp.asarray(z) for modality, z in observed.logits["standard"].items()}
    if isinstance(rule, Projection):
        return logits | {m: observed.logits[PROJECTED][m] for m in suspects}
    # NaN is outside.
    is_outside = {m: ~(jnp.asarray(observed.residuals[m]) <= 1) for m in suspects}
    if len(suspects) == len(logits):
        nothing_left = jnp.all(jnp.stack(list(is_outside.values())), axis=0)
        is_outside = {m: outside & ~nothing_left for m, outside in is_outside.items()}
    for modality, outside in is_outside.items():
        z = logits[modality]
        log_prior = jnp.log(jnp.asarray(class_prior, z.dtype))
        logits[modality] = jnp.where(outside[:, None], log_prior, z)
    return logits
