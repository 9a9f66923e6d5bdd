"""Figures that stand for a whole run: means, areas, corruption errors, paired differences."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jacfuse_jax import fusion, metrics
from jacfuse_jax.evaluation.intervals import bootstrap_interval, paired_bootstrap_interval
from jacfuse_jax.evaluation.measure import WORST_ATTACK, Outcomes, Row
from jacfuse_jax.evaluation.names import CORRUPTIONS, LINF_ATTACKS
from jacfuse_jax.evaluation.plan import SEVERITIES
from jacfuse_jax.evaluation.rules import Unimodal
from jacfuse_jax.evaluation.targets import OWN, STRENGTHS
from jacfuse_jax.fusion import Rule

SCENARIO = ["threat_model", "perturbed"]  # columns that tell what is comparable
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
      certified: share of attacked rows that are right whatever the perturbed modalities say; of
        rules with such a certificate.
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
    certified: float | None
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


Frame = Any
"""A table of pandas, which says of few functions what they return."""


def to_frame(lines: Iterable[NamedTuple], fields: Sequence[str]) -> Frame:
    """Lines of a table, of which there may be none, as a frame of pandas.

    Args:
      lines: such as rows or summaries.
      fields: of a line.
    """
    return pd.DataFrame(lines, columns=list(fields))


def summarise(rows: Sequence[Row], outcomes: Outcomes, groups: NDArray[np.int32]) -> list[Summary]:
    """Summarises the rows of one seed, a line for every threat model, modality and rule.

    Args:
      rows: of one seed.
      outcomes: of `measure.evaluate`.
      groups: (N,) or (N, G), of the test rows, see `intervals`.
    """
    summaries: list[Summary] = []
    frame = to_frame(rows, Row._fields)
    for scenario, of_scenario in frame.groupby(SCENARIO, sort=False):
        lines = of_scenario.drop_duplicates("rule").set_index("rule")
        lines = lines[["seed", *SCENARIO, "selected"]].join(_means(of_scenario))
        lines = lines.join(_worst_cases(scenario, lines.index, outcomes, groups))
        lines = lines.join(_areas(of_scenario))
        lines = lines.join(_robustness(lines.clean, lines.worst))
        lines = lines.join(_corruption_errors(of_scenario, 1 - lines.clean.dropna()))
        # Only columns of objects keep None and bools as they are.
        lines = lines.reset_index().reindex(columns=Summary._fields).astype(object)
        records = lines.where(lines.notna(), None).to_dict("records")
        summaries += [Summary(**record) for record in records]
    return summaries


def compare(
    seed: int, rows: Sequence[Row], outcomes: Outcomes, groups: NDArray[np.int32]
) -> list[Comparison]:
    """Compares every rule's chosen parameters with those of globally scaled fusion.

    Args:
      seed: of the rows.
      rows: of one seed.
      outcomes: of `measure.evaluate`.
      groups: (N,) or (N, G), of the test rows, see `intervals`.

    Returns:
      The lines; none where validation data did not choose parameters of scaled fusion.
    """
    lines: list[Comparison] = []
    frame = to_frame(rows, Row._fields)
    # Corruptions have no target; of attacks, the worst case alone is compared.
    compared = frame.perturbation.isin(["clean", WORST_ATTACK, *CORRUPTIONS])
    frame = frame[compared & frame.selected.ne(False)]
    for (threat_model, perturbed), of_scenario in frame.groupby(SCENARIO, sort=False):
        chosen = of_scenario.rule[of_scenario.selected.eq(True)]
        baseline = next((rule for rule in chosen if isinstance(rule, fusion.Scaled)), None)
        if baseline is None:
            continue
        rules = [
            rule
            for rule in of_scenario.rule.unique()
            if rule != baseline and not isinstance(rule, Unimodal)
        ]
        for rule, perturbation in itertools.product(rules, of_scenario.perturbation.unique()):
            key = (threat_model, perturbed, perturbation)
            severities = (0,) if perturbation == "clean" else SEVERITIES
            a, b = (
                np.stack([outcomes[*key, s, r] for s in severities], axis=1)
                for r in (rule, baseline)
            )
            if perturbation != "clean":
                a, b = (np.column_stack([x, x.mean(axis=1)]) for x in (a, b))
            interval = paired_bootstrap_interval(a, b, groups[: len(a)])
            lines += [
                Comparison(
                    *(seed, threat_model, perturbed, perturbation, severity),
                    *(rule, baseline),
                    *(float(mean), float(low), float(high)),
                )
                for severity, mean, low, high in zip((*severities, None), *interval, strict=False)
            ]
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


def _means(rows: Frame) -> Frame:
    """Mean accuracies of each rule."""
    names = rows.rule.map(lambda rule: rule.name)
    is_linf = rows.perturbation.isin(LINF_ATTACKS)
    averaged = {
        "clean": rows.perturbation == "clean",
        "corruptions": rows.perturbation.isin(CORRUPTIONS),
        "transfer": is_linf & (rows.attack_target == OWN.rule.name),
        "adaptive": is_linf & (rows.attack_target == names),
    }
    accuracies = {name: rows.accuracy.where(chosen) for name, chosen in averaged.items()}
    accuracies["certified"] = rows.certified.astype(float)
    return pd.DataFrame(accuracies).groupby(rows.rule, sort=False).mean()


def _worst_cases(
    scenario: Any, rules: Iterable[Rule], outcomes: Outcomes, groups: NDArray[np.int32]
) -> Frame:
    """Means over severities with intervals: the same rows are attacked at every severity."""
    intervals: dict[Rule, metrics.BootstrapInterval] = {}
    for rule in rules:
        keys = [(*scenario, WORST_ATTACK, severity, rule) for severity in SEVERITIES]
        correct = [outcomes[key] for key in keys if key in outcomes]
        if correct:
            values = np.mean(correct, axis=0)
            intervals[rule] = bootstrap_interval(values, groups[: len(values)])
    return _figures(intervals, "worst", "worst_low", "worst_high")


def _areas(rows: Frame) -> Frame:
    """Areas under the curves of rules that were attacked at every severity."""
    epsilons = (0.0, *STRENGTHS[LINF_ATTACKS[0]])
    rows = rows[rows.perturbation.isin(["clean", WORST_ATTACK])]
    curves = rows.pivot(index="rule", columns="severity", values="accuracy")
    curves = curves.reindex(columns=range(len(epsilons))).dropna()
    areas: dict[Rule, Sequence[float]] = {}
    for rule, curve in curves.T.items():
        area, beyond = metrics.robustness_curve_area(epsilons, curve), np.nan
        if _STATISTICAL in curves.index:
            beyond = metrics.effective_curve_area(epsilons, curve, curves.loc[_STATISTICAL])
        areas[rule] = area, beyond
    return _figures(areas, "curve_area", "effective_area")


def _robustness(clean: Frame, worst: Frame) -> Frame:
    """Relative and effective robustness of the rules of one threat model and modality."""
    worst = worst.where(clean.notna())
    found = pd.DataFrame({"relative_robustness": worst - worst.get(_STATISTICAL, np.nan)})
    # A line needs two different clean accuracies, and logits need accuracies within (0, 1).
    has_logit = clean.between(0, 1, "neither") & worst.notna()
    unremedied = has_logit & worst.between(0, 1, "neither")
    unremedied &= clean.index.map(lambda rule: rule.kind).isin(_WITHOUT_REMEDY)
    if clean[unremedied].nunique() > 1:
        baseline_fn = metrics.make_baseline_fn(clean[unremedied], worst[unremedied])
        found.loc[has_logit, "effective_robustness"] = metrics.effective_robustness(
            clean[has_logit], worst[has_logit], baseline_fn
        )
    return found


def _corruption_errors(rows: Frame, clean_errors: Frame) -> Frame:
    """Errors relative to the reference's, over corruptions that degrade it."""
    rows = rows[rows.perturbation.isin(CORRUPTIONS) & rows.rule.isin(clean_errors.index)]
    errors = {
        rule: 1 - of_rule.pivot(index="perturbation", columns="severity", values="accuracy")
        for rule, of_rule in rows.groupby("rule", sort=False)
    }
    if _STATISTICAL not in errors:
        return pd.DataFrame()
    reference, clean_reference = errors[_STATISTICAL], clean_errors[_STATISTICAL]
    degrades = (reference - clean_reference).sum(axis=1) > _ROUNDING
    if not degrades.any():
        return pd.DataFrame()
    found: dict[Rule, Sequence[float]] = {}
    for rule, e in errors.items():
        pair = e[degrades], reference[degrades]
        relative = metrics.relative_mean_corruption_error(
            *pair, clean_errors[rule], clean_reference
        )
        found[rule] = metrics.mean_corruption_error(*pair), relative
    return _figures(found, "mce", "relative_mce")


def _figures(of_rules: Mapping[Rule, Sequence[Any]], *columns: str) -> Frame:
    """A line for each rule, of which there may be none."""
    return pd.DataFrame.from_dict(dict(of_rules), "index", float, columns)
