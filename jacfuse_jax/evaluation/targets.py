"""Perturbations by name and strength, and what attacks are aimed at."""

import dataclasses
import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from jacfuse_jax import fusion
from jacfuse_jax.corruptions import SEVERITIES
from jacfuse_jax.evaluation import corruptions
from jacfuse_jax.evaluation.names import (
    ATTACKS,
    CORRUPTIONS,
    L0_ATTACKS,
    L2_ATTACKS,
    LINF_ATTACKS,
)
from jacfuse_jax.evaluation.rules import EachAlone, Surrogate, Trained
from jacfuse_jax.fusion import Rule

# The parameter at severities 1 to 5: of corruptions as graded by the library; of attacks the radius
# in units of the input (range about one), or the share of entries that read their training mean.
STRENGTHS: dict[str, tuple[float, ...]] = {
    **{name: SEVERITIES[name].values for name in CORRUPTIONS},
    **dict.fromkeys(LINF_ATTACKS, (0.01, 0.03, 0.1, 0.2, 0.4)),
    **dict.fromkeys(L2_ATTACKS, (0.25, 0.5, 1.0, 2.0, 4.0)),
    **dict.fromkeys(L0_ATTACKS, (0.01, 0.02, 0.05, 0.1, 0.2)),
}


class Target(NamedTuple):
    """What an attacker differentiates.

    Attributes:
      rule: under test, or `EachAlone()`: each perturbed modality's own classifier.
      believed: the modalities that the rule believes perturbed; empty for rules without belief.
      surrogate: see `rules.predict`.
      towards: 0 drives a sample away from its label; r > 0 to the class that is the r-th likeliest
        of the wrong ones for the clean sample.
    """

    rule: Rule
    believed: tuple[str, ...] = ()
    surrogate: Surrogate = ""
    towards: int = 0

    @property
    def name(self) -> str:
        """All of it, for a file name."""
        parameters = self.rule.parameters.items()
        parts = [self.rule.name, *(f"{name}_{value:.12g}" for name, value in parameters)]
        if _has_more(self.rule):
            parts.append(hashlib.sha256(self.rule.to_json().encode()).hexdigest()[:8])
        if self.believed:
            parts.append(f"believed_{'+'.join(self.believed)}")
        if self.surrogate:
            parts.append(self.surrogate)
        if self.towards:
            parts.append(f"towards_{self.towards}")
        return "_".join(parts).replace(":", "_")


def _has_more(rule: Rule) -> bool:
    """Whether name and searched parameters do not tell all of a rule."""

    def is_told(field: dataclasses.Field[Any]) -> bool:
        if field.default is dataclasses.MISSING:
            return bool(field.metadata.get("static"))  # a part of the name
        value = getattr(rule, field.name)
        return value is field.default or value == field.default

    return not all(
        field.name in rule.searched or is_told(field) for field in dataclasses.fields(rule)
    )


OWN = Target(EachAlone())
MAX_TOWARDS = 9
"""As many wrong classes as ten classes have; of more classes the likeliest."""


class Step(NamedTuple):
    """One perturbation of some rows.

    Attributes:
      attacked: the modalities to perturb, each by the perturbation at this severity.
      perturbation: a key of `STRENGTHS`.
      severity: 1 to 5.
      target: what an attack differentiates; None for corruptions.
    """

    attacked: tuple[str, ...]
    perturbation: str
    severity: int
    target: Target | None


class Branch(NamedTuple):
    """What one compiled attack can tell apart at run time: everything static about a target.

    Attributes:
      structure: of the rule, whose numbers are data.
      believed: see `Target`.
      surrogate: see `Target`.
    """

    structure: Any  # a PyTreeDef, which type checkers take for a variable
    believed: tuple[str, ...]
    surrogate: Surrogate


def branch_of(step: Step) -> Branch:
    """The branch that attacks the target of a step.

    Classifiers of all regimes of training have one structure: which of them is attacked, their
    parameters say.

    Args:
      step: an attack.
    """
    rule, believed, surrogate, _ = step.target or OWN
    if isinstance(rule, EachAlone):
        believed = step.attacked
    if isinstance(rule, Trained):
        rule = fusion.Statistical()
    return Branch(jax.tree.structure(rule), believed, surrogate)


def applies(
    perturbation: str,
    attacked: tuple[str, ...],
    kinds: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> bool:
    """Whether the perturbation is one of all these modalities.

    Args:
      perturbation: a key of `STRENGTHS`.
      attacked: names of modalities.
      kinds: of modalities, see `corruptions.applies`.
      shapes: of one input of each modality, where they are known.
    """
    if perturbation in ATTACKS:
        return perturbation != "hop_skip_jump" or len(attacked) == 1
    return all(
        corruptions.applies(perturbation, kinds.get(modality), shapes.get(modality, ()))
        for modality in attacked
    )
