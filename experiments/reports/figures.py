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
from jacfuse_jax.evaluation.summary import SCENARIO, Summary, hypervolumes, to_frame
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
    frame = to_frame(rows, Row._fields)
    is_worst = frame.attack_target.isna() | frame.attack_target.eq(ENSEMBLE)
    frame = frame[is_worst & frame.selected.ne(False)]
    for (threat_model, perturbed), chosen in frame.groupby(SCENARIO, sort=False):
        panels = [name for name in chosen.perturbation.unique() if name != "clean"]
        if not panels:
            continue
        styles = _styles(chosen.rule)
        figure, axes = _make_panels(panels)
        for axis, panel in zip(axes, panels, strict=False):
            shown = chosen[chosen.perturbation.isin(["clean", panel])]
            for rule, style in styles.items():
                curve = shown[shown.rule == rule].groupby("severity").accuracy.mean()
                if len(curve) > 1:
                    axis.plot(curve.index, curve, label=rule.label, **style)
            axis.set(title=panel.replace("_", " "), xlabel="severity", ylim=(-0.02, 1.02))
            axis.set_xticks(range(6))
        _finish(figure, axes, "accuracy")
        figure.suptitle(
            f"{chosen.dataset.iloc[0]}: {perturbed} perturbed, threat model {threat_model}"
        )
        name = f"accuracy_{threat_model}_{perturbed}".replace(" ", "_").replace("+", "_")
        paths.append(_save(figure, folder / f"{name}.png"))
    return paths


def write_trade_off(summaries: Sequence[Summary], folder: Path) -> list[Path]:
    """Draws worst-case accuracy under linf attacks against clean accuracy, a line for every rule.

    A star marks what validation data chose; the area that a rule dominates stands below. Means
    over severities, of the first seed, where the defender knows what is perturbed. Methods that
    lose more than five points of clean accuracy against the best lie outside, and are named below
    if all their parameters do.

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
        and not isinstance(x.rule, Unimodal)
        and x.seed == summaries[0].seed
    ]
    frame = to_frame(chosen, Summary._fields).dropna(subset=["clean", "worst"])
    if frame.empty:
        return []
    frame["method"] = [rule.name for rule in frame.rule]
    # One of each name: its parameters are points of one line, in one style.
    styles = _styles(frame.drop_duplicates("method").rule)
    panels = frame.groupby("perturbed", sort=False)
    figure, axes = _make_panels(list(panels.groups), width=6.4, height=4.6)
    for axis, (panel, lines) in zip(axes, panels, strict=False):
        for rule, style in styles.items():
            points = lines[lines.method == rule.name].sort_values("clean", kind="stable")
            clean, worst = 100 * points.clean, 100 * points.worst
            margins = [worst - 100 * points.worst_low, 100 * points.worst_high - worst]
            # Two parameters make a cloud, not a line.
            linestyle = "-" if len(rule.searched) == 1 else "none"
            axis.errorbar(
                clean,
                worst,
                yerr=np.clip(margins, 0, None),
                **{**style, "linestyle": linestyle, "markersize": 4},
                elinewidth=0.6,
                label=rule.name,
            )
            for index in points.index[points.selected.eq(True)]:
                axis.plot(clean[index], worst[index], "*", ms=13, color=style["color"])
        areas = hypervolumes(x for x in chosen if x.perturbed == panel)
        shares = ", ".join(f"{name} {area:.3f}" for name, area in areas.items())
        axis.set_title(f"{panel} perturbed")
        best = 100 * lines.clean.max()
        notes = [f"area dominated: {shares or 'none'}"]
        most = 100 * lines.groupby("method").clean.transform("max")
        outside = lines[most < best - _CLEAN_RANGE]
        if len(outside):
            points = zip(outside.method, 100 * outside.clean, 100 * outside.worst, strict=True)
            named = ", ".join(f"{name} ({x:.1f}, {y:.1f})" for name, x, y in points)
            notes.append(f"further left (clean, worst): {named}")
        note = "\n".join(textwrap.fill(line, 80) for line in notes)
        axis.set_xlabel(f"clean accuracy in %\n{note}", fontsize=8)
        axis.set_xlim(best - _CLEAN_RANGE, best + 0.05 * _CLEAN_RANGE)
    _finish(figure, axes, "worst-case accuracy in %")
    figure.suptitle("Worst case over linf attacks and targets, mean over epsilon")
    return [_save(figure, folder / "trade_off.png")]


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
    maps = [matplotlib.colormaps[name] for name in ("tab20", "tab20b")]
    colors = [colormap(index) for colormap in maps for index in range(20)]
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
            style = {"color": colors[names.index(rule.name)]}
        marker = markers[family.index(rule) % len(markers)]
        styles[rule] = {**style, "marker": marker, "markersize": 4, "linewidth": 1.2}
    return styles
