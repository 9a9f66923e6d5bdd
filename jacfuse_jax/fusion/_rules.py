"""The fusion rules of this package as objects, each with its formula; see `Rule`."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from jacfuse_jax.fusion._cascade import cascade_fusion, learned_cascade_fusion
from jacfuse_jax.fusion._contaminated import contaminate_modalities, contaminated_fusion
from jacfuse_jax.fusion._gate import Gate, Weights
from jacfuse_jax.fusion._pools import MajorityVote, Median, TrimmedMean
from jacfuse_jax.fusion._robust import FusedOutput, Solver, robust_fusion
from jacfuse_jax.fusion._rule import SCHEMA, FusionInputs, Rule
from jacfuse_jax.fusion._static import (
    max_fusion,
    mean_fusion,
    product_fusion,
    scaled_fusion,
    statistical_fusion,
)

_STATIC = {"static": True}  # what programs are compiled for


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean(Rule):
    """log p = log((1/M) sum_m softmax(z_m)), see `mean_fusion`."""

    kind = "mean"
    takes_missing = True

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return mean_fusion(inputs.logits, inputs.class_prior, present=inputs.present)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Max(Rule):
    """p ~ max_m softmax(z_m), see `max_fusion`."""

    kind = "max"
    takes_missing = True

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return max_fusion(inputs.logits, inputs.class_prior, present=inputs.present)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Product(Rule):
    """log p = sum_m log softmax(z_m), normalised, see `product_fusion`."""

    kind = "product"
    takes_missing = True

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return product_fusion(inputs.logits, inputs.class_prior, present=inputs.present)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistical(Rule):
    """log p = sum_m log softmax(z_m) - (M - 1) log prior, see `statistical_fusion`."""

    kind = "statistical"
    takes_missing = True

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return statistical_fusion(inputs.logits, inputs.class_prior, present=inputs.present)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(Rule):
    """log p = log prior + sum_m t_m (log softmax(z_m) - log prior), see `scaled_fusion`.

    Attributes:
      scale: t of perturbed modalities, in [0, 1].
    """

    kind = "scaled"
    takes_missing = True
    searched: ClassVar[Mapping[str, str]] = {"scale": "t"}

    scale: ArrayLike

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return scaled_fusion(
            inputs.logits,
            inputs.class_prior,
            perturbed=inputs.perturbed,
            scale=self.scale,
            present=inputs.present,
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Robust(Rule):
    """log p' = sum_m R_m z_m - (M - 1) log prior, see `robust_fusion`.

    R_m minimises (1 - gamma) ||J R W_m^T||_F^2 + gamma ||R - I||_F^2 for each sample, with J the
    Jacobian of the fused prediction in its logits.

    Attributes:
      gamma: in (0, 1]; 1 recalibrates nothing.
      num_iterations: at least 1.
      solver: "closed_form", "eigh" or "bartels_stewart".
    """

    kind = "robust"
    takes_missing = True
    searched: ClassVar[Mapping[str, str]] = {"gamma": "γ"}
    needs_grams = True

    gamma: ArrayLike
    num_iterations: int = dataclasses.field(default=1, metadata=_STATIC)
    solver: Solver = dataclasses.field(default="closed_form", metadata=_STATIC)

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return self.fuse_output(inputs).log_probs

    def fuse_output(self, inputs: FusionInputs) -> FusedOutput:
        """Log-probabilities, with the norm of the Jacobian and whether iterations converged."""
        return robust_fusion(
            inputs.logits,
            inputs.grams,
            inputs.class_prior,
            perturbed=inputs.perturbed,
            gamma=self.gamma,
            num_iterations=self.num_iterations,
            solver=self.solver,
            present=inputs.present,
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Contaminated(Rule):
    """log p = log prior + sum_m t_m (log((1 - e_m) softmax(z_m) + e_m prior) - log prior).

    See `contaminated_fusion`.

    Attributes:
      contamination: e of perturbed modalities, in [0, 1].
      tempering: t of perturbed modalities, in [0, 1].
    """

    kind = "contaminated"
    takes_missing = True
    searched: ClassVar[Mapping[str, str]] = {"contamination": "e", "tempering": "t"}

    contamination: ArrayLike
    tempering: ArrayLike = 1.0

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return contaminated_fusion(
            inputs.logits,
            inputs.class_prior,
            contamination=self.contamination,
            tempering=self.tempering,
            perturbed=inputs.perturbed,
            present=inputs.present,
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ContaminatedRobust(Rule):
    """`Robust` with log((1 - e) softmax(z_m) + e prior) for z_m of perturbed modalities.

    Attributes:
      contamination: e, in [0, 1]; 0 contaminates nothing.
      gamma: in (0, 1]; 1 recalibrates nothing.
      num_iterations: at least 1.
      solver: "closed_form", "eigh" or "bartels_stewart".
    """

    kind = "contaminated_robust"
    takes_missing = True
    searched: ClassVar[Mapping[str, str]] = {"contamination": "e", "gamma": "γ"}
    needs_grams = True

    contamination: ArrayLike
    gamma: ArrayLike
    num_iterations: int = dataclasses.field(default=1, metadata=_STATIC)
    solver: Solver = dataclasses.field(default="closed_form", metadata=_STATIC)

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return self.fuse_output(inputs).log_probs

    def fuse_output(self, inputs: FusionInputs) -> FusedOutput:
        """As `Robust.fuse_output`, of what is contaminated."""
        return self.robust.fuse_output(self.contaminate(inputs))

    @property
    def robust(self) -> Robust:
        """What is done once modalities are contaminated."""
        return Robust(self.gamma, self.num_iterations, self.solver)

    def contaminate(self, inputs: FusionInputs) -> FusionInputs:
        """The inputs with perturbed modalities contaminated."""
        contaminated = contaminate_modalities(
            inputs.logits,
            inputs.class_prior,
            contamination=self.contamination,
            perturbed=inputs.perturbed,
            present=inputs.present,
        )
        return inputs._replace(logits=contaminated)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Cascade(Rule):
    """p = p_T where max_k p_T(k) > confidence, else `Contaminated`; p_T of trusted modalities.

    See `cascade_fusion`.

    Attributes:
      confidence: in [0, 1].
      tempering: of perturbed modalities where they are asked, in [0, 1].
      contamination: likewise, in [0, 1].
    """

    kind = "cascade"
    takes_missing = True
    searched: ClassVar[Mapping[str, str]] = {"confidence": "c", "tempering": "t"}

    confidence: ArrayLike
    tempering: ArrayLike = 1.0
    contamination: ArrayLike = 0.0

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return cascade_fusion(
            inputs.logits,
            inputs.class_prior,
            perturbed=inputs.perturbed,
            confidence=self.confidence,
            contamination=self.contamination,
            tempering=self.tempering,
            present=inputs.present,
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedCascade(Rule):
    """p = p_T where that is worth more for a share of attacked inputs, else `Statistical`.

    See `learned_cascade_fusion`. Weights are those of `selection.fit_gate`, which serve all
    shares.

    Attributes:
      share: s of inputs whose perturbed modalities are attacked, in [0, 1].
      alone: weights of the probability that trusted modalities are right.
      fused: that all are right.
      attacked: that all are right where perturbed ones are attacked; empty where they never are.
    """

    kind = "learned_cascade"
    takes_missing = True
    searched: ClassVar[Mapping[str, str]] = {"share": "s"}

    share: ArrayLike
    alone: Weights
    fused: Weights
    attacked: Weights

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return learned_cascade_fusion(
            inputs.logits,
            inputs.class_prior,
            perturbed=inputs.perturbed,
            share=self.share,
            gate=self.gate,
            present=inputs.present,
        )

    @property
    def gate(self) -> Gate:
        """What decides who is asked."""
        return Gate(self.alone, self.fused, self.attacked)


RULES: tuple[type[Rule], ...] = (
    *(Mean, Max, Product, Statistical, MajorityVote, Median, TrimmedMean),
    *(Robust, Scaled, Contaminated, ContaminatedRobust, Cascade, LearnedCascade),
)
"""All rules of this package."""


def rule_from_json(text: str, rules: Sequence[type[Rule]] = RULES) -> Rule:
    """Reads a rule that `Rule.to_json` wrote.

    Args:
      text: JSON.
      rules: that it may be one of.

    Returns:
      The rule.

    Raises:
      ValueError: it is no JSON, of another schema, of none of the rules, or has other fields.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise ValueError(f"not a rule of schema {SCHEMA}: {text}")
    kinds = {rule.kind: rule for rule in rules}
    kind = content.pop("rule", None)
    if kind not in kinds:
        raise ValueError(f"rule must be one of {', '.join(kinds)}, got {kind!r}")
    names = [field.name for field in dataclasses.fields(kinds[kind])]
    if set(content) != set(names):
        raise ValueError(f"a rule {kind} has the fields {names}, got {sorted(content)}")
    fields = {field.name: field for field in dataclasses.fields(kinds[kind])}

    def read(name: str, value: Any) -> Any:
        may_be_none = value is None and fields[name].default is None  # what evidence is bound to
        is_static = fields[name].metadata.get("static", False)
        return value if may_be_none or is_static else _number(name, value)

    return kinds[kind](**{name: read(name, value) for name, value in content.items()})


def _number(name: str, value: Any) -> Any:
    """A number, or numbers as a tuple, which rules are made of; raises on anything else."""
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name} must be made of numbers, got {value!r}")
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {value!r}")
    return tuple(map(float, numbers)) if isinstance(value, list) else value
