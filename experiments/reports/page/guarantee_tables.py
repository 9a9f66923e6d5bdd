"""Tables of what holds whatever a modality says, or however it fails."""

import math
import sys

from experiments.reports.page.files import Line, Run, estimate, label_of, number, stress_label_of
from experiments.reports.page.tables import Cell, Table, share_cell
from jacfuse_jax.selection import FAULTS


def certified_table(run: Run, corrupted: str) -> Table:
    """What is certified against anything that a modality says.

    Args:
      run: with certified.csv.
      corrupted: the modality.
    """
    lines = [line for line in run.certified if line["corrupted"] == corrupted]
    rows = [
        [
            Cell(label_of(line), "chosen" if _is_chosen(line) else ""),
            *(share_cell(estimate(line, name)) for name in ("clean", "certified")),
        ]
        for line in lines
    ]
    return Table(
        f"{corrupted} may say anything: certified accuracy",
        f"Accuracy in %, {lines[0]['num_examples']} test rows; in brackets 95% intervals. Chosen: "
        "the parameters that validation rows chose.",
        {"rule": False, "clean": True, "certified": True},
        rows,
    )


def radii_table(run: Run, corrupted: str) -> Table:
    """Within which distance nothing changes a class, and what PGD does beyond it.

    Args:
      run: with radii.csv.
      corrupted: the modality.
    """
    lines = [line for line in run.radii if line["corrupted"] == corrupted]
    rows: list[list[Cell]] = []
    for line in lines:
        median = number(line, "median")
        shown = Cell("")
        if median is not None:
            text = "∞" if math.isinf(median) else f"{median:.2g}"
            shown = Cell(text, key=min(median, sys.float_info.max))
        names = ("unlimited", "changed_1", "changed_10", "changed_100")
        unlimited, *changed = (
            Cell("") if number(line, name) is None else share_cell(estimate(line, name))
            for name in names
        )
        rows.append([Cell(label_of(line)), unlimited, shown, *changed])
    return Table(
        f"{corrupted} moves: certified radii",
        f"Shares in %, the first {lines[0]['num_examples']} test rows; radii in the 2-norm of the "
        "input; the last columns are rows whose class PGD changes within so many radii.",
        {
            "rule": False,
            "any radius": True,
            "median radius": True,
            **{f"PGD at {factor} ×": True for factor in (1, 10, 100)},
        },
        rows,
    )


def stress_table(run: Run, suspect: str) -> Table:
    """All rules for saved predictions.

    Args:
      run: with stress.csv.
      suspect: what may fail.
    """
    lines = [line for line in run.stress if line["suspect"] == suspect]
    names = {"clean": "clean", **{fault: fault for fault in FAULTS}, "any_input": "anything"}
    rows: list[list[Cell]] = []
    for line in lines:
        shares = ", ".join(f"{100 * float(share):g}%" for share in line["share_best"].split())
        label = stress_label_of(line)
        cells = [Cell(label, f"chosen for {shares}" if shares else "")]
        cells += [share_cell(estimate(line, x)) if line.get(x) else Cell("") for x in names]
        rows.append(cells)
    return Table(
        f"{suspect} fails: all rules",
        "Accuracy in %: while nothing fails, under every simulated fault, and whatever the "
        "classifier says, exactly; in brackets 95% intervals.",
        {"rule": False, **dict.fromkeys(names.values(), True)},
        rows,
        is_long=True,
    )


def _is_chosen(line: Line) -> bool:
    """Whether a rule with parameters was chosen."""
    return line["selected"] == "True" and line["method"] != "statistical"
