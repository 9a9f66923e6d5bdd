"""What the rules that validation rows chose for shares of attacks are worth on test rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jacfuse_jax.evaluation.intervals import (
    bootstrap_interval,
    paired_bootstrap_interval,
    share_values,
)
from jacfuse_jax.evaluation.measure import WORST_ATTACK, Outcomes
from jacfuse_jax.evaluation.plan import SEVERITIES
from jacfuse_jax.evaluation.selection import BestRule
from jacfuse_jax.fusion import Rule


class Line(NamedTuple):
    """The rule chosen for a share of attacks against another one, on the same test rows.

    Attributes:
      perturbed: the modality that is attacked, which the defender knows.
      share: s of inputs that are attacked.
      rule: that validation rows chose.
      num_candidates: of so many rules and parameters.
      expected: (1 - s) clean + s worst, with its 95% interval over groups; the worst case is that
        of linf attacks, mean over severities.
      baseline: statistical fusion, scaled fusion with the scale that validation rows chose for the
        share, or trusted modalities alone.
      difference: by how much more the rule is worth, with its paired interval.
    """

    seed: int
    perturbed: str
    share: float
    rule: Rule
    num_candidates: int
    expected: float
    low: float
    high: float
    baseline: Rule
    difference: float
    difference_low: float
    difference_high: float


def measure(
    seed: int, best: Sequence[BestRule], outcomes: Outcomes, groups: NDArray[Any]
) -> list[Line]:
    """Compares chosen rules with what they are to be worth as much as.

    Args:
      seed: of the run.
      best: of `selection.select`.
      outcomes: of `measure.evaluate`.
      groups: (N,) or (N, G), of the test rows, see `intervals`.

    Returns:
      A line for every choice and baseline that was measured where the defender knows what is
      attacked; none without linf attacks.
    """

    def values(rule: Rule, choice: BestRule) -> NDArray[np.float64] | None:
        scenario = ("known", choice.believed)
        keys = [(*scenario, WORST_ATTACK, severity, rule) for severity in SEVERITIES]
        if any(key not in outcomes for key in keys):
            return None
        worst = np.mean([outcomes[key] for key in keys], axis=0)
        return share_values(outcomes[*scenario, "clean", 0, rule], worst, choice.share)

    lines: list[Line] = []
    for choice in best:
        of_rule = values(choice.rule, choice)
        if of_rule is None:
            continue
        own = bootstrap_interval(of_rule, groups)
        for baseline in choice.baselines:
            of_baseline = values(baseline, choice)
            if of_baseline is None:
                continue
            difference = paired_bootstrap_interval(of_rule, of_baseline, groups)
            lines.append(
                Line(
                    *(seed, choice.believed, choice.share, choice.rule, choice.num_candidates),
                    *(float(own.mean), float(own.low), float(own.high)),
                    baseline,
                    *(float(difference.mean), float(difference.low), float(difference.high)),
                )
            )
    return lines
