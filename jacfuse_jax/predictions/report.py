"""What is said of a fusion once it is done."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from tabulate import tabulate

from jacfuse_jax import metrics
from jacfuse_jax.fusion import Rule
from jacfuse_jax.predictions.rule import Evaluation
from jacfuse_jax.selection import Choice


class Found(NamedTuple):
    """What some rows add to the report.

    Attributes:
      num_nan: how many have no prediction.
      num_silent: {modality: in how many it says nothing}.
      evaluation: metrics of those in which all say something, if labelled.
    """

    num_nan: int
    num_silent: dict[str, int]
    evaluation: Evaluation | None


def make_report(
    facts: Mapping[str, Any], rule: Rule, choice: Choice | None, found: Sequence[Found]
) -> str:
    """Says what was done, with a line for each prediction where there are labels.

    Args:
      facts: as they are written beside the fused predictions.
      rule: that fused.
      choice: of the rule or its parameters, if there was one.
      found: of all rows.
    """
    said = "statistical fusion, since nothing is perturbed"
    if facts["perturbed"]:
        said = f"perturbed: {', '.join(facts['perturbed'])}; {rule.label}"
    lines = [f"{facts['num_rows']} rows, joined by {facts['joined_by']}; {said}"]
    if facts["rule_from"]:
        lines.append(facts["rule_from"])
    if choice is not None:
        lines += describe_choice(choice)
    if facts["chosen_on"] == "input":
        lines.append(
            "chosen on --input: right only if nothing is perturbed there, and figures are "
            "optimistic then"
        )
    lines += facts["class_remarks"]
    lines += [
        f"no kernel of {name}: its Gram matrix is the identity" for name in facts["identity_gram"]
    ]
    lines += [
        f"{name} is missing in {count} rows, which are fused without it"
        for name, count in facts["num_missing"].items()
        if count
    ]
    for name in facts["input"]:
        num_silent = sum(each.num_silent[name] for each in found)
        if num_silent:
            then = "; it counts as the class prior there" if name in facts["perturbed"] else ""
            lines.append(
                f"{name} says nothing in {num_silent} rows, of +inf or nothing finite{then}"
            )
    num_nan = sum(each.num_nan for each in found)
    if num_nan:
        lines.append(
            f"{num_nan} rows have no prediction: a trusted modality says nothing, or no class is "
            "left"
        )
    evaluations = [each.evaluation for each in found if each.evaluation]
    total: Evaluation | None = None
    if evaluations:
        total = jax.tree.map(lambda *sums: sum(sums), *evaluations)
    if total is not None and total.result.num_examples:
        num_counted = int(total.result.num_examples)
        if num_counted < facts["num_rows"]:
            lines.append(
                f"figures are of {num_counted} rows, which have labels and no modality that says "
                "nothing"
            )
        unimodal = {name: total.unimodal[name] for name in facts["input"]}  # as they were given
        rows = {**unimodal, "statistical fusion": total.statistical, "result": total.result}
        headers = ["", "accuracy in %", "95% interval", "NLL"]
        body = [[name, *_cells(metrics.finalise(sums))] for name, sums in rows.items()]
        if any(facts["num_missing"].values()):
            headers.append("rows")
            for line, sums in zip(body, rows.values(), strict=True):
                line.append(str(int(sums.num_examples)))
        lines += ["", tabulate(body, headers, tablefmt="github", disable_numparse=True), ""]
    return "\n".join(lines)


def describe_choice(choice: Choice) -> list[str]:
    """What a choice costs and what it buys, beside what anybody would do; lines of text.

    Args:
      choice: of a rule.
    """
    share = 100 * choice.share
    rows = {f"chosen: {choice.rule.label}": choice.worth}
    rows |= {
        f"for comparison: {_NAMES.get(rule.label, rule.label)}": worth
        for rule, worth in choice.baselines.items()
        if rule != choice.rule
    }
    how = "whatever they say" if choice.against == "anything" else "in the worst of several faults"
    said = (
        f"for {share:g}% of inputs whose perturbed modalities fail, {how}, out of "
        f"{choice.num_candidates} rules; accuracy on the rows that it was chosen on, in %:"
    )
    table = [[name, *(f"{100 * x:.2f}" for x in worth)] for name, worth in rows.items()]
    headers = ["", "clean", f"worst ({choice.worst_case})", f"expected at {share:g}%"]
    return [
        said,
        "",
        tabulate(table, headers, tablefmt="github", disable_numparse=True),
        "",
        f"95% interval of what is expected: [{100 * choice.low:.2f}, {100 * choice.high:.2f}]",
    ]


_NAMES = {"cascade c=0 t=1": "trusted modalities alone"}


def _cells(measured: metrics.ClassificationMetrics) -> list[str]:
    """Accuracy, its interval, negative log-likelihood."""
    accuracy, low, high = (100 * share for share in measured[:3])
    return [f"{accuracy:.2f}", f"[{low:.2f}, {high:.2f}]", f"{measured.nll:.4f}"]
