"""Figures of what was chosen for shares of attacks, and of what that is worth."""

from collections.abc import Sequence
from typing import Any

from experiments.reports.page.charts import draw_intervals, draw_lines, draw_zero
from experiments.reports.page.choices import DROPPING, SCALING, STATISTICAL, Choice
from experiments.reports.page.estimates import Estimate, interval, points
from experiments.reports.page.series import Series, described
from experiments.reports.page.svg import Drawing, draw

_METHODS = {STATISTICAL: "statistical", SCALING: "scaled", DROPPING: "drop_suspect"}


def worth_figures(choices: Sequence[Choice], perturbed: str, name: str) -> list[Drawing]:
    """What chosen and simple rules are worth by the share of attacks, and the difference.

    Args:
      choices: one for every share.
      perturbed: the modality.
      name: that those of the figures start with.
    """
    chosen = sorted((c for c in choices if c.perturbed == perturbed), key=lambda c: c.share)
    if len(chosen) < 2:
        return []
    ticks = {float(i): f"{100 * choice.share:g}%" for i, choice in enumerate(chosen)}
    worth: list[Series] = []
    advantages: list[Series] = []
    for baseline, method in _METHODS.items():
        known = [(x, c) for x, c in zip(ticks, chosen, strict=True) if baseline in c.baselines]
        if known:
            x = [place for place, _ in known]
            found = [c.baselines[baseline] for _, c in known]
            worth.append(Series(baseline, method, x, [Estimate(b.worth) for b in found]))
            against = f"against {baseline}"
            advantages.append(Series(against, method, x, [b.advantage for b in found]))
    worth.append(Series("chosen rule", "", [*ticks], [c.worth for c in chosen], is_chosen=True))
    x_label = "share of inputs that are attacked or fail"

    def draw_advantages(axes: Any) -> None:
        draw_zero(axes)
        draw_lines(axes, advantages, x_label=x_label, y_label="difference, in points", ticks=ticks)

    drawings = [
        draw(
            f"{name}-worth",
            f"{perturbed}: what rules are worth",
            "(1 − share) × clean + share × worst case. Black, or white: the rule that was chosen "
            "for each share, with its interval; the table below names it.",
            f"Lines: worth in % against the {x_label}. {described(worth, ticks)}.",
            lambda axes: draw_lines(
                axes, worth, x_label=x_label, y_label="worth, in %", ticks=ticks
            ),
        )
    ]
    if any(value.low is not None for each in advantages for value in each.y):
        drawings.append(
            draw(
                f"{name}-advantage",
                f"{perturbed}: by how much the chosen rule is worth more",
                "Above zero the chosen rule is worth more than the simple one; where a bar crosses "
                "zero, the two are not told apart.",
                "Lines with intervals: points by which the chosen rule is worth more, against the "
                f"{x_label}. {described(advantages, ticks, signed=True)}.",
                draw_advantages,
            )
        )
    return drawings


def runs_figure(choices: Sequence[tuple[str, Choice]], name: str) -> Drawing:
    """By how much the chosen rules of several runs are worth more than simple ones.

    Args:
      choices: each with the name of its run.
      name: of the figure.
    """
    names = [f"{run}: {choice.perturbed}" for run, choice in choices]
    series: list[Series] = []
    for baseline, method in _METHODS.items():
        found = [
            (row, choice.baselines[baseline].advantage)
            for row, (_, choice) in enumerate(choices)
            if baseline in choice.baselines
        ]
        if found:
            rows, advantages = zip(*found, strict=True)
            series.append(Series(baseline, method, rows, advantages))
    seen = "; ".join(
        f"{names[int(row)]} {points(value.mean)} {interval(value, signed=True)} against "
        f"{each.label}"
        for each in series
        for row, value in zip(each.x, each.y, strict=True)
    )
    return draw(
        name,
        "By how much the chosen rule is worth more than simple ones",
        "Right of zero the chosen rule is worth more; where a bar crosses zero, the two are not "
        "told apart.",
        f"Points with intervals, in points of worth: {seen}.",
        lambda axes: draw_intervals(axes, names, series, x_label="difference, in points"),
        height=1.1 + 0.4 * len(names),
    )
