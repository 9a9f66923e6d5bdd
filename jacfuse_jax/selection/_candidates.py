"""Rules that are tried, simple ones first; and those that are fitted, held out from their rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jacfuse_jax._presence import Present
from jacfuse_jax.fusion import (
    Cascade,
    Contaminated,
    ContaminatedRobust,
    Gate,
    LearnedCascade,
    MajorityVote,
    Max,
    Mean,
    Median,
    Robust,
    Rule,
    Scaled,
    Statistical,
    TrimmedMean,
)
from jacfuse_jax.selection._folds import assign_folds
from jacfuse_jax.selection._gate import fit_gate
from jacfuse_jax.selection._suspects import Suspects

STATISTICAL = Statistical()
DROP = Cascade(0.0)
BASELINES = (STATISTICAL, DROP)
"""What anybody would do: fuse everything, or trusted modalities alone."""

_SCALES = (0.7, 0.5, 0.35, 0.25, 0.1)
_CONTAMINATIONS = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
_CONFIDENCES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_GAMMAS = (0.5, 0.3, 0.1, 0.03, 0.01, 0.001)


class Candidate(NamedTuple):
    """A rule that may be chosen.

    Attributes:
      rule: fitted to all rows, if it is fitted.
      folds: (N,), of the rows; None for rules that are not fitted.
      held_out: one rule a fold, fitted to the rows of all others.
    """

    rule: Rule
    folds: NDArray[np.intp] | None = None
    held_out: tuple[Rule, ...] = ()


def default_rules(num_modalities: int, *, has_trusted: bool = True) -> list[Rule]:
    """All rules and parameters that are tried, simple ones first.

    Args:
      num_modalities: M; some rules need three.
      has_trusted: whether some modality is not believed perturbed; cascades need one.
    """
    rules: list[Rule] = [STATISTICAL]
    rules += [DROP] if has_trusted else []
    rules += [Mean(), Max()]
    if num_modalities > 2:
        rules += [MajorityVote(), Median()]
    if num_modalities > 3:  # of three it is the median
        rules.append(TrimmedMean())
    rules += [Scaled(t) for t in _SCALES]
    rules += [Contaminated(e) for e in _CONTAMINATIONS]
    rules += [Cascade(c) for c in _CONFIDENCES] if has_trusted else []
    rules += [Contaminated(e, 0.5) for e in _CONTAMINATIONS]
    rules += [Robust(gamma) for gamma in _GAMMAS]
    rules += [ContaminatedRobust(e, gamma) for e in _CONTAMINATIONS[1::2] for gamma in _GAMMAS]
    return rules


def baselines(suspects: Suspects, modalities: Iterable[str]) -> list[Rule]:
    """`BASELINES`, without dropping where no modality is trusted.

    Args:
      suspects: which modalities may fail.
      modalities: names of all.
    """
    return [*BASELINES] if set(suspects.perturbed) < set(modalities) else [STATISTICAL]


def candidates(
    logits: Mapping[str, ArrayLike],
    labels: ArrayLike,
    class_prior: ArrayLike,
    suspects: Suspects,
    *,
    shares: Sequence[float],
    rules: Sequence[Rule] | None = None,
    attacked: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    present: Present | None = None,
    num_folds: int = 5,
    seed: int = 0,
) -> list[Candidate]:
    """Rules to choose from, the best cascades for shares of attacks among them.

    Args:
      logits: {modality: (N, K)}, of clean validation rows; floating.
      labels: (N,), integer.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      suspects: which modalities may fail.
      shares: of attacked inputs, for which a `LearnedCascade` each is fitted.
      rules: that need no fit, simple ones first; None: `default_rules`.
      attacked: as in `fit_gate`.
      groups: (N,), equal for rows that depend on each other; None: each by itself.
      weights: (N,), not negative, of rows; None: all the same.
      present: see `fusion.statistical_fusion`.
      num_folds: of the rows that fitted rules are held out from.
      seed: of the folds.

    Returns:
      The rules, then a learned cascade for every share, where some modality is trusted.

    Raises:
      TypeError, ValueError: as `fit_gate`.
    """
    has_trusted = set(suspects.perturbed) < set(logits)
    if rules is None:
        rules = default_rules(len(logits), has_trusted=has_trusted)
    found = [Candidate(rule) for rule in rules]
    if not has_trusted:
        return found
    folds = assign_folds(len(np.asarray(labels)), groups=groups, num_folds=num_folds, seed=seed)

    def fit(rows: NDArray[np.bool_]) -> Gate:
        def take(array: ArrayLike | None) -> NDArray[np.generic] | None:
            return None if array is None else np.asarray(array)[rows]

        return fit_gate(
            {name: np.asarray(z)[rows] for name, z in logits.items()},
            np.asarray(labels)[rows],
            class_prior,
            perturbed=suspects.perturbed,
            attacked=take(attacked),
            groups=take(groups),
            weights=take(weights),
            present=None
            if present is None
            else {m: np.asarray(x)[rows] for m, x in present.items()},
            seed=seed,
        )

    gate = fit(np.ones(len(folds), bool))
    held_out = [fit(folds != fold) for fold in range(folds.max() + 1)]
    return found + [
        Candidate(
            LearnedCascade(share, *gate),
            folds,
            tuple(LearnedCascade(share, *of_fold) for of_fold in held_out),
        )
        for share in shares
    ]
