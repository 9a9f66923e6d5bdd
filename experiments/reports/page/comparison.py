"""Several runs beside each other."""

from collections.abc import Mapping, Sequence

from experiments.reports.page.choices import BASELINES, choices_of, stated
from experiments.reports.page.files import Run
from experiments.reports.page.scenarios import Scenario
from experiments.reports.page.tables import Cell, Table, advantage_cell, share_cell


def runs_table(runs: Sequence[Run]) -> Table:
    """What several runs chose.

    Args:
      runs: to compare.
    """
    rows = [
        [
            Cell(run.name),
            Cell(choice.perturbed),
            Cell(f"{100 * choice.share:g}%", key=choice.share),
            Cell(choice.label),
            share_cell(choice.worth),
            *(advantage_cell(choice, name) for name in BASELINES),
        ]
        for run in runs
        for choice in stated(run, choices_of(run))
    ]
    return Table(
        "Chosen rules of every run",
        "Worth in %, and by how many points that is more than simple rules have; in brackets "
        "intervals, see the findings of each run.",
        {
            "run": False,
            "perturbed": False,
            "share": True,
            "chosen rule": False,
            "worth": True,
            **{f"against {name}": True for name in BASELINES},
        },
        rows,
    )


def rules_table(title: str, scenarios: Sequence[tuple[Run, Scenario]]) -> Table:
    """The rules of several runs in scenarios of the same kind.

    Args:
      title: of the scenario.
      scenarios: each with its run.
    """
    rows = [
        [
            Cell(run.name),
            Cell(rule.label),
            *(
                share_cell(rule.means[name]) if name in rule.means else Cell("")
                for name in ("clean", "worst")
            ),
        ]
        for run, scenario in scenarios
        for rule in scenario.shown
    ]
    return Table(
        title,
        "Accuracy in %; in brackets intervals. Runs may differ in rows, attacks and classifiers.",
        {"run": False, "rule": False, "clean": True, "worst case": True},
        rows,
    )


def facts_table(facts: Mapping[str, Mapping[str, str]]) -> Table:
    """The settings of several runs.

    Args:
      facts: {run: {term: in words}}.
    """
    terms = list(dict.fromkeys(term for of_run in facts.values() for term in of_run))
    rows = [
        [Cell(term), *(Cell(of_run.get(term, "")) for of_run in facts.values())] for term in terms
    ]
    return Table("Settings", "", {"": False, **dict.fromkeys(facts, False)}, rows)
