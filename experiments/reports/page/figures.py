"""Figures of a run: accuracy against severity, and the worst case against clean accuracy."""

from collections.abc import Mapping, Sequence

from experiments.reports.page.charts import draw_lines, draw_points
from experiments.reports.page.scenarios import Measured, Scenario
from experiments.reports.page.series import Series, described, described_points
from experiments.reports.page.svg import Drawing, draw
from jacfuse_jax.evaluation.measure import WORST_ATTACK
from jacfuse_jax.evaluation.names import ATTACKS, CORRUPTIONS
from jacfuse_jax.evaluation.targets import STRENGTHS

_EPSILONS = STRENGTHS["apgd"]
_SIMPLE = ("statistical", "scaled", "drop_suspect")
_GREY = "Grey: all other rules."
_BARS = "Bars are intervals, as brackets are."
_MAX_CORRUPTIONS = 4  # with a figure of their own


def highlighted(scenario: Scenario, chosen: Sequence[str]) -> dict[str, bool]:
    """Rules that are drawn in colour: simple ones and the chosen one, or else the best.

    Where nothing chose parameters, those of the best worst case stand for a rule.

    Args:
      scenario: of the run.
      chosen: names of the rules that were chosen.

    Returns:
      {label: whether it is a chosen rule}.
    """
    best: dict[str, Measured] = {}
    for rule in scenario.shown:
        if rule.method not in best or _worst(rule) > _worst(best[rule.method]):
            best[rule.method] = rule
    fused = [rule for rule in best.values() if not rule.method.startswith("unimodal")]
    if not chosen and fused:
        chosen = [max(fused, key=_worst).method]
    names = [name for name in (*_SIMPLE, *chosen) if name in best]
    return {best[name].label: name in chosen for name in dict.fromkeys(names)}


def severity_figures(scenario: Scenario, marked: Mapping[str, bool], name: str) -> list[Drawing]:
    """Accuracy against severity, of attacks in the worst case and of some corruptions.

    Args:
      scenario: of the run.
      marked: see `highlighted`.
      name: that those of the figures start with.
    """
    measured = list(dict.fromkeys(p for rule in scenario.shown for p in rule.curves))
    attacks = [p for p in measured if p in ATTACKS and STRENGTHS[p] != _EPSILONS]
    if WORST_ATTACK in measured:
        attacks = [WORST_ATTACK, *attacks]
    corruptions = [p for p in CORRUPTIONS if p in measured][:_MAX_CORRUPTIONS]
    shown = [*attacks, *corruptions] if scenario.threat_model == "known" else attacks[:1]
    return [_severity_figure(scenario, marked, p, f"{name}-{p.replace('_', '-')}") for p in shown]


def trade_off(scenario: Scenario, marked: Mapping[str, bool], name: str) -> list[Drawing]:
    """The worst case against clean accuracy; nothing where either was not measured.

    Args:
      scenario: of the run.
      marked: see `highlighted`.
      name: of the figure.
    """
    rules = [rule for rule in scenario.rules if {"clean", "worst"} <= set(rule.means)]
    rules = [rule for rule in rules if not rule.method.startswith("unimodal")]
    grey = [rule for rule in rules if not (rule.is_shown and rule.label in marked)]
    coloured = [rule for rule in rules if rule not in grey]
    if not coloured:
        return []
    series = [
        Series("", "", [r.means["clean"].mean for r in grey], [r.means["worst"] for r in grey]),
        *(
            Series(
                rule.label,
                rule.method,
                [rule.means["clean"].mean],
                [rule.means["worst"]],
                [rule.means["clean"]],
                marked[rule.label],
            )
            for rule in sorted(coloured, key=lambda r: marked[r.label])
        ),
    ]
    seen = described_points(series, "in the worst case")
    return [
        draw(
            name,
            f"{scenario.perturbed}: worst case against clean accuracy",
            f"Up and to the right is better. Threat model {scenario.threat_model}; the worst case "
            f"is that over all attacks, a mean over ε. {_BARS} {_GREY[:-1]} and parameters.",
            f"Points: accuracy in the worst case against accuracy on clean rows. {seen}.",
            lambda axes: draw_points(
                axes,
                series,
                x_label="accuracy on clean rows, in %",
                y_label="accuracy in the worst case, in %",
            ),
        )
    ]


def _severity_figure(
    scenario: Scenario, marked: Mapping[str, bool], perturbation: str, name: str
) -> Drawing:
    """Accuracy against the severity of one perturbation."""
    strengths = STRENGTHS.get(perturbation, _EPSILONS)
    is_attack = perturbation == WORST_ATTACK or perturbation in ATTACKS
    ticks = {0.0: "none"}
    for severity, strength in enumerate(strengths, start=1):
        ticks[float(severity)] = f"{strength:g}" if is_attack else str(severity)
    series: list[Series] = []
    rules = [rule for rule in scenario.shown if perturbation in rule.curves]
    for rule in sorted(rules, key=lambda r: (r.label in marked, marked.get(r.label, False))):
        curve = {**rule.curves.get("clean", {}), **rule.curves[perturbation]}
        label = rule.label if rule.label in marked else ""
        is_chosen = marked.get(rule.label, False)
        series.append(Series(label, rule.method, [*curve], [*curve.values()], is_chosen=is_chosen))
    what = "the worst attack" if perturbation == WORST_ATTACK else perturbation.replace("_", " ")
    seen = described(series, ticks)
    return draw(
        name,
        f"{scenario.perturbed}: accuracy under {what}",
        f"Threat model {scenario.threat_model}. {_BARS} {_GREY}",
        f"Lines: accuracy in % against the strength of {what}. {seen}.",
        lambda axes: draw_lines(
            axes,
            series,
            x_label="radius ε of the attack" if is_attack else "severity",
            y_label="accuracy, in %",
            ticks=ticks,
            limits=(-3, 103),
        ),
    )


def _worst(rule: Measured) -> float:
    """The worst case, or what comes nearest to it."""
    names = (name for name in ("worst", "corruptions", "clean") if name in rule.means)
    return rule.means[next(names)].mean if rule.means else 0.0
