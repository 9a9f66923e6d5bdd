"""Figures of what holds whatever a modality says, or however it fails."""

from experiments.reports.page.charts import draw_lines, draw_points
from experiments.reports.page.choices import WITHOUT, Choice
from experiments.reports.page.estimates import Estimate, percent
from experiments.reports.page.files import Run, estimate, label_of, stress_label_of
from experiments.reports.page.series import Series, described_points
from experiments.reports.page.svg import Drawing, draw
from jacfuse_jax.selection import FAULTS

_CRITERIA = {"confidence": "by confidence", "certified": "by certificate"}


def certified_figure(run: Run, corrupted: str, name: str) -> Drawing:
    """Certified against clean accuracy.

    Args:
      run: with certified.csv.
      corrupted: the modality that may say anything.
      name: of the figure.
    """
    lines = [line for line in run.certified if line["corrupted"] == corrupted]
    series = [
        Series(
            label_of(line) if line["selected"] == "True" else "",
            line["method"],
            [float(line["clean"])],
            [estimate(line, "certified")],
            [estimate(line, "clean")],
        )
        for line in lines
    ]
    seen = described_points(series, "certified")
    return draw(
        name,
        f"{corrupted} may say anything: certified against clean accuracy",
        "Coloured: the parameters that validation rows chose of every rule, with 95% intervals. "
        "Grey: all other parameters.",
        f"Points: certified accuracy against accuracy on clean rows. {seen}.",
        lambda axes: draw_points(
            axes,
            series,
            x_label="accuracy on clean rows, in %",
            y_label="certified accuracy, in %",
        ),
    )


def stress_figure(run: Run, chosen: Choice, name: str) -> Drawing:
    """Worst case against clean accuracy of rules for saved predictions.

    Args:
      run: with stress.csv.
      chosen: what is chosen for what may fail.
      name: that those of the figures start with.
    """
    against = run.chosen["chosen"][0]["against"]
    columns = list(FAULTS) if against == "faults" else ["any_input"]
    series: list[Series] = []
    simple = {"statistical": "statistical", WITHOUT: "drop_suspect"}
    for line in run.stress:
        values = [float(line[column]) for column in columns if line.get(column)]
        if line["suspect"] != chosen.perturbed or not values:
            continue
        full = stress_label_of(line)
        shares = [float(share) for share in line["share_best"].split()]
        is_best = any(abs(share - chosen.share) < 1e-9 for share in shares)
        clean = estimate(line, "clean")
        label = "without it" if full == WITHOUT else full
        series.append(
            Series(
                label if is_best or full in simple else "",
                simple.get(full, line["rule"]),
                [clean.mean],
                [Estimate(min(values))],
                [clean],
                is_best,
            )
        )
    seen = described_points(series, "in the worst case")
    return draw(
        name,
        f"{chosen.perturbed} fails: worst case against clean accuracy",
        f"Coloured: simple rules, and in bold the one chosen for {100 * chosen.share:g}% of "
        "failures, with 95% intervals of clean accuracy. Grey: all other rules.",
        f"Points: accuracy in the worst case against accuracy while nothing fails. {seen}.",
        lambda axes: draw_points(
            axes,
            series,
            x_label="accuracy while nothing fails, in %",
            y_label="accuracy in the worst case, in %",
        ),
    )


def coverage_figure(run: Run, chosen: Choice, name: str) -> list[Drawing]:
    """Accuracy of the rows that are decided, the surest ones first; nothing without coverage.csv.

    Args:
      run: with stress.csv.
      chosen: what is chosen for what may fail.
      name: of the figure.
    """
    found: dict[str, dict[float, Estimate]] = {}
    for line in run.coverage:
        if line["suspect"] == chosen.perturbed and stress_label_of(line) in chosen.labels:
            of_criterion = found.setdefault(line["criterion"], {})
            of_criterion[100 * float(line["coverage"])] = Estimate(float(line["accuracy"]))
    if not found:
        return []
    series = [
        Series(
            _CRITERIA.get(criterion, criterion),
            chosen.rules[0],
            [*curve],
            [*curve.values()],
            is_chosen=criterion == "confidence",
        )
        for criterion, curve in found.items()
    ]
    ticks = {float(x): f"{x}%" for x in range(0, 101, 20)}
    seen = "; ".join(
        f"{each.label} {percent(each.y[0].mean)} of the surest {each.x[0]:.0f}% of rows, "
        f"{percent(each.y[-1].mean)} of {each.x[-1]:.0f}%"
        for each in series
    )
    return [
        draw(
            name,
            f"{chosen.perturbed} may fail: accuracy of the surest rows",
            f"{chosen.label} while nothing fails: rows that are not sure are left to somebody "
            "else, by confidence or, of rules that have one, by certificate.",
            f"Lines: accuracy against the share of rows that are decided. {seen}.",
            lambda axes: draw_lines(
                axes,
                series,
                x_label="share of rows that are decided",
                y_label="accuracy of these, in %",
                ticks=ticks,
            ),
        )
    ]
