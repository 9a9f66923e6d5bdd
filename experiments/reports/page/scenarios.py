"""What a run measured, by threat model and perturbed modality."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.reports.page.estimates import Estimate, pool
from experiments.reports.page.files import Line, Run, estimate, label_of, number
from jacfuse_jax.evaluation.measure import ENSEMBLE

_SUMMARISED = ("clean", "corruptions", "transfer", "adaptive", "worst", "certified")


class Measured(NamedTuple):
    """A rule in one scenario.

    Attributes:
      method: name of the rule.
      label: with its parameters; of several seeds, where these were chosen in each, without.
      is_shown: whether its parameters stand for the rule: chosen, or nothing chose any.
      means: {column of summary.csv: estimate}, of those that were measured; only the clean and the
        worst case have intervals.
      curves: {perturbation: {severity: accuracy}}, of attacks the worst case over targets.
      ece: calibration error on clean rows.
    """

    method: str
    label: str
    is_shown: bool
    means: dict[str, Estimate]
    curves: dict[str, dict[int, Estimate]]
    ece: float | None


class Scenario(NamedTuple):
    """Rules under one threat model.

    Attributes:
      threat_model: of the run.
      perturbed: modality or modalities.
      rules: that were measured.
      num_rows: clean ones.
      num_attacked: of these; 0 where nothing was.
    """

    threat_model: str
    perturbed: str
    rules: list[Measured]
    num_rows: int
    num_attacked: int

    @property
    def shown(self) -> list[Measured]:
        """Rules with the parameters that stand for them."""
        return [rule for rule in self.rules if rule.is_shown]


def scenarios_of(run: Run) -> list[Scenario]:
    """All scenarios of a run, in its order.

    Args:
      run: read.
    """
    by_name = len(run.seeds) > 1
    summaries = _grouped(run.summary)
    return [
        _scenario(key, lines, summaries.get(key, []), by_name=by_name)
        for key, lines in _grouped(run.results).items()
    ]


def _grouped(lines: Iterable[Line]) -> dict[tuple[str, str], list[Line]]:
    """Lines by scenario."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["threat_model"], line["perturbed"]), []).append(line)
    return found


def _scenario(
    key: tuple[str, str], results: Sequence[Line], summaries: Sequence[Line], *, by_name: bool
) -> Scenario:
    """One scenario of all seeds."""
    of_rule = {name: list[Line]() for name in (_key(x, by_name) for x in results)}
    for line in results:
        if line["attack_target"] in ("", ENSEMBLE):
            of_rule[_key(line, by_name)].append(line)
    of_summary: dict[tuple[str, bool], list[Line]] = {}
    for line in summaries:
        of_summary.setdefault(_key(line, by_name), []).append(line)
    rules = [
        _measured(name, lines, of_summary.get(name, [])) for name, lines in of_rule.items() if lines
    ]
    counts = {line["attack_target"]: int(line["num_examples"]) for line in results}
    return Scenario(*key, rules, counts.get("", 0), counts.get(ENSEMBLE, 0))


def _key(line: Line, by_name: bool) -> tuple[str, bool]:
    """What a rule is called, and whether it is shown; its parameters may differ by seed."""
    is_named = by_name and line["selected"] == "True"
    return line["method"] if is_named else label_of(line), line["selected"] != "False"


def _measured(key: tuple[str, bool], lines: Sequence[Line], summaries: Sequence[Line]) -> Measured:
    """A rule of all seeds."""
    label, is_shown = key
    found: dict[str, dict[int, list[Estimate]]] = {}
    for line in lines:
        accuracy = Estimate(
            float(line["accuracy"]), number(line, "ci_low"), number(line, "ci_high")
        )
        of_perturbation = found.setdefault(line["perturbation"], {})
        of_perturbation.setdefault(int(line["severity"]), []).append(accuracy)
    curves = {
        name: {severity: pool(of_seeds) for severity, of_seeds in sorted(curve.items())}
        for name, curve in found.items()
    }
    means: dict[str, Estimate] = {}
    for name in _SUMMARISED:
        of_seeds = [estimate(line, name) for line in summaries if line[name]]
        if of_seeds:
            means[name] = pool(of_seeds)
    if "clean" in curves:
        means["clean"] = curves["clean"][0]
    errors = [float(x["ece"]) for x in lines if x["perturbation"] == "clean" and x["ece"]]
    ece = sum(errors) / len(errors) if errors else None
    return Measured(lines[0]["method"], label, is_shown, means, curves, ece)
