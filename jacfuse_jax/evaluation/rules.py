"""The rules under test: those of `jacfuse_jax.fusion`, and what they are compared with."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from jacfuse_jax import detection, fusion
from jacfuse_jax._arrays import in_dtype_of
from jacfuse_jax._precision import product
from jacfuse_jax._presence import check_available
from jacfuse_jax.evaluation.baselines import BASELINES, Calibrated, DempsterShafer, TrimmedMean
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.input_checks import INPUT_CHECKS, InputCheck, checked_logits
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.fusion import FusionInputs, Rule
from jacfuse_jax.jacobians import softmax_jacobian
from jacfuse_jax.linalg import GramSpectrum, recalibrate, solve_generalized

Surrogate = Literal["", "stop_gradient", "iterated"]
"""What an attacker differentiates in place of a recalibrated rule, see `predict`."""
_NUM_ITERATIONS = 3  # of the surrogate "iterated"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Unimodal(Rule):
    """log softmax(z_m) of one modality: all others are dropped."""

    kind = "unimodal"
    takes_missing = True

    modality: str = dataclasses.field(metadata={"static": True})

    @property
    def name(self) -> str:
        """With the modality."""
        return f"unimodal:{self.modality}"

    def apply(self, inputs: FusionInputs) -> jax.Array:
        arrays, *_ = check_available(*inputs[:2], inputs.present)
        return in_dtype_of(inputs.logits, jax.nn.log_softmax(arrays[self.modality]))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EachAlone(Rule):
    """sum_m log softmax(z_m) over perturbed modalities m: who attacks it attacks each by itself."""

    kind = "each_alone"

    @property
    def name(self) -> str:
        """Of what is attacked."""
        return "unimodal"

    def apply(self, inputs: FusionInputs) -> jax.Array:
        first, *others = (
            jax.nn.log_softmax(jnp.asarray(inputs.logits[m])) for m in inputs.perturbed
        )
        return sum(others, start=first)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedRobust(Rule):
    """Statistical fusion of R_m z_m, one R_m for all samples.

    R minimises (1 - gamma) mean ||J R W^T||_F^2 + gamma ||R - I||_F^2, the mean over the validation
    rows of the evidence.

    Attributes:
      gamma: in (0, 1].
      mean_squared_jacobian: (K, K), of the evidence.
    """

    kind = "fixed_robust"
    takes_missing = True
    searched: ClassVar[Mapping[str, str]] = {"gamma": "γ"}
    needs_grams = True

    gamma: ArrayLike
    mean_squared_jacobian: Any = None

    def apply(self, inputs: FusionInputs) -> jax.Array:
        logits = dict(inputs.logits)
        squared = (1 - self.gamma) / self.gamma * self.mean_squared_jacobian
        identity = jnp.eye(len(squared), dtype=squared.dtype)
        for name in inputs.perturbed:
            spectrum = inputs.grams[name]
            assert isinstance(spectrum, GramSpectrum)
            eigenvalues, vectors = spectrum
            gram = (vectors * eigenvalues[None]) @ vectors.T
            R = solve_generalized(squared, gram, identity, method="eigh")
            z = jnp.asarray(logits[name])
            logits[name] = product(z, R.astype(z.dtype).T)
        return fusion.statistical_fusion(logits, inputs.class_prior, present=inputs.present)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Head(Rule):
    """A trained fusion of frozen classifiers, see `training.train_head`; observed, not computed."""

    kind = "head"

    head: str = dataclasses.field(metadata={"static": True})

    @property
    def name(self) -> str:
        """Of the head."""
        return self.head


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Trained(Rule):
    """Statistical fusion of classifiers that a regime of training has made robust."""

    kind = "trained"
    takes_missing = True
    names: ClassVar[Mapping[str, str]] = {
        "noise": "noise_training",
        "pgd": "adversarial_training",
        "jacobian": "jacobian_training",
    }

    regime: str = dataclasses.field(metadata={"static": True})

    @property
    def name(self) -> str:
        """Of the training."""
        return self.names[self.regime]

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return fusion.Statistical().apply(inputs)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _StopGradient(Rule):
    """A recalibrated rule with its matrices R held fixed: the same prediction, other gradients."""

    kind = "stop_gradient"

    rule: Any

    def apply(self, inputs: FusionInputs) -> jax.Array:
        if isinstance(self.rule, fusion.ContaminatedRobust):
            inputs = self.rule.contaminate(inputs)
        logits: dict[str, Any] = dict(inputs.logits)
        strength = (1 - self.rule.gamma) / self.rule.gamma
        probs = jax.lax.stop_gradient(
            jnp.exp(fusion.statistical_fusion(logits, inputs.class_prior))
        )
        for name in inputs.perturbed:
            gram = inputs.grams[name]
            if isinstance(gram, GramSpectrum):
                logits[name] = recalibrate(logits[name], probs, gram, strength)
            else:
                J = softmax_jacobian(probs)
                A = strength * product(J, J)
                identity = jnp.eye(A.shape[-1], dtype=A.dtype)
                R = solve_generalized(A, jax.lax.stop_gradient(gram), identity, method="eigh")
                logits[name] = product(R, logits[name][..., None])[..., 0]
        return fusion.statistical_fusion(logits, inputs.class_prior)


_Recalibrated = fusion.Robust | fusion.ContaminatedRobust
_CHECKS = tuple(rule.kind for rule in INPUT_CHECKS)
_SINGLE: tuple[type[Rule], ...] = (
    *(fusion.Mean, fusion.Max, fusion.Product, fusion.Statistical, Calibrated),
)
_SEARCHED: tuple[type[Rule], ...] = (
    *(fusion.Scaled, FixedRobust, fusion.Robust, fusion.Contaminated, fusion.ContaminatedRobust),
    *(fusion.Cascade, *INPUT_CHECKS),
)
LEARNED = fusion.LearnedCascade.kind
"""Name of the rule that is fitted to validation rows, see `selection.select`."""
HEADS = ("concatenation", "gated")
_MAKE_FNS: dict[str, Callable[..., Rule]] = {
    **{rule.kind: rule for rule in (*_SINGLE, *_SEARCHED)},
    **{name: partial(Head, name) for name in HEADS},
    **{name: partial(Trained, regime) for regime, name in Trained.names.items()},
    **{rule.kind: rule for rule in BASELINES},
}
_OWN = (Unimodal, Calibrated, FixedRobust, Head, Trained, *BASELINES, *INPUT_CHECKS)
RULES = (*fusion.RULES, *(rule for rule in _OWN if rule not in fusion.RULES))
"""All classes of rules under test."""
NAMES = ("unimodal", *_MAKE_FNS, LEARNED)
"""Of all rules under test; "unimodal" stands for one a modality."""
PARAMETERS = tuple(
    dict.fromkeys(name for rule in fusion.RULES if rule.kind in NAMES for name in rule.searched)
)
"""Names of the parameters that any of them is searched over."""


def expand(
    names: Sequence[str], modalities: Sequence[str], values: Mapping[str, Sequence[float]]
) -> list[Rule]:
    """Lists every rule with every combination of its parameters, in the order of the names.

    Learned cascades are left out: they are fitted to validation rows, see `selection.select`.

    Args:
      names: of `NAMES`.
      modalities: "unimodal" stands for one rule each.
      values: of every parameter.

    Returns:
      The rules.

    Raises:
      ValueError: a rule needs more modalities.
    """
    searched = {rule.kind: rule.searched for rule in _SEARCHED}
    rules: list[Rule] = []
    for name in names:
        if name == LEARNED:
            continue
        if name == "unimodal":
            rules += [Unimodal(modality) for modality in modalities]
            continue
        if name == TrimmedMean.kind:
            TrimmedMean.check_modalities(tuple(modalities))
        grid = [values[parameter] for parameter in searched.get(name, ())]
        if name in _CHECKS:  # the surest cascade, and statistical fusion
            grid = [dict.fromkeys((max(grid[0]), 1.0))]
        rules += [_MAKE_FNS[name](*combination) for combination in itertools.product(*grid)]
    return rules


def is_recalibrated(rule: Rule) -> bool:
    """Whether an attacker may replace its recalibration by what is easier to differentiate.

    Args:
      rule: under test.
    """
    return isinstance(rule, _Recalibrated)


def regime_of(rule: Rule) -> str:
    """How the classifiers that a rule fuses were trained.

    Args:
      rule: under test.
    """
    return rule.regime if isinstance(rule, Trained) else "standard"


def predict(
    rule: Rule,
    observed: Observed,
    *,
    evidence: Evidence,
    believed: tuple[str, ...],
    surrogate: Surrogate = "",
) -> jax.Array:
    """Log-probabilities (B, K) of a rule.

    Args:
      rule: its numbers may be traced.
      observed: what the classifiers say.
      evidence: what is known of the classifiers.
      believed: the modalities that the rule believes perturbed; static. `DETECT` averages over
        them as `detection.detected_fusion` does.
      surrogate: what an attacker differentiates in place of a recalibrated rule; static:
        "stop_gradient" holds the matrices R fixed, so that gradients see p = softmax(R z + ...)
        alone (the same prediction); "iterated" recalibrates three times.

    Returns:
      (B, K).
    """
    if isinstance(rule, Head):
        return observed.heads[rule.head]
    logits, class_prior = observed.logits[regime_of(rule)], evidence.class_prior
    if isinstance(rule, InputCheck):
        suspects = tuple(logits) if believed == DETECT else believed
        logits = checked_logits(rule, observed, suspects, class_prior)
    grams = evidence.grams
    if isinstance(rule, _Recalibrated) and observed.grams:
        grams = observed.grams
        # Gram matrices per sample depend on the inputs, and attacks differentiate through them.
        rule = dataclasses.replace(rule, solver="eigh")
    applied = _bind(rule, evidence)
    if isinstance(applied, _Recalibrated) and surrogate == "stop_gradient":
        applied = _StopGradient(applied)
    if isinstance(applied, _Recalibrated) and surrogate == "iterated":
        applied = dataclasses.replace(applied, num_iterations=_NUM_ITERATIONS)
    if believed == DETECT and rule.searched:
        return detection.detected_fusion(
            applied, logits, evidence.detector, class_prior, grams=grams
        )
    return fusion.fuse(applied, logits, class_prior, perturbed=believed, grams=grams)


def _bind(rule: Rule, evidence: Evidence) -> Rule:
    """The rule with what it takes from the evidence."""
    if isinstance(rule, Calibrated):
        return Calibrated(evidence.temperatures)
    if isinstance(rule, DempsterShafer):
        return DempsterShafer(evidence.temperatures, evidence.error_rates)
    if isinstance(rule, FixedRobust):
        return FixedRobust(rule.gamma, evidence.mean_squared_jacobian)
    return rule
