"""Tables of a run in Markdown."""

from collections.abc import Sequence

import pandas as pd
from tabulate import tabulate

from jacfuse_jax import fusion
from jacfuse_jax.evaluation import envelope, shuffled
from jacfuse_jax.evaluation.measure import ENSEMBLE, WORST_ATTACK, Row
from jacfuse_jax.evaluation.names import ATTACKS, CORRUPTIONS
from jacfuse_jax.evaluation.summary import SCENARIO, Comparison, Frame, Summary, to_frame
from jacfuse_jax.evaluation.targets import STRENGTHS
from jacfuse_jax.fusion import Rule

_MAX_CORRUPTION_COLUMNS = 3
_METHOD = ["method", "seed"]


def make_tables(rows: Sequence[Row], summaries: Sequence[Summary]) -> str:
    """Accuracy in percent in Markdown, a table for every threat model and perturbed modality.

    Where validation data chose parameters, only chosen ones are shown. Of several seeds the mean
    and standard deviation are shown; of one, the interval of the worst case.

    Args:
      rows: of all seeds.
      summaries: of the same.
    """
    tables: list[str] = []
    rows_of = to_frame(rows, Row._fields).groupby(SCENARIO)
    for scenario, lines in to_frame(summaries, Summary._fields).groupby(SCENARIO, sort=False):
        threat_model, perturbed = scenario
        measured = rows_of.get_group(scenario)
        # With several seeds the chosen parameters may differ: the rule is what is compared.
        by_name = lines.seed.nunique() > 1
        lines, measured = (_with_methods(frame, by_name) for frame in (lines, measured))
        cells = _shares(lines, measured).groupby("method", sort=False).agg(_percent)
        if "worst case" in cells:
            cells["worst case"] = [_worst(x) for _, x in lines.groupby("method", sort=False)]
        table = tabulate(
            cells.reset_index().to_numpy(),
            ["method", *cells],
            tablefmt="github",
            disable_numparse=True,
            colalign=("left", *("right" for _ in cells)),
        )
        attacked = measured.num_examples[measured.perturbation.isin(ATTACKS)]
        tables.append(
            f"{measured.dataset.iloc[0]}, {perturbed} perturbed, threat model {threat_model} "
            f"(accuracy in %; means over severities; {measured.num_examples.max()} rows, "
            f"{next(iter(attacked), 0)} attacked)\n\n{table}"
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


def make_envelope(lines: Sequence[envelope.Line]) -> str:
    """What chosen rules are worth, and by how much more than baselines, in Markdown.

    Args:
      lines: of all seeds, at least one.
    """
    frame = to_frame(lines, envelope.Line._fields)
    body = []
    for key, chosen in frame.groupby(["perturbed", "share", "seed"], sort=False):
        first = chosen.iloc[0]
        against = {
            baseline.name: _points(baseline, *difference)
            for baseline, *difference in chosen[
                ["baseline", "difference", "difference_low", "difference_high"]
            ].itertuples(index=False)
        }
        worth = f"{100 * first.expected:.1f} [{100 * first.low:.1f}, {100 * first.high:.1f}]"
        names = ("statistical", "scaled", "drop_suspect")
        body.append([*key, first.rule.label, worth, *(against.get(name, "") for name in names)])
    headers = ["perturbed", "share", "seed", "chosen", "worth", "statistical", "scaled", "dropping"]
    return (
        "Rules that validation rows chose for shares of attacks: (1 - share) clean + share worst "
        "case in %, and by how many points that is more than others have, 95% intervals\n\n"
        + tabulate(body, headers, tablefmt="github", disable_numparse=True)
    )


def make_shuffled(lines: Sequence[shuffled.Shuffled]) -> str:
    """What weights per sample are worth, in Markdown.

    Args:
      lines: of all seeds, at least one.
    """
    body = [
        [
            *(x.perturbed, x.seed, x.rule.label),
            *(f"{100 * share:.1f}" for share in (x.accuracy, x.shuffled)),
            f"{100 * x.difference:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]",
        ]
        for x in lines
    ]
    headers = ["corrupted", "seed", "method", "own weights", "of other rows", "difference"]
    return (
        "Accuracy in % under corruptions with the weights that a rule gives every sample, and with "
        "those of other samples in their place; where it is the same they are decoration\n\n"
        + tabulate(body, headers, tablefmt="github", disable_numparse=True)
    )


def _points(baseline: Rule, difference: float, low: float, high: float) -> str:
    """A difference in points, and which parameters it is from."""
    parameters = baseline.label.partition(" ")[2] if isinstance(baseline, fusion.Scaled) else ""
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] {parameters}".strip()


def _with_methods(lines: Frame, by_name: bool) -> Frame:
    """What is shown, each line with its "method": a rule's label or, without parameters, name."""
    lines = lines[lines.selected.ne(False)]
    methods = [
        rule.name if by_name and selected else rule.label
        for rule, selected in zip(lines.rule, lines.selected, strict=True)
    ]
    return lines.assign(method=methods)


def _shares(lines: Frame, rows: Frame) -> Frame:
    """The columns of a table: shares by method and seed, NaN where nothing was measured."""
    lines = lines.set_index(_METHOD)
    rows = rows[rows.attack_target.isna() | rows.attack_target.eq(ENSEMBLE)]
    # Means over severities; of attacks the worst case.
    means = rows.pivot_table("accuracy", _METHOD, "perturbation").reindex(lines.index)
    columns = {"clean": lines.clean}
    corruptions = [name for name in CORRUPTIONS if name in means]
    if len(corruptions) > _MAX_CORRUPTION_COLUMNS:
        columns["corruptions"] = lines.corruptions
    else:
        columns |= {name.replace("_", " "): means[name] for name in corruptions}
    if WORST_ATTACK in means:
        columns |= {"transfer": lines.transfer, "adaptive": lines.adaptive}
        columns["worst case"] = lines.worst
        columns["certified"] = lines.certified
        worst = rows[rows.perturbation == WORST_ATTACK].pivot_table("accuracy", _METHOD, "severity")
        for severity, epsilon in enumerate(STRENGTHS["pgd"], start=1):
            columns[f"ε = {epsilon:g}"] = worst.reindex(lines.index, columns=[severity])[severity]
    others = [name for name in ATTACKS if name in means and STRENGTHS[name] != STRENGTHS["pgd"]]
    return pd.DataFrame(columns | {name: means[name] for name in others})


def _worst(lines: Frame) -> str:
    """The worst case of one method, of one seed with its interval."""
    if len(lines) > 1 or lines.worst.isna().all():
        return _percent(lines.worst)
    ((worst, low, high),) = 100 * lines[["worst", "worst_low", "worst_high"]].to_numpy(float)
    return f"{worst:.1f} [{low:.1f}, {high:.1f}]"


def _percent(shares: Frame) -> str:
    """A share in percent; of several seeds their mean and standard deviation."""
    shares = 100 * shares.dropna()
    if shares.empty:
        return ""
    spread = f" ± {shares.std():.1f}" if len(shares) > 1 else ""
    return f"{shares.mean():.1f}{spread}"
