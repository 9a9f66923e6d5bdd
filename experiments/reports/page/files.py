"""What the files of a working directory say, checked as they are read."""

import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reports.page.estimates import Estimate
from jacfuse_jax.evaluation.rules import PARAMETERS, RULES
from jacfuse_jax.fusion import rule_from_json
from jacfuse_jax.programs import InputError
from jacfuse_jax.selection import FAULTS

Line = dict[str, str]
"""A line of a table: {column: text}, empty where nothing applies."""

_SYMBOLS = {rule.kind: rule.searched for rule in RULES}
_REMEDY = "give the same command again, or leave the folder out"
_SCENARIO = ("threat_model", "perturbed")
TEXTS = {
    "results": ("dataset", "seed", *_SCENARIO, "perturbation", "attack_target", "method"),
    "summary": ("seed", *_SCENARIO, "method", "selected"),
    "envelope": ("seed", "perturbed", "method", "baseline"),
    "certified": ("dataset", "seed", "corrupted", "method", "selected"),
    "radii": ("corrupted", "method"),
    "stress": ("suspect", "rule", "parameters", "share_best"),
    "coverage": ("suspect", "rule", "parameters", "criterion"),
}
"""Columns that are read as texts, of files by name; others are not needed."""
_CERTIFIED = ("clean", "clean_low", "clean_high", "certified", "certified_low", "certified_high")
NUMBERS = {
    "results": (*("severity", "accuracy", "ci_low", "ci_high", "ece", "num_examples"), *PARAMETERS),
    "summary": (
        *("clean", "corruptions", "transfer", "adaptive", "worst", "worst_low", "worst_high"),
        *("certified", *PARAMETERS),
    ),
    "envelope": (
        *("share", "expected", "low", "high", "difference", "difference_low", "difference_high"),
    ),
    "certified": ("contamination", "confidence", *_CERTIFIED, "num_examples"),
    "radii": (
        *("contamination", "gamma", "unlimited", "median", "changed_1", "changed_10"),
        *("changed_100", "num_examples"),
    ),
    "stress": ("clean", "clean_low", "clean_high", "any_input", *FAULTS),
    "coverage": ("coverage", "accuracy"),
}
"""Columns that are read as numbers."""
_FILLED = {
    "results": ("severity", "accuracy", "num_examples"),
    "envelope": NUMBERS["envelope"],
    "certified": (*_CERTIFIED, "num_examples"),
    "radii": ("num_examples",),
    "stress": ("clean", "clean_low", "clean_high"),
    "coverage": NUMBERS["coverage"],
}  # those of them that are never empty
_ENTRY = ("suspect", "against", "rule")
_ENTRY_NUMBERS = ("share", "expected", "low", "high")


class Run(NamedTuple):
    """What a working directory has; what it lacks is empty.

    Attributes:
      name: of the run, for people to read.
      folder: the directory.
      config: config.json.
      results: lines of results.csv; the others likewise.
      chosen: chosen.json.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    results: list[Line]
    summary: list[Line]
    envelope: list[Line]
    certified: list[Line]
    radii: list[Line]
    stress: list[Line]
    coverage: list[Line]
    chosen: dict[str, Any]

    @property
    def seeds(self) -> list[str]:
        """Those of its results."""
        return list(dict.fromkeys(line["seed"] for line in self.results or self.certified))


def read(folder: Path) -> Run:
    """Reads what a run of robust_fusion, certified or stress_predictions wrote.

    Args:
      folder: its working directory.

    Returns:
      What its files say.

    Raises:
      InputError: the folder has no results, lacks a file that goes with them, or a file is damaged.
    """
    tables = {name: _read_table(folder / f"{name}.csv", name) for name in TEXTS}
    needed: list[str] = []
    if tables["results"]:
        needed += ["config.json", "summary.csv"]
    if tables["certified"]:
        needed.append("config.json")
    if tables["stress"]:
        needed.append("chosen.json")
    if not needed:
        raise InputError(
            f"{folder} has no results.csv, certified.csv or stress.csv: name the --workdir of a "
            "run that has ended"
        )
    for name in needed:
        if not (folder / name).exists():
            raise InputError(f"{folder / name} is missing: {_REMEDY}")
    config = _read_json(folder / "config.json", ("flags", "versions", "device"))
    chosen = _read_json(folder / "chosen.json", ("chosen",)) if tables["stress"] else {}
    if not isinstance(config.get("flags", {}), dict):
        raise InputError(f"{folder / 'config.json'} has no flags: {_REMEDY}")
    if not all(map(_is_whole, chosen.get("chosen", []))):
        raise InputError(f"{folder / 'chosen.json'} has an entry that is not whole: {_REMEDY}")
    return Run(folder.resolve().name, folder, config, chosen=chosen, **tables)


def label_of(line: Line) -> str:
    """A rule for people to read, as `fusion.Rule.label` has it.

    Args:
      line: with the name of the rule and columns of its parameters.
    """
    symbols = _SYMBOLS.get(line["method"], {})
    values = {symbol: line.get(name, "") for name, symbol in symbols.items()}
    return " ".join([line["method"], *(f"{s}={float(x):.12g}" for s, x in values.items() if x)])


def stress_label_of(line: Line) -> str:
    """The same of stress.csv and coverage.csv, which have parameters in one column.

    Args:
      line: of such a file.
    """
    symbols = _SYMBOLS.get(line["rule"], {})
    parts = [text.partition("=") for text in line["parameters"].split()]
    return " ".join([line["rule"], *(f"{symbols.get(x, x)}={value}" for x, _, value in parts)])


def number(line: Line, column: str) -> float | None:
    """A number of a line; None where the field is empty or not a number.

    Args:
      line: of a table.
      column: one of those that were checked.
    """
    text = line.get(column, "")
    value = float(text) if text else math.nan
    return None if math.isnan(value) else value


def estimate(line: Line, name: str) -> Estimate:
    """A share of a line, with its interval where it has one.

    Args:
      line: of a table.
      name: of the column; `name`_low and `name`_high are the interval.
    """
    return Estimate(float(line[name]), number(line, f"{name}_low"), number(line, f"{name}_high"))


def _read_table(path: Path, name: str) -> list[Line]:
    """The lines of a file; none where it is not there."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or ()
            lines = [(reader.line_num, line) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is damaged ({error}): {_REMEDY}") from error
    missing = {*TEXTS[name], *NUMBERS[name]} - set(columns)
    if missing:
        raise InputError(f"{path} has no column {min(missing)!r}: {_REMEDY}")
    if not lines:
        raise InputError(f"{path} has no line below its header: {_REMEDY}")
    for place, line in lines:
        if None in line or None in line.values():
            raise InputError(f"{path} is damaged: line {place} is not whole: {_REMEDY}")
        for column in NUMBERS[name]:
            text = line[column]
            if _is_number(text) or (name == "radii" and text in ("inf", "nan")):
                continue  # of no rows there is no radius
            if text or column in _FILLED.get(name, ()):
                raise InputError(
                    f"{path} is damaged: line {place} has {text!r} for {column}: {_REMEDY}"
                )
    return [line for _, line in lines]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_whole(entry: Any) -> bool:
    """Whether an entry of chosen.json has what is read of it."""
    if not isinstance(entry, dict) or not {*_ENTRY, *_ENTRY_NUMBERS} <= set(entry):
        return False
    try:
        rule_from_json(json.dumps(entry["rule"]))
    except ValueError:
        return False
    return all(isinstance(entry[name], int | float) for name in _ENTRY_NUMBERS)


def _read_json(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """An object with these names; empty where the file is not there."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): {_REMEDY}") from error
    if not isinstance(content, dict) or not set(names) <= set(content):
        raise InputError(f"{path} lacks {', '.join(names)}: {_REMEDY}")
    return content
