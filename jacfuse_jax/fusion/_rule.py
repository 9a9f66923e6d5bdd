"""What a fusion rule is: a pytree of its parameters, which knows what it is called and needs."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray
from jacfuse_jax._presence import Present
from jacfuse_jax.linalg import GramSpectrum

SCHEMA = 1  # of `Rule.to_json`
Grams = Mapping[str, GramSpectrum | ArrayLike]


class FusionInputs(NamedTuple):
    """What a rule is applied to; see `fuse`."""

    logits: Mapping[str, AnyArray]
    class_prior: AnyArray
    perturbed: tuple[str, ...]
    grams: Grams
    present: Present | None = None


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
      takes_missing: whether it heeds which rows have which modalities.
    """

    kind: ClassVar[str]
    searched: ClassVar[Mapping[str, str]] = {}
    needs_grams: ClassVar[bool] = False
    takes_missing: ClassVar[bool] = False

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
        values = {name: _for_json(value) for name, value in values.items()}
        return json.dumps({"schema": SCHEMA, "rule": self.kind, **values})


def _for_json(value: Any) -> Any:
    """Numbers of any array library as Python's, tuples of them as lists."""
    if isinstance(value, tuple):
        return [float(x) for x in value]
    return value if isinstance(value, str | int | None) else float(value)


def fuse(
    rule: Rule,
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    perturbed: str | tuple[str, ...],
    grams: Grams | None = None,
    present: Present | None = None,
) -> jax.Array:
    """Fuses logits by a rule.

    Args:
      rule: with its parameters.
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static. Rules without
        parameters do not heed it.
      grams: as in `robust_fusion`, for the rules that need them.
      present: {modality: (B,), bool}, which rows have it; those not named are in all rows. What a
        row lacks is not looked at: it has the result of its modalities alone, or the prior where it
        has none.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive or does not sum to
        one, a parameter lies outside its interval, Gram matrices are missing, or `present` is given
        to a rule that does not take it.
    """
    if present is not None and not rule.takes_missing:
        raise ValueError(f"the rule {rule.name} does not take rows that lack modalities")
    if rule.needs_grams and grams is None:
        raise ValueError(f"the rule {rule.name} needs grams; see linalg.spectrum_from_kernel")
    names = (perturbed,) if isinstance(perturbed, str) else perturbed
    return rule.apply(FusionInputs(logits, class_prior, names, grams or {}, present))
