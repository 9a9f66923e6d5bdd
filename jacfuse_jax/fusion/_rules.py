"""Rules as objects: pytrees of their parameters, which know what they are called and need."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from jacfuse_jax._checks import AnyArray
from jacfuse_jax.fusion._cascade import cascade_fusion
from jacfuse_jax.fusion._contaminated import contaminate_modalities, contaminated_fusion
from jacfuse_jax.fusion._robust import FusedOutput, Solver, robust_fusion
from jacfuse_jax.fusion._static import (
    max_fusion,
    mean_fusion,
    product_fusion,
    scaled_fusion,
    statistical_fusion,
)
from jacfuse_jax.linalg import GramSpectrum

_SCHEMA = 1  # of `Rule.to_json`
_STATIC = {"static": True}  # what programs are compiled for

Grams = Mapping[str, GramSpectrum | ArrayLike]


class FusionInputs(NamedTuple):
    """What a rule is applied to; see `fuse`."""

    logits: Mapping[str, AnyArray]
    class_prior: AnyArray
    perturbed: tuple[str, ...]
    grams: Grams


@dataclasses.dataclass(frozen=True)
class Rule:
    """A fusion rule with its parameters; `fuse` applies it.

    Rules are frozen dataclasses and pytrees: numbers are data, so that one compiled function serves
    all of them, `jax.vmap` takes a rule of arrays (C,), and `jax.grad` differentiates in them;
    everything else is static. Numbers are checked where the rule is applied.

    A rule of one's own is a subclass, a frozen dataclass that `jax.tree_util.register_dataclass`
    registers, with a `kind` and an `apply`.

    Attributes:
      kind: what all rules of the class are called.
      searched: {parameter that values are searched over: its symbol}; a rule that has none does not
        heed which modalities are believed perturbed.
      needs_grams: whether it takes Gram matrices.
    """

    kind: ClassVar[str]
    searched: ClassVar[Mapping[str, str]] = {}
    needs_grams: ClassVar[bool] = False

    def apply(self, inputs: FusionInputs) -> jax.Array:
        """Log-probabilities (B, K); what a subclass defines, and `fuse` calls."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """What the rule is called, without its parameters."""
        return self.kind

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of what is searched over, by name."""
        return {name: getattr(self, name) for name in self.searched}

    @property
    def label(self) -> str:
        """The rule for people to read: what is searched over, and what is not as by default."""
        shown = {self.searched[name]: f"{x:.12g}" for name, x in self.parameters.items()}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            has_default = field.default is not dataclasses.MISSING
            if has_default and field.name not in self.searched and value != field.default:
                shown[field.name] = str(value)
        return " ".join([self.name, *(f"{name}={text}" for name, text in shown.items())])

    def to_json(self) -> str:
        """The rule as JSON, {"schema": 1, "rule": kind, field: value ...}; see `rule_from_json`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values = {k: v if isinstance(v, str | int | None) else float(v) for k, v in values.items()}
        return json.dumps({"schema": _SCHEMA, "rule": self.kind, **values})


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean(Rule):
    """log p = log((1/M) sum_m softmax(z_m)), see `mean_fusion`."""

    kind = "mean"

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return mean_fusion(inputs.logits)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Max(Rule):
    """p ~ max_m softmax(z_m), see `max_fusion`."""

    kind = "max"

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return max_fusion(inputs.logits)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Product(Rule):
    """log p = sum_m log softmax(z_m), normalised, see `product_fusion`."""

    kind = "product"

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return product_fusion(inputs.logits)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistical(Rule):
    """log p = sum_m log softmax(z_m) - (M - 1) log prior, see `statistical_fusion`."""

    kind = "statistical"

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return statistical_fusion(inputs.logits, inputs.class_prior)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(Rule):
    """log p = log prior + sum_m t_m (log softmax(z_m) - log prior), see `scaled_fusion`.

    Attributes:
      scale: t of perturbed modalities, in [0, 1].
    """

    kind = "scaled"
    searched: ClassVar[Mapping[str, str]] = {"scale": "t"}

    scale: ArrayLike

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return scaled_fusion(
            inputs.logits, inputs.class_prior, perturbed=inputs.perturbed, scale=self.scale
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
        )


RULES: tuple[type[Rule], ...] = (
    *(Mean, Max, Product, Statistical),
    *(Robust, Scaled, Contaminated, ContaminatedRobust, Cascade),
)
"""All rules of this package."""


def fuse(
    rule: Rule,
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    perturbed: str | tuple[str, ...],
    grams: Grams | None = None,
    present: Mapping[str, AnyArray] | None = None,
) -> jax.Array:
    """Fuses logits by a rule.

    Args:
      rule: with its parameters.
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static. Rules without
        parameters do not heed it.
      grams: as in `robust_fusion`, for the rules that need them.
      present: for rows that lack modalities; not supported yet.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive or does not sum to
        one, a parameter lies outside its interval, or Gram matrices are missing.
      NotImplementedError: `present` is given.
    """
    if present is not None:
        raise NotImplementedError(
            "present is not supported yet; leave out modalities that all rows of a batch lack"
        )
    if rule.needs_grams and grams is None:
        raise ValueError(f"the rule {rule.name} needs grams; see linalg.spectrum_from_kernel")
    names = (perturbed,) if isinstance(perturbed, str) else perturbed
    return rule.apply(FusionInputs(logits, class_prior, names, grams or {}))


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
    if not isinstance(content, dict) or content.pop("schema", None) != _SCHEMA:
        raise ValueError(f"not a rule of schema {_SCHEMA}: {text}")
    kinds = {rule.kind: rule for rule in rules}
    kind = content.pop("rule", None)
    if kind not in kinds:
        raise ValueError(f"rule must be one of {', '.join(kinds)}, got {kind!r}")
    names = [field.name for field in dataclasses.fields(kinds[kind])]
    if set(content) != set(names):
        raise ValueError(f"a rule {kind} has the fields {names}, got {sorted(content)}")
    return kinds[kind](**content)
