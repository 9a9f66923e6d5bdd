"""Figures that stand for a whole run: means, areas, corruption errors, paired differences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import fusion, metrics
from jacfuse_jax.evaluation.measure import ENSEMBLE, WORST_ATTACK, Outcomes, Row
from jacfuse_jax.evaluation.names import CORRUPTIONS, LINF_ATTACKS
from jacfuse_jax.evaluation.plan import SEVERITIES
from jacfuse_jax.evaluation.rules import Unimodal
from jacfuse_jax.evaluation.targets import OWN, STRENGTHS
from jacfuse_jax.fusion import Rule

_BOOTSTRAP_SEED = 0
_ROUNDING = 1e-9  # of sums of accuracies
_STATISTICAL = fusion.Statistical()
_WITHOUT_REMEDY = ("unimodal", "mean", "max", "product", "statistical", "temperature")


class Summary(NamedTuple):
    """A rule in one scenario; None where the run has nothing to compute it from.

    Accuracies are shares; means are over severities 1 to 5.

    Attributes:
      clean: accuracy on clean rows, all of them.
      corruptions: mean accuracy over corruptions.
      transfer: mean over linf attacks on the perturbed modality's own classifier.
      adaptive: mean over linf attacks on the rule itself.
      worst: mean of the worst case over linf attacks and all targets, sample by sample.
      worst_low: lower end of its 95% bootstrap interval over groups of dependent rows.
      worst_high: upper end.
      curve_area: area under worst-case accuracy against epsilon, see
        `metrics.robustness_curve_area`; MultiBench's relative robustness but for the division.
      effective_area: that area beyond statistical fusion's, moved to equal clean accuracy, see
        `metrics.effective_curve_area`.
      relative_robustness: `worst` minus statistical fusion's (Taori et al.).
      effective_robustness: `worst` beyond what clean accuracy lets expect (Taori et al.), from a
        line through the rules without any remedy: the classifiers alone and rules without
        parameters.
      mce: mean corruption error relative to statistical fusion.
      relative_mce: the same of the losses against clean.
    """

    seed: int
    threat_model: str
    perturbed: str
    rule: Rule
    selected: bool | None
    clean: float | None
    corruptions: float | None
    transfer: float | None
    adaptive: float | None
    worst: float | None
    worst_low: float | None
    worst_high: float | None
    curve_area: float | None
    effective_area: float | None
    relative_robustness: float | None
    effective_robustness: float | None
    mce: float | None
    relative_mce: float | None


class Comparison(NamedTuple):
    """A rule against globally scaled fusion on the same rows.

    Attributes:
      perturbation: "clean", a corruption, or "worst_attack".
      severity: 0 for clean; None for the mean over severities.
      baseline: globally scaled fusion.
      difference: accuracy minus the baseline's.
      low: lower end of its paired 95% bootstrap interval over groups of dependent rows.
      high: upper end.
    """

    seed: int
    threat_model: str
    perturbed: str
    perturbation: str
    severity: int | None
    rule: Rule
    baseline: Rule
    difference: float
    low: float
    high: float


_Line = TypeVar("_Line", Row, Summary)


def by_scenario(lines: Iterable[_Line]) -> dict[tuple[str, str], list[_Line]]:
    """Groups lines by threat model and perturbed modalities, in order of appearance.

    Args:
      lines: rows or summaries.
    """
    groups: dict[tuple[str, str], list[_Line]] = {}
    for line in lines:
        groups.setdefault((line.threat_model, line.perturbed), []).append(line)
    return groups


def summarise(rows: Sequence[Row], outcomes: Outcomes, groups: NDArray[np.int32]) -> list[Summary]:
    """Summarises the rows of one seed, a line for every threat model, modality and rule.

    Args:
      rows: of one seed.
      outcomes: of `measure.evaluate`.
      groups: (N,), of the test rows.
    """
    summaries: list[Summary] = []
    for (threat_model, perturbed), chosen in by_scenario(rows).items():
        lines: list[Summary] = []
        by_rule: dict[Rule, list[Row]] = {}
        for row in chosen:
            by_rule.setdefault(row.rule, []).append(row)
        reference = by_rule.get(_STATISTICAL)
        for rule, of_rule in by_rule.items():
            worst = _over_severities(
                outcomes, (threat_model, perturbed, WORST_ATTACK), rule, groups
            )
            lines.append(
                Summary(
                    seed=of_rule[0].seed,
                    threat_model=threat_model,
                    perturbed=perturbed,
                    rule=rule,
                    selected=of_rule[0].selected,
                    clean=_mean(of_rule, lambda r: r.perturbation == "clean"),
                    corruptions=_mean(of_rule, lambda r: r.perturbation in CORRUPTIONS),
                    transfer=_mean(
                        of_rule,
                        lambda r: (
                            r.perturbation in LINF_ATTACKS and r.attack_target == OWN.rule.name
                        ),
                    ),
                    adaptive=_mean(
                        of_rule,
                        lambda r, name=rule.name: (
                            r.perturbation in LINF_ATTACKS and r.attack_target == name
                        ),
                    ),
                    worst=None if worst is None else float(worst.mean),
                    worst_low=None if worst is None else float(worst.low),
                    worst_high=None if worst is None else float(worst.high),
                    **_areas(of_rule, reference),
                    relative_robustness=None,
                    effective_robustness=None,
                    **_corruption_errors(of_rule, reference),
                )
            )
        summaries += _with_robustness(lines)
    return summaries


def compare(
    seed: int, rows: Sequence[Row], outcomes: Outcomes, groups: NDArray[np.int32]
) -> list[Comparison]:
    """Compares every rule's chosen parameters with those of globally scaled fusion.

    Args:
      seed: of the rows.
      rows: of one seed.
      outcomes: of `measure.evaluate`.
      groups: (N,), of the test rows.

    Returns:
      The lines; none where validation data did not choose parameters of scaled fusion.
    """
    lines: list[Comparison] = []
    for (threat_model, perturbed), of_scenario in by_scenario(rows).items():
        chosen = [r for r in of_scenario if r.attack_target in (None, ENSEMBLE)]
        rules = dict.fromkeys(row.rule for row in chosen if row.selected is not False)
        baseline = next(
            (r.rule for r in chosen if r.selected and isinstance(r.rule, fusion.Scaled)), None
        )
        perturbations = dict.fromkeys(
            r.perturbation
            for r in chosen
            if r.perturbation in ("clean", WORST_ATTACK, *CORRUPTIONS)
        )
        if baseline is None:
            continue
        for rule in rules:
            if rule == baseline or isinstance(rule, Unimodal):
                continue
            for perturbation in perturbations:
                key = (threat_model, perturbed, perturbation)
                severities = (0,) if perturbation == "clean" else SEVERITIES
                a, b = (
                    np.stack([outcomes[*key, s, m] for s in severities], axis=1)
                    for m in (rule, baseline)
                )
                if perturbation != "clean":
                    a, b = (np.column_stack([x, x.mean(axis=1)]) for x in (a, b))
                interval = metrics.paired_bootstrap_interval(
                    a, b, _BOOTSTRAP_SEED, groups=groups[: len(a)]
                )
                for severity, mean, low, high in zip(
                    (*severities, None), interval.mean, interval.low, interval.high, strict=False
                ):
                    lines.append(
                        Comparison(
                            *(seed, threat_model, perturbed, perturbation, severity),
                            *(rule, baseline),
                            *(float(mean), float(low), float(high)),
                        )
                    )
    return lines


def hypervolumes(lines: Iterable[Summary]) -> dict[str, float]:
    """Area that each rule's parameters dominate in the plane of clean and worst-case accuracy.

    Statistical fusion, which every rule with parameters contains as a limit, counts for all.

    Args:
      lines: of one seed, threat model and modality.

    Returns:
      {rule: area above (0, 0)}, of rules with parameters.
    """
    points = [(x.rule, x.clean, x.worst) for x in lines if x.clean and x.worst is not None]
    shared = [point for point in points if point[0] == _STATISTICAL]
    areas: dict[str, float] = {}
    for name in dict.fromkeys(rule.name for rule, *_ in points if rule.searched):
        of_rule = [*shared, *(point for point in points if point[0].name == name)]
        _, clean, worst = zip(*of_rule, strict=True)
        areas[name] = metrics.hypervolume(clean, worst)
    return areas


def _mean(rows: Sequence[Row], belongs: Callable[[Row], bool]) -> float | None:
    accuracies = [row.accuracy for row in rows if belongs(row)]
    return float(np.mean(accuracies)) if accuracies else None


def _over_severities(
    outcomes: Outcomes,
    key: tuple[str, str, str],
    rule: Rule,
    groups: NDArray[np.int32],
) -> metrics.BootstrapInterval | None:
    """Mean over severities with its interval: the same rows are attacked at every severity."""
    columns = [outcomes[*key, s, rule] for s in SEVERITIES if (*key, s, rule) in outcomes]
    if not columns:
        return None
    values = np.mean(columns, axis=0)
    return metrics.bootstrap_interval(values, _BOOTSTRAP_SEED, groups=groups[: len(values)])


def _areas(rows: Sequence[Row], reference: Sequence[Row] | None) -> dict[str, float | None]:
    epsilons = (0.0, *STRENGTHS[LINF_ATTACKS[0]])
    curve = _curve(rows)
    if len(curve) < len(epsilons):
        return {"curve_area": None, "effective_area": None}
    return {
        "curve_area": metrics.robustness_curve_area(epsilons, curve),
        "effective_area": metrics.effective_curve_area(epsilons, curve, _curve(reference))
        if reference
        else None,
    }


def _curve(rows: Sequence[Row]) -> list[float]:
    """Worst-case accuracy at severities 0 to 5, those that there are."""
    by_severity = {
        row.severity: row.accuracy for row in rows if row.perturbation in ("clean", WORST_ATTACK)
    }
    return [by_severity[severity] for severity in sorted(by_severity)]


def _with_robustness(lines: Sequence[Summary]) -> list[Summary]:
    """Adds relative and effective robustness to the lines of one threat model and modality."""
    points = {
        x.rule.name: (x.clean, x.worst)
        for x in lines
        if x.clean is not None and x.worst is not None
    }
    unremedied = [p for name, p in points.items() if name.partition(":")[0] in _WITHOUT_REMEDY]
    statistical = points.get(_STATISTICAL.name)
    baseline_fn = None
    # A line needs two different clean accuracies, and logits need accuracies within (0, 1).
    inside = [p for p in unremedied if min(p) > 0 and max(p) < 1]
    if len({clean for clean, _ in inside}) > 1:
        baseline_fn = metrics.make_baseline_fn(*zip(*inside, strict=True))
    return [
        x
        if x.clean is None or x.worst is None
        else x._replace(
            relative_robustness=None
            if statistical is None
            else float(metrics.relative_robustness(x.worst, statistical[1])),
            effective_robustness=None
            if baseline_fn is None or not 0 < x.clean < 1
            else float(metrics.effective_robustness(x.clean, x.worst, baseline_fn)),
        )
        for x in lines
    ]


def _corruption_errors(
    rows: Sequence[Row], reference: Sequence[Row] | None
) -> dict[str, float | None]:
    """Errors relative to the reference's, over corruptions that degrade it."""
    names = [n for n in CORRUPTIONS if any(row.perturbation == n for row in rows)]
    clean = _mean(rows, lambda row: row.perturbation == "clean")
    if reference is None or clean is None:
        return {"mce": None, "relative_mce": None}
    clean_reference = _mean(reference, lambda row: row.perturbation == "clean") or 0.0
    errors, reference_errors = _errors(rows, names), _errors(reference, names)
    degrades = [
        n for n in names if sum(e - (1 - clean_reference) for e in reference_errors[n]) > _ROUNDING
    ]
    if not degrades:
        return {"mce": None, "relative_mce": None}
    e, b = ([of[n] for n in degrades] for of in (errors, reference_errors))
    return {
        "mce": metrics.mean_corruption_error(e, b),
        "relative_mce": metrics.relative_mean_corruption_error(
            e, b, 1 - clean, 1 - clean_reference
        ),
    }


def _errors(rows: Sequence[Row], names: Sequence[str]) -> Mapping[str, list[float]]:
    return {name: [1 - row.accuracy for row in rows if row.perturbation == name] for name in names}
