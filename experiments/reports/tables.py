"""Tables of a run in Markdown."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from jacfuse_jax.evaluation.measure import ENSEMBLE, WORST_ATTACK, Row
from jacfuse_jax.evaluation.names import ATTACKS, CORRUPTIONS
from jacfuse_jax.evaluation.summary import Comparison, Summary, by_scenario
from jacfuse_jax.evaluation.targets import STRENGTHS

_MAX_CORRUPTION_COLUMNS = 3


def make_tables(rows: Sequence[Row], summaries: Sequence[Summary]) -> str:
    """Accuracy in percent in Markdown, a table for every threat model and perturbed modality.

    Where validation data chose parameters, only chosen ones are shown. Of several seeds the mean
    and standard deviation are shown; of one, the interval of the worst case.

    Args:
      rows: of all seeds.
      summaries: of the same.
    """
    tables: list[str] = []
    rows_of = by_scenario(rows)
    for (threat_model, perturbed), of_scenario in by_scenario(summaries).items():
        lines = [x for x in of_scenario if x.selected is not False]
        chosen = rows_of[threat_model, perturbed]
        columns = _columns(chosen)
        body = []
        # With several seeds the chosen parameters may differ: the rule is what is compared.
        name: Callable[[Any], str] = (
            (lambda x: x.rule.name if x.selected else _label(x))
            if len({x.seed for x in lines}) > 1
            else _label
        )
        for label in dict.fromkeys(name(x) for x in lines):
            of_lines = [x for x in lines if name(x) == label]
            keys = {(x.seed, _label(x)) for x in of_lines}
            of_rows = [r for r in chosen if (r.seed, _label(r)) in keys]
            body.append([label, *(cell(of_lines, of_rows) for cell in columns.values())])
        num_rows = max(r.num_examples for r in chosen)
        num_attacked = next((r.num_examples for r in chosen if r.perturbation in ATTACKS), 0)
        table = tabulate(
            body,
            ["method", *columns],
            tablefmt="github",
            disable_numparse=True,
            colalign=("left", *("right" for _ in columns)),
        )
        tables.append(
            f"{chosen[0].dataset}, {perturbed} perturbed, threat model {threat_model} (accuracy in "
            f"%; means over severities; {num_rows} rows, {num_attacked} attacked)\n\n"
            f"{table}"
        )
    return "\n\n".join(tables)


def make_comparison(lines: Sequence[Comparison]) -> str:
    """Differences from scaled fusion in points, where the defender knows, in Markdown.

    Args:
      lines: of all seeds.
    """
    chosen = [x for x in lines if x.perturbation in ("clean", WORST_ATTACK) and x.rule.searched]
    body = [
        [
            *(x.threat_model, x.perturbed, x.seed, x.perturbation),
            "mean" if x.severity is None else x.severity,
            *(x.rule.label, x.baseline.label),
            f"{100 * x.difference:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]",
        ]
        for x in chosen
        if x.threat_model == "known"
    ]
    if not body:
        return ""
    headers = [
        *("threat model", "perturbed", "seed", "perturbation", "severity", "method", "against"),
        "difference in points, paired 95% interval",
    ]
    return "Against globally scaled fusion\n\n" + tabulate(body, headers, tablefmt="github")


def _label(line: Any) -> str:
    return line.rule.label


Cell = Callable[[Sequence[Summary], Sequence[Row]], str]


def _columns(rows: Sequence[Row]) -> dict[str, Cell]:
    """The columns of a table and what they show of a rule."""
    columns: dict[str, Cell] = {"clean": _of_summary("clean")}
    corruptions = [n for n in CORRUPTIONS if any(r.perturbation == n for r in rows)]
    if len(corruptions) > _MAX_CORRUPTION_COLUMNS:
        columns["corruptions"] = _of_summary("corruptions")
    else:
        columns |= {name.replace("_", " "): _of_perturbation(name) for name in corruptions}
    if any(r.perturbation == WORST_ATTACK for r in rows):
        columns |= {
            "transfer": _of_summary("transfer"),
            "adaptive": _of_summary("adaptive"),
            "worst case": _worst,
        }
        for severity, epsilon in enumerate(STRENGTHS["pgd"], start=1):
            columns[f"ε = {epsilon:g}"] = _of_perturbation(WORST_ATTACK, severity)
    others = [
        a
        for a in ATTACKS
        if any(r.perturbation == a for r in rows) and STRENGTHS[a] != STRENGTHS["pgd"]
    ]
    return {**columns, **{name: _of_perturbation(name) for name in others}}


def _of_summary(field: str) -> Cell:
    def cell(lines: Sequence[Summary], _: Sequence[Row]) -> str:
        return _percent([getattr(line, field) for line in lines])

    return cell


def _of_perturbation(name: str, severity: int | None = None) -> Cell:
    """Mean over severities, or one of them; of attacks the worst case."""

    def cell(_: Sequence[Summary], rows: Sequence[Row]) -> str:
        by_seed: dict[int, list[float]] = {}
        for r in rows:
            is_wanted = r.perturbation == name and severity in (None, r.severity)
            if is_wanted and r.attack_target in (None, ENSEMBLE):
                by_seed.setdefault(r.seed, []).append(r.accuracy)
        return _percent([float(np.mean(of)) for of in by_seed.values()])

    return cell


def _worst(lines: Sequence[Summary], _: Sequence[Row]) -> str:
    if len(lines) > 1 or lines[0].worst is None:
        return _percent([line.worst for line in lines])
    low, high = (100 * (x or 0) for x in (lines[0].worst_low, lines[0].worst_high))
    return f"{100 * lines[0].worst:.1f} [{low:.1f}, {high:.1f}]"


def _percent(values: Sequence[float | None]) -> str:
    """A share in percent; of several seeds their mean and standard deviation."""
    shares = [100 * value for value in values if value is not None]
    if not shares:
        return ""
    spread = f" ± {np.std(shares, ddof=1):.1f}" if len(shares) > 1 else ""
    return f"{np.mean(shares):.1f}{spread}"
