"""Figures of a run."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jacfuse_jax.evaluation.measure import ENSEMBLE, Row
from jacfuse_jax.evaluation.rules import NAMES, Unimodal
from jacfuse_jax.evaluation.summary import Summary, by_scenario, hypervolumes
from jacfuse_jax.fusion import Rule
from jacfuse_jax.programs.files import write_atomically

_CLEAN_RANGE = 5.0  # points of clean accuracy below the best method that the trade-off shows


def write_curves(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws accuracy against severity, a figure for every threat model and modality.

    Attacks are shown in the worst case over targets. Of several seeds, the mean is drawn.

    Args:
      rows: of all seeds.
      folder: where `accuracy_<threat model>_<perturbed>.png` go.

    Returns:
      The paths written.
    """
    paths: list[Path] = []
    for (threat_model, perturbed), of_scenario in by_scenario(rows).items():
        chosen = [
            r
            for r in of_scenario
            if r.selected is not False and r.attack_target in (None, ENSEMBLE)
        ]
        panels = list(dict.fromkeys(r.perturbation for r in chosen if r.perturbation != "clean"))
        if not panels:
            continue
        styles = _styles([r.rule for r in chosen])
        figure, axes = _make_panels(panels)
        for axis, panel in zip(axes, panels, strict=False):
            for rule, style in styles.items():
                curve: dict[int, list[float]] = {}
                for r in chosen:
                    if r.rule == rule and r.perturbation in ("clean", panel):
                        curve.setdefault(r.severity, []).append(r.accuracy)
                points = sorted((severity, np.mean(of)) for severity, of in curve.items())
                if len(points) > 1:
                    axis.plot(*zip(*points, strict=True), label=rule.label, **style)
            axis.set(title=panel.replace("_", " "), xlabel="severity", ylim=(-0.02, 1.02))
            axis.set_xticks(range(6))
        _finish(figure, axes, "accuracy")
        figure.suptitle(f"{chosen[0].dataset}: {perturbed} perturbed, threat model {threat_model}")
        name = f"accuracy_{threat_model}_{perturbed}".replace(" ", "_").replace("+", "_")
        paths.append(_save(figure, folder / f"{name}.png"))
    return paths


def write_trade_off(summaries: Sequence[Summary], folder: Path) -> list[Path]:
    """Draws worst-case accuracy under linf attacks against clean accuracy, a line for every rule.

    A star marks what validation data chose; the area that a rule dominates stands below. Means
    over severities, of the first seed, where the defender knows what is perturbed. Methods that
    lose more than five points of clean accuracy against the best lie outside.

    Args:
      summaries: of all seeds.
      folder: where `trade_off.png` goes.

    Returns:
      The path written, if any.
    """
    chosen = [
        x
        for x in summaries
        if x.threat_model == "known"
        and x.worst is not None
        and x.clean is not None
        and not isinstance(x.rule, Unimodal)
        and x.seed == summaries[0].seed
    ]
    panels = list(dict.fromkeys(x.perturbed for x in chosen))
    if not panels:
        return []
    # One of each name: its parameters are points of one line, in one style.
    first = {x.rule.name: x.rule for x in reversed(chosen)}
    names = list(dict.fromkeys(x.rule.name for x in chosen))
    styles = _styles([first[name] for name in names])
    figure, axes = _make_panels(panels, width=6.4, height=4.6)
    for axis, panel in zip(axes, panels, strict=False):
        lines = [x for x in chosen if x.perturbed == panel]
        for name in names:
            points = sorted((x for x in lines if x.rule.name == name), key=_clean)
            style = styles[first[name]]
            # Two parameters make a cloud, not a line.
            is_line = len(first[name].searched) == 1
            axis.errorbar(
                [100 * (x.clean or 0) for x in points],
                [100 * (x.worst or 0) for x in points],
                yerr=np.clip(
                    [
                        [100 * ((x.worst or 0) - (x.worst_low or 0)) for x in points],
                        [100 * ((x.worst_high or 0) - (x.worst or 0)) for x in points],
                    ],
                    0,
                    None,
                ),
                **{**style, "linestyle": "-" if is_line else "none", "markersize": 4},
                elinewidth=0.6,
                label=name,
            )
            for x in points:
                if x.selected:
                    axis.plot(
                        100 * (x.clean or 0), 100 * (x.worst or 0), "*", ms=13, color=style["color"]
                    )
        areas = hypervolumes(lines)
        shares = ", ".join(f"{name} {area:.3f}" for name, area in areas.items())
        axis.set_title(f"{panel} perturbed")
        note = textwrap.fill(f"area dominated: {shares or 'none'}", 80)
        axis.set_xlabel(f"clean accuracy in %\n{note}", fontsize=8)
        best = 100 * max(_clean(x) for x in lines)
        axis.set_xlim(best - _CLEAN_RANGE, best + 0.05 * _CLEAN_RANGE)
    _finish(figure, axes, "worst-case accuracy in %")
    figure.suptitle("Worst case over linf attacks and targets, mean over epsilon")
    return [_save(figure, folder / "trade_off.png")]


def _clean(line: Summary) -> float:
    return line.clean or 0.0


def _make_panels(panels: Sequence[str], width: float = 4.2, height: float = 3.4) -> Any:
    num_cols = min(3, len(panels))
    num_rows = -(-len(panels) // num_cols)
    size = width * num_cols, height * num_rows + 0.8
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, num_cols, sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, list(axes.flat)


def _finish(figure: Any, axes: Any, ylabel: str) -> None:
    """Labels the vertical axis and puts one legend below all panels."""
    for axis in axes:
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(ylabel)
    handles, labels = axes[0].get_legend_handles_labels()
    column_inches = 0.7 + 0.09 * max(map(len, labels))
    ncols = max(1, int(figure.get_figwidth() / column_inches))
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols)


def _save(figure: Any, path: Path) -> Path:
    write_atomically(path, figure.savefig)
    return path


def _styles(rules: Sequence[Rule]) -> dict[Rule, dict[str, Any]]:
    """A colour for every rule; parameters of one rule get shades and markers of their own."""
    colors = matplotlib.colormaps["tab20"]
    names = [name for name in NAMES if name != "unimodal"]
    markers = "osD^vPX<>hd"
    unique = list(dict.fromkeys(rules))
    styles: dict[Rule, dict[str, Any]] = {}
    for rule in unique:
        if isinstance(rule, Unimodal):
            family: list[Rule] = [other for other in unique if isinstance(other, Unimodal)]
            style: dict[str, Any] = {"color": "0.5", "linestyle": "--"}
        else:
            family = [other for other in unique if other.name == rule.name]
            style = {"color": colors(names.index(rule.name))}
        marker = markers[family.index(rule) % len(markers)]
        styles[rule] = {**style, "marker": marker, "markersize": 4, "linewidth": 1.2}
    return styles
