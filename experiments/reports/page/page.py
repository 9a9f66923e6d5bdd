"""Pages: which sections they have, and how they become one file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from experiments.reports.page.choice_figures import runs_figure, worth_figures
from experiments.reports.page.choices import choices_of, stated
from experiments.reports.page.comparison import facts_table, rules_table, runs_table
from experiments.reports.page.estimates import listed
from experiments.reports.page.figures import highlighted, severity_figures, trade_off
from experiments.reports.page.files import Run, read
from experiments.reports.page.guarantee_figures import (
    certified_figure,
    coverage_figure,
    stress_figure,
)
from experiments.reports.page.guarantee_tables import certified_table, radii_table, stress_table
from experiments.reports.page.scenarios import Scenario, scenarios_of
from experiments.reports.page.setting import commands_of, facts_of
from experiments.reports.page.svg import Drawing
from experiments.reports.page.tables import Table, accuracy_table, worth_table
from experiments.reports.page.words import explanation, finding, question
from jacfuse_jax.programs.files import write_atomically

FILE = "report.html"


class Block(NamedTuple):
    """What belongs to one modality or threat model.

    Attributes:
      title: above it.
      drawings: figures.
      tables: below them.
    """

    title: str
    drawings: list[Drawing]
    tables: list[Table]


class Section(NamedTuple):
    """A part of a page.

    Attributes:
      name: for links.
      title: above it.
      blocks: at least one.
    """

    name: str
    title: str
    blocks: list[Block]


def write_report(folder: Path) -> Path:
    """Writes report.html into a working directory, of what its files say.

    Args:
      folder: of a run of robust_fusion, certified or stress_predictions that has ended.

    Returns:
      The path written.

    Raises:
      InputError: see `files.read`.
    """
    path = folder / FILE
    write_atomically(path, _render_run(read(folder)))
    return path


def write_comparison(folders: Sequence[Path], path: Path) -> None:
    """Writes a page that compares runs; of one run alone, its report.

    Args:
      folders: working directories of runs that have ended.
      path: of the page.

    Raises:
      InputError: see `files.read`.
    """
    runs = [read(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [run._replace(name=str(run.folder)) for run in runs]
    write_atomically(path, _render_run(runs[0]) if len(runs) == 1 else _render_runs(runs))


def _render_run(run: Run) -> str:
    """The report of one run."""
    facts = facts_of(run)
    return _render(
        title=_title(run),
        question=question(run),
        findings=[("", finding(run), explanation(run))],
        facts=facts,
        facts_table=None,
        sections=[*_worth(run), *_accuracy(run), *_certified(run), *_failures(run)],
        commands=commands_of(run),
    )


def _render_runs(runs: Sequence[Run]) -> str:
    """The comparison of several runs."""
    sections: list[Section] = []
    chosen = [(run.name, choice) for run in runs for choice in stated(run, choices_of(run))]
    if chosen:
        drawings = [runs_figure(chosen, "runs")]
        sections.append(Section("worth", "Chosen rules", [Block("", drawings, [runs_table(runs)])]))
    together: dict[tuple[str, str], list[tuple[Run, Scenario]]] = {}
    for run in runs:
        for scenario in scenarios_of(run):
            key = (scenario.threat_model, scenario.perturbed)
            together.setdefault(key, []).append((run, scenario))
    tables = [
        rules_table(f"{perturbed} perturbed, threat model {model}", of_runs)
        for (model, perturbed), of_runs in together.items()
    ]
    if tables:
        sections.append(Section("accuracy", "Accuracy of all rules", [Block("", [], tables)]))
    tables = [
        table._replace(title=f"{run.name}: {table.title}")
        for run in runs
        for corrupted in _corrupted(run)
        for table in [certified_table(run, corrupted)]
    ]
    if tables:
        sections.append(Section("certified", "Certified accuracy", [Block("", [], tables)]))
    texts = [explanation(run) for run in runs]
    return _render(
        title=f"Comparison of {listed(run.name for run in runs)}",
        question="What do these runs find, and in what do they differ?",
        findings=[
            (run.name, finding(run), text if text not in texts[:index] else "")
            for index, (run, text) in enumerate(zip(runs, texts, strict=True))
        ],
        facts={},
        facts_table=facts_table({run.name: facts_of(run) for run in runs}),
        sections=sections,
        commands=[command for run in runs for command in commands_of(run)],
    )


def _title(run: Run) -> str:
    """What a run is about."""
    if run.chosen:
        return f"Fusion of {listed(run.chosen.get('modalities', ['saved predictions']))}"
    kind = "Robust fusion" if run.results else "Certified fusion"
    return f"{kind}: {(run.results or run.certified)[0]['dataset']}"


def _worth(run: Run) -> list[Section]:
    """What was chosen, and what it is worth."""
    pooled, of_seeds = choices_of(run), choices_of(run, by_seed=True)
    blocks = [
        Block(
            perturbed,
            worth_figures(pooled, perturbed, f"worth-{index}"),
            [worth_table(of_seeds, perturbed)],
        )
        for index, perturbed in enumerate(dict.fromkeys(c.perturbed for c in pooled))
    ]
    title = "Worth by the share of failures" if run.chosen else "Worth by the share of attacks"
    return [Section("worth", title, blocks)] if blocks else []


def _accuracy(run: Run) -> list[Section]:
    """What every rule keeps in every scenario."""
    chosen = choices_of(run)
    rules_of = {choice.perturbed: choice.rules for choice in stated(run, chosen)}
    everywhere = list(dict.fromkeys(rule for rules in rules_of.values() for rule in rules))
    blocks: list[Block] = []
    for index, scenario in enumerate(scenarios_of(run)):
        is_known = scenario.threat_model == "known"
        rules = rules_of.get(scenario.perturbed, everywhere) if is_known else everywhere
        marked = highlighted(scenario, rules)
        drawings = severity_figures(scenario, marked, f"severity-{index}")
        drawings += trade_off(scenario, marked, f"trade-off-{index}")
        shares: dict[str, list[str]] = {}
        for choice in chosen if is_known and len(run.seeds) == 1 else []:
            if choice.perturbed == scenario.perturbed:
                shares.setdefault(choice.label, []).append(f"{100 * choice.share:g}%")
        title = f"{scenario.perturbed} perturbed, threat model {scenario.threat_model}"
        blocks.append(Block(title, drawings, [accuracy_table(scenario, shares)]))
    return [Section("accuracy", "Accuracy of all rules", blocks)] if blocks else []


def _certified(run: Run) -> list[Section]:
    """What holds whatever a modality says."""
    blocks = [
        Block(
            corrupted,
            [certified_figure(run, corrupted, f"certified-{index}")],
            [
                certified_table(run, corrupted),
                *(
                    [radii_table(run, corrupted)]
                    if any(line["corrupted"] == corrupted for line in run.radii)
                    else []
                ),
            ],
        )
        for index, corrupted in enumerate(_corrupted(run))
    ]
    return [Section("certified", "Certified accuracy", blocks)] if blocks else []


def _failures(run: Run) -> list[Section]:
    """What all rules keep where a saved classifier fails."""
    blocks = [
        Block(
            choice.perturbed,
            [
                stress_figure(run, choice, f"failure-{index}"),
                *coverage_figure(run, choice, f"coverage-{index}"),
            ],
            [stress_table(run, choice.perturbed)],
        )
        for index, choice in enumerate(stated(run, choices_of(run)) if run.stress else [])
    ]
    return [Section("failures", "All rules, if a classifier fails", blocks)] if blocks else []


def _corrupted(run: Run) -> list[str]:
    """Modalities of certified.csv."""
    return list(dict.fromkeys(line["corrupted"] for line in run.certified))


def _render(**content: object) -> str:
    """The page, in which all that comes from files is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.reports.page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("report.html.j2").render(content)
    return re.sub(r"\n\s*\n", "\n", text)
