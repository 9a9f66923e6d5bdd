"""Clean accuracy against accuracy in the worst case, of rules for saved predictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jacfuse_jax import metrics
from jacfuse_jax.predictions.flags import Against
from jacfuse_jax.predictions.stress_tables import Stressed
from jacfuse_jax.programs.files import write_atomically
from jacfuse_jax.selection import Measured

_WIDTH, _HEIGHT = 4.6, 4.2  # inches of a panel
_MARKERS = "osDv^<>Pp*hXd8"


def write_frontier(stressed: Sequence[Stressed], against: Against, path: Path) -> None:
    """Draws a panel for each kind of failure: rules, the frontier, and those that were chosen.

    Args:
      stressed: what was found.
      against: what the worst case is that of.
      path: of the figure.
    """
    figure = Figure(figsize=(_WIDTH * len(stressed), _HEIGHT), layout="constrained")
    axes = figure.subplots(1, len(stressed), squeeze=False)[0]
    kinds = list(dict.fromkeys(x.rule.kind for each in stressed for x in each.measured))
    for axis, (suspects, measured, choices) in zip(axes, stressed, strict=True):
        points = {x.rule: _point(x, against) for x in measured}
        shown = {rule: point for rule, point in points.items() if point is not None}
        for kind in kinds:
            of_kind = np.array([p for rule, p in shown.items() if rule.kind == kind])
            if of_kind.size:
                axis.plot(
                    *(100 * of_kind.T),
                    marker=_MARKERS[kinds.index(kind) % len(_MARKERS)],
                    linestyle="-",
                    linewidth=0.6,
                    markersize=4,
                    color=f"C{kinds.index(kind) % 10}",
                    label=kind.replace("_", " "),
                )
        every = np.array([*shown.values()])
        front = every[metrics.pareto_front(*every.T)]
        axis.plot(*(100 * front.T), color="0.7", linewidth=5, zorder=0, label="frontier")
        shares: dict[tuple[float, float], list[str]] = {}
        for choice in choices:
            place = (100 * choice.worth.clean, 100 * choice.worth.worst)
            shares.setdefault(place, []).append(f"{100 * choice.share:g}%")
        for place, texts in shares.items():
            axis.annotate(
                ", ".join(texts),
                place,
                (-14, 14),
                textcoords="offset points",
                horizontalalignment="right",
                arrowprops={"arrowstyle": "-", "linewidth": 0.8},
                fontweight="bold",
            )
        axis.set(
            title=f"{suspects.name} fails",
            xlabel="accuracy if nothing fails, in %",
            ylabel=f"accuracy in the worst case ({against}), in %",
        )
        axis.grid(alpha=0.3)
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize="small")
    figure.suptitle("Rules for saved predictions; the chosen ones by the share of inputs that fail")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def _point(measured: Measured, against: Against) -> tuple[float, float] | None:
    """Accuracies, clean and in the worst case; None where that is not known."""
    worst = measured.worst(against)
    return None if worst is None else (float(measured.clean.mean()), float(worst[1].mean()))
