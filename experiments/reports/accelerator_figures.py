"""Figures of what `.ci/accelerator` measured."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jacfuse_jax.programs.files import write_atomically

_MARKERS = "osD^vP*X"


def write_figures(
    rows: Sequence[dict[str, Any]], ceilings: Mapping[str, Any], device: str, folder: Path
) -> None:
    """Writes time.png, peers.png, roofline.png and compile.png.

    Args:
      rows: measured ones, at least one; see `accelerator_report.collect`.
      ceilings: limits of the device.
      device: its name, for the titles.
      folder: of the files.
    """
    for name, draw in (
        ("time", _draw_times),
        ("peers", _draw_peers),
        ("roofline", _draw_roofline),
        ("compile", _draw_compile_times),
    ):
        figure = Figure(figsize=(7.2, 5.6), layout="constrained")
        axis = figure.subplots()
        draw(axis, rows, ceilings)
        axis.grid(alpha=0.3)
        axis.set_title(f"{axis.get_title()}, {device}")
        if axis.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=3, fontsize="x-small")
        write_atomically(folder / f"{name}.png", figure.savefig)


def _draw_times(axis: Any, rows: Sequence[dict[str, Any]], _: Any) -> None:
    """Time of the library's own methods against K, in float32, at the largest batch of each K."""
    own = _first_methods(rows)
    chosen = [row for row in rows if own[row["op"]] == row["method"] and row["dtype"] == "float32"]
    _draw_curves(axis, chosen, lambda row: row["op"])
    axis.set_title("Library's own methods, float32, largest batch")


def _draw_peers(axis: Any, rows: Sequence[dict[str, Any]], _: Any) -> None:
    """The same with peers, of the operations that have any."""
    own = _first_methods(rows)
    with_peers = {row["op"] for row in rows if row["method"] != own[row["op"]]}
    chosen = [row for row in rows if row["op"] in with_peers and row["dtype"] == "float32"]
    _draw_curves(axis, chosen, lambda row: f"{row['op']}: {row['method']}")
    axis.set_title("Methods and peers, float32, largest batch")


def _first_methods(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The method of every op that comes first: the library's own."""
    return {row["op"]: row["method"] for row in reversed(rows)}


def _draw_curves(
    axis: Any, rows: Sequence[dict[str, Any]], label_of: Callable[[dict[str, Any]], str]
) -> None:
    """Microseconds a sample against K, the largest batch of each K."""
    curves: dict[str, dict[int, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["batch_size"]):
        curves.setdefault(label_of(row), {})[row["num_classes"]] = row
    # A colour an op; the first method, the library's own, is a solid line.
    methods: dict[str, list[str]] = {}
    for label, curve in curves.items():
        methods.setdefault(next(iter(curve.values()))["op"], []).append(label)
    first = {row["op"]: label_of(row) for row in reversed(rows)}
    for index, (op, labels) in enumerate(sorted(methods.items())):
        peers = [label for label in labels if label != first[op]]
        for peer, label in enumerate([first[op], *peers]):
            x = sorted(curves[label])
            axis.plot(
                x,
                [curves[label][K]["us_per_sample"] for K in x],
                linestyle="--" if peer else "-",
                marker=_MARKERS[peer % len(_MARKERS)],
                color=f"C{index % 10}",
                markerfacecolor="white" if peer else f"C{index % 10}",
                label=label,
            )
    ticks = sorted({K for curve in curves.values() for K in curve})
    axis.set(xscale="log", yscale="log", xlabel="number of classes K")
    axis.set_ylabel("microseconds a sample")
    axis.set_xticks(ticks, [str(K) for K in ticks])
    axis.set_xticks([], minor=True)


def _draw_roofline(axis: Any, rows: Sequence[dict[str, Any]], ceilings: Mapping[str, Any]) -> None:
    """Executed operations a second against operations a byte of inputs and outputs, by K."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["dtype"] == "float32" and row["executed_gflop_per_s"]:
            rate = row["executed_gflop_per_s"]
            label = f"{row['op']}: {row['method']}"
            points.setdefault(label, []).append((rate / row["gb_per_s"], rate))
            text = f"K={row['num_classes']}"
            axis.annotate(
                text, points[label][-1], xytext=(6, 3), textcoords="offset points", fontsize=7
            )
    for index, (label, of_label) in enumerate(sorted(points.items())):
        axis.plot(
            *zip(*of_label, strict=True), _MARKERS[index % len(_MARKERS)], label=label, alpha=0.8
        )
    intensities = sorted(x for of_label in points.values() for x, _ in of_label) or [1.0]
    lines = [
        (
            ceilings["shares_are_of"],
            1e3 * ceilings["float32_tflop_per_s"],
            ceilings["gb_per_s"],
            "k-",
        ),
        (
            "product, copy here",
            1e3 * ceilings["measured_tflop_per_s"],
            ceilings["measured_gb_per_s"],
            "k:",
        ),
    ]
    for label, gflop_per_s, gb_per_s, style in lines:
        x = sorted([intensities[0] / 2, gflop_per_s / gb_per_s, intensities[-1] * 2])
        axis.plot(x, [min(gflop_per_s, gb_per_s * value) for value in x], style, label=label)
    axis.set(xscale="log", yscale="log", xlabel="operations a byte of inputs and outputs")
    axis.set_ylabel("GFLOP/s as executed")
    axis.set_title("Against the limits, float32")


def _draw_compile_times(axis: Any, rows: Sequence[dict[str, Any]], _: Any) -> None:
    """Seconds to compile, the longest of each method with its K, every dot a size and dtype."""
    seconds: dict[str, list[float]] = {}
    num_classes: dict[tuple[str, float], int] = {}
    for row in rows:
        if row["compile_s"] is not None:
            name = f"{row['op']}: {row['method']}"
            seconds.setdefault(name, []).append(row["compile_s"])
            num_classes[name, row["compile_s"]] = row["num_classes"]
    names = sorted(seconds, key=lambda name: max(seconds[name]))
    axis.barh(names, [max(seconds[name]) for name in names], color="0.85")
    for position, name in enumerate(names):
        axis.plot(seconds[name], [position] * len(seconds[name]), "k.", markersize=4)
        longest = max(seconds[name])
        text = f" K={num_classes[name, longest]}"
        axis.text(longest, position, text, va="center", fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.margins(x=0.09)
    axis.set(xlabel="seconds to trace, lower and compile")
    axis.set_title("Compile times")
