"""The rule that is worth most, told the share of inputs whose suspect modalities fail."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jacfuse_jax import metrics
from jacfuse_jax.fusion import Rule
from jacfuse_jax.selection._candidates import DROP, STATISTICAL
from jacfuse_jax.selection._measure import Measured

Against = Literal["faults", "anything"]
"""What the suspects may do: fail in one of `FAULTS`, or say anything at all."""
AGAINST: tuple[Against, ...] = get_args(Against)
_ROUNDING = 1e-9  # of differences of means


class Worth(NamedTuple):
    """What a rule is worth on validation rows, as shares.

    Attributes:
      clean: accuracy where nothing fails.
      worst: accuracy in the worst case.
      expected: (1 - share) clean + share worst.
    """

    clean: float
    worst: float
    expected: float


class Choice(NamedTuple):
    """What `choose` returns.

    Attributes:
      rule: that is chosen.
      share: of attacked inputs that it is chosen for.
      against: what the worst case is that of.
      worst_case: the fault that is the worst one for the rule, or "anything".
      worth: of the rule.
      low: lower end of the 95% interval of what is expected of it.
      high: upper end.
      baselines: {rule: its worth}, of statistical fusion and of trusted modalities alone, if they
        were among the candidates.
      num_candidates: how many rules were compared.
    """

    rule: Rule
    share: float
    against: Against
    worst_case: str
    worth: Worth
    low: float
    high: float
    baselines: dict[Rule, Worth]
    num_candidates: int


def choose(
    measured: Sequence[Measured],
    share: float,
    *,
    against: Against = "faults",
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> Choice:
    """Chooses the rule that is worth most if a share of inputs has suspects that fail.

    A rule is worth (1 - share) clean + share worst. Of all rules whose difference to the best one
    has a 95% interval, resampled in pairs over groups, that contains zero, the one of the highest
    clean accuracy; of equal ones the first, hence the simplest. One that is worth less than
    statistical fusion or than trusted modalities alone is not taken, if these were measured.

    Args:
      measured: rules on the same validation rows, simple ones first; see `measure`.
      share: in [0, 1].
      against: "faults": the worst case is the fault of the least accuracy. "anything": whatever the
        suspects say, exactly; of rules of which that is known.
      groups: (N,), integer, equal for rows that depend on each other; None: each by itself.
      weights: (N,), not negative, of rows; None: all the same.
      seed: of the resamples.

    Returns:
      The choice. What it is worth is what it was chosen by: a little optimistic.

    Raises:
      ValueError: the share lies outside [0, 1], no rule can be compared, or there are fewer than
        two groups.

    References:
      Derived here. Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees", 1984
      (the simplest of those that the data do not tell apart).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    if against not in AGAINST:
        raise ValueError(f"against must be one of {', '.join(AGAINST)}, got {against!r}")
    compared = [each for each in measured if against == "faults" or each.any_input is not None]
    if not compared:
        raise ValueError(f"against={against!r}: of none of the rules the worst case is known")
    rows = None if weights is None else np.asarray(weights, np.float64)
    worst_cases = [_worst_case(each, against, rows) for each in compared]
    clean = np.stack([each.clean for each in compared], axis=1)
    worst = np.stack([of_rule for _, of_rule in worst_cases], axis=1)
    values = (1 - share) * clean + share * worst
    worths = [
        Worth(*(float(x) for x in each))
        for each in zip(
            *(np.average(x, axis=0, weights=rows) for x in (clean, worst, values)), strict=True
        )
    ]
    expected = np.array([worth.expected for worth in worths])
    best = int(expected.argmax())
    lead = metrics.bootstrap_interval(values[:, [best]] - values, seed, groups=groups, weights=rows)
    baselines = {
        each.rule: worth
        for each, worth in zip(compared, worths, strict=True)
        if each.rule in (STATISTICAL, DROP)
    }
    least = max((worth.expected for worth in baselines.values()), default=0.0)
    is_feasible = (lead.low <= _ROUNDING) & (expected >= least - _ROUNDING)
    # Rounded, so that rules of the same predictions are equal, and the first is taken.
    accuracy = np.where(is_feasible, np.round([worth.clean for worth in worths], 9), -1)
    chosen = int(accuracy.argmax())
    interval = metrics.bootstrap_interval(values[:, chosen], seed, groups=groups, weights=rows)
    return Choice(
        rule=compared[chosen].rule,
        share=float(share),
        against=against,
        worst_case=worst_cases[chosen][0],
        worth=worths[chosen],
        low=float(interval.low),
        high=float(interval.high),
        baselines=baselines,
        num_candidates=len(compared),
    )


def _worst_case(
    measured: Measured, against: Against, weights: NDArray[np.float64] | None
) -> tuple[str, NDArray[np.float64]]:
    """Its name, and how right the rule is then, (N,)."""
    if against == "anything":
        assert measured.any_input is not None
        return "anything", measured.any_input
    return min(measured.faults.items(), key=lambda item: np.average(item[1], weights=weights))
