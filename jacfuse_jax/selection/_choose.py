"""The rule that is worth most, told the share of inputs whose suspect modalities fail."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jacfuse_jax import metrics
from jacfuse_jax.fusion import Rule
from jacfuse_jax.selection._candidates import BASELINES
from jacfuse_jax.selection._measure import AGAINST, Against, Measured

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
      baselines: {rule: its worth}, of what it was compared with.
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
    baselines: Sequence[Measured] = (),
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> Choice:
    """Chooses the rule that is worth most if a share of inputs has suspects that fail.

    A rule is worth (1 - share) clean + share worst. Of all rules whose difference to the best one
    has a 95% interval, resampled in pairs over groups, that contains zero, the one of the highest
    clean accuracy; of equal ones the first, hence the simplest. One that is worth less than
    statistical fusion or than trusted modalities alone is not taken, if these were measured and
    some rule is worth as much.

    Args:
      measured: rules on the same validation rows, simple ones first; see `measure`.
      share: in [0, 1].
      against: "faults": the worst case is the fault of the least accuracy. "anything": whatever the
        suspects say, exactly; of rules of which that is known.
      baselines: what is compared with and cannot be chosen, beside the two if they are in
        `measured`.
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
    rows = None if weights is None else np.asarray(weights, np.float64)

    def value(one: Measured) -> _Valued | None:
        known = one.worst(against, rows)
        if known is None:
            return None
        worst_case, worst = known
        of_rows = (1 - share) * one.clean + share * worst
        means = (np.average(x, weights=rows) for x in (one.clean, worst, of_rows))
        return _Valued(one.rule, worst_case, of_rows, Worth(*map(float, means)))

    found = [valued for each in measured if (valued := value(each))]
    others = [valued for each in baselines if (valued := value(each))]
    if not found:
        raise ValueError(f"against={against!r}: of none of the rules the worst case is known")
    values = np.stack([each.of_rows for each in found], axis=1)
    expected = np.array([each.worth.expected for each in found])
    resample = functools.partial(metrics.bootstrap_interval, seed=seed, groups=groups, weights=rows)
    others += [each for each in found if each.rule in BASELINES]
    bar = {each.rule: each.worth for each in others}
    least = max((worth.expected for worth in bar.values()), default=0.0)
    clean = np.array([each.worth.clean for each in found])
    lead = resample(values[:, [int(expected.argmax())]] - values)
    chosen = found[choose_index(np.asarray(lead.low), expected, clean, least)]
    interval = resample(chosen.of_rows)
    return Choice(
        rule=chosen.rule,
        share=float(share),
        against=against,
        worst_case=chosen.worst_case,
        worth=chosen.worth,
        low=float(interval.low),
        high=float(interval.high),
        baselines=bar,
        num_candidates=len(found),
    )


def choose_index(
    lead_low: NDArray[np.float64],
    expected: NDArray[np.float64],
    clean: NDArray[np.float64],
    least: float,
) -> int:
    """The cleanest of R rules that rows do not tell from the best one; see `choose`.

    Args:
      lead_low: (R,), lower end of the interval of how much more the best one is worth.
      expected: (R,), what they are worth.
      clean: (R,), accuracy where nothing fails.
      least: that the chosen one must be worth, if any is.
    """
    enough = min(least, expected.max()) - _ROUNDING
    is_feasible = (lead_low <= _ROUNDING) & (expected >= enough)
    # Rounded, so that rules of the same predictions are equal, and the first is taken.
    return int(np.where(is_feasible, np.round(clean, 9), -1).argmax())


class _Valued(NamedTuple):
    """What a rule is worth in each row, (N,), and on average."""

    rule: Rule
    worst_case: str
    of_rows: NDArray[np.float64]
    worth: Worth
