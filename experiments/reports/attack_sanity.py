"""The table of checks that tell a robust prediction from an attack that fails."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from experiments.measuring.attack_sanity import Row
from experiments.reports import csv_files


def write(rows: Sequence[Row], folder: Path) -> None:
    """Writes attack_sanity.csv, and prints a table.

    Args:
      rows: measured.
      folder: of the file.
    """
    path = folder / "attack_sanity.csv"
    csv_files.write_measured(Row._fields, rows, path)
    print(_make_table(rows))
    print(f"wrote {path}")


def _make_table(rows: Sequence[Row]) -> str:
    """Figures of all checks, a line a target; those that failed with an exclamation mark."""
    names = list(dict.fromkeys(row.check for row in rows))
    body = [
        [
            perturbed,
            target,
            *(
                f"{row.value:.3g}{'' if row.passed else ' !'}"
                for row in rows
                if (row.perturbed, row.target) == (perturbed, target)
            ),
        ]
        for perturbed, target in dict.fromkeys((row.perturbed, row.target) for row in rows)
    ]
    numbers = [f"({index + 1})" for index in range(len(names))]
    table = tabulate(body, ["perturbed", "target", *numbers], tablefmt="github")
    legend = "\n".join(
        f"{number} {name}: {_describe([row for row in rows if row.check == name])}"
        for number, name in zip(numbers, names, strict=True)
    )
    failed = sum(not row.passed for row in rows)
    return f"{table}\n\n{legend}\n\n{failed} of {len(rows)} checks failed, marked by !"


def _describe(rows: Sequence[Row]) -> str:
    """What a check measures, and its limit where that is the same for all targets."""
    details, limits = {row.detail for row in rows}, {row.limit for row in rows}
    detail = rows[0].detail if len(details) == 1 else rows[0].detail.partition(":")[0]
    return f"{detail}; " + (
        f"at most {rows[0].limit:.3g}" if len(limits) == 1 else "limits are in the file"
    )
