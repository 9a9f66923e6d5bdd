"""What `experiments.certified` measures."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tabulate import tabulate

from experiments import files, radii, robust_fusion_run, selection
from experiments.config import Config
from experiments.methods import Method, Parameters
from experiments.models import Rows
from experiments.prepared import make_rows
from jacfuse_jax import certificates, fusion, metrics

_BOOTSTRAP_SEED = 0


class Row(NamedTuple):
    """One line of certified.csv.

    Attributes:
      corrupted: the modality that may say anything.
      method: "statistical", "contaminated" or "cascade".
      contamination: of contaminated fusion.
      confidence: of cascades.
      selected: whether validation data chose it.
      clean: accuracy on clean test rows, with its 95% bootstrap interval over groups.
      certified: share of test rows that are right whatever the modality says, likewise.
    """

    dataset: str
    seed: int
    corrupted: str
    method: str
    contamination: float | None
    confidence: float | None
    selected: bool
    clean: float
    clean_low: float
    clean_high: float
    certified: float
    certified_low: float
    certified_high: float
    num_examples: int


class _Rule(NamedTuple):
    method: str
    contamination: float | None = None
    confidence: float | None = None


class _Outcome(NamedTuple):
    """Rows that are right, and right and certified; (N,) each."""

    clean: NDArray[np.bool_]
    certified: NDArray[np.bool_]


def run(config: Config) -> list[Row]:
    """Measures, prints a table and writes the files.

    Args:
      config: settings of the run whose classifiers are fused.

    Returns:
      The rows of certified.csv.
    """
    dataset = robust_fusion_run.load(config, classifiers_only=True)
    prepared = robust_fusion_run.prepare(config, dataset, config.seed)
    models = prepared.models
    validation, test = (
        make_rows(config, models, dataset.splits[name]) for name in ("validation", "test")
    )
    rules = [
        _Rule("statistical"),
        *(_Rule("contaminated", contamination=e) for e in config.contaminations),
        *(_Rule("cascade", confidence=c) for c in config.confidences),
    ]
    class_prior = models.evidence.class_prior
    rows: list[Row] = []
    found_radii: list[radii.Row] = []
    for corrupted in config.perturbed:
        measure = partial(_measure, class_prior=class_prior, corrupted=corrupted)
        selected = _select(
            {rule: measure(rule, validation) for rule in rules}, config.max_clean_loss
        )
        for rule in rules:
            outcome = measure(rule, test)
            clean, certified = (
                metrics.bootstrap_interval(values, _BOOTSTRAP_SEED, groups=test.groups)
                for values in outcome
            )
            rows.append(
                Row(
                    config.dataset,
                    config.seed,
                    corrupted,
                    *rule,
                    rule in selected,
                    *(float(clean.mean), float(clean.low), float(clean.high)),
                    *(float(certified.mean), float(certified.low), float(certified.high)),
                    len(test.labels),
                )
            )
        chosen = [rule.contamination for rule in selected if rule.contamination is not None]
        if models.classifiers["standard"][corrupted].lipschitz_fn is not None:
            attacked = test.first(config.num_attack)
            found_radii += radii.measure(config, models, attacked, corrupted, chosen)
    folder = Path(config.workdir)
    files.write_measured(Row._fields, rows, folder / "certified.csv")
    files.write_atomically(folder / "figures" / "certified.png", partial(_draw, rows))
    files.write_measured(radii.Row._fields, found_radii, folder / "radii.csv")
    print(make_table(rows))
    if found_radii:
        print("\n" + radii.make_table(found_radii))
    else:
        print("\nno radii: nothing bounds the Lipschitz constants of these classifiers")
    for name in ("certified.csv", "radii.csv", "figures/certified.png"):
        print(f"wrote {folder / name}")
    return rows


def make_table(rows: Sequence[Row]) -> str:
    """A table in Markdown, in %, what validation data chose with a star.

    Args:
      rows: of certified.csv.
    """
    body = [
        [
            row.corrupted,
            _label(row) + (" *" if row.selected else ""),
            f"{100 * row.clean:.1f}",
            "{:.1f} [{:.1f}, {:.1f}]".format(
                *(100 * x for x in (row.certified, row.certified_low, row.certified_high))
            ),
        ]
        for row in rows
    ]
    return tabulate(
        body,
        ["corrupted", "method", "clean", "certified"],
        tablefmt="github",
        colalign=("left", "left", "right", "right"),
        disable_numparse=True,
    )


def _measure(rule: _Rule, rows: Rows, *, class_prior: jax.Array, corrupted: str) -> _Outcome:
    logits = {m: jnp.asarray(o.logits) for m, o in rows.outputs["standard"].items()}
    if rule.method == "statistical":  # an unbounded influence: nothing is certified
        label = np.asarray(fusion.statistical_fusion(logits, class_prior).argmax(axis=-1))
        return _Outcome(label == rows.labels, np.zeros(len(label), bool))
    found = _certify(
        logits,
        class_prior,
        contamination=rule.contamination or 0.0,
        confidence=1.0 if rule.confidence is None else rule.confidence,
        corrupted=corrupted,
        perturbed=corrupted,
    )
    is_correct = np.asarray(found.label) == rows.labels
    return _Outcome(is_correct, is_correct & np.asarray(found.certified))


_certify = jax.jit(certificates.certify_modality, static_argnames=("corrupted", "perturbed"))


def _select(outcomes: dict[_Rule, _Outcome], max_clean_loss: float) -> set[_Rule]:
    """Of every method, the rule that certifies most of those that are accurate enough."""
    clean = {rule: outcome.clean.mean() for rule, outcome in outcomes.items()}
    certified = {rule: outcome.certified.mean() for rule, outcome in outcomes.items()}
    least = clean[_Rule("statistical")] - max_clean_loss - selection.ROUNDING
    return {
        selection.choose(
            [rule for rule in outcomes if rule.method == method], clean, certified, least
        )
        for method in dict.fromkeys(rule.method for rule in outcomes)
    }


def _label(row: Row) -> str:
    parameters = Parameters(contamination=row.contamination, confidence=row.confidence)
    return Method(row.method, parameters).label


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Certified against clean accuracy, a panel for every corrupted modality."""
    panels = list(dict.fromkeys(row.corrupted for row in rows))
    figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        for method, marker in (("statistical", "s"), ("contaminated", "o"), ("cascade", "D")):
            points = sorted(
                (row for row in rows if (row.corrupted, row.method) == (panel, method)),
                key=lambda row: row.certified,
            )
            (line,) = axis.plot(
                [100 * row.clean for row in points],
                [100 * row.certified for row in points],
                marker=marker,
                markersize=4,
                label=method,
            )
            chosen: Any = [(100 * r.clean, 100 * r.certified) for r in points if r.selected]
            axis.plot(*zip(*chosen, strict=True), "*", ms=13, color=line.get_color())
        axis.set(title=f"{panel} may say anything", xlabel="clean accuracy in %")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("certified accuracy in %")
    axes.flat[0].legend(loc="lower left")
    figure.savefig(path)
