"""Chosen rules as JSON, which programs and people hand on.

{"schema": 1, "chosen": [{"suspect", "perturbed", "share", "against", "rule", ...}, ...], ...}
"""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from jacfuse_jax.fusion import RULES, Rule, rule_from_json
from jacfuse_jax.selection._choose import Choice
from jacfuse_jax.selection._measure import Against
from jacfuse_jax.selection._suspects import Suspects

SCHEMA = 1
"""Of the JSON."""
_ROUNDING = 1e-9
_FIELDS = {
    "perturbed": list,
    "share": int | float,
    "against": str,
    "rule": dict,
    "expected": int | float,
}


class ChosenRule(NamedTuple):
    """A rule that `read_chosen` returns.

    Attributes:
      rule: with its parameters.
      perturbed: the modalities that it is to believe perturbed; None: the JSON does not say.
      remark: what it was chosen for, and what is expected of it.
    """

    rule: Rule
    perturbed: tuple[str, ...] | None
    remark: str


def choice_to_dict(choice: Choice) -> dict[str, Any]:
    """What a rule was chosen for, and what is expected of it and of what anybody would do.

    Args:
      choice: of the rule.

    Returns:
      Texts, numbers and dictionaries of them.
    """
    return {
        "share": choice.share,
        "against": choice.against,
        "expected": choice.worth.expected,
        "low": choice.low,
        "high": choice.high,
        "clean": choice.worth.clean,
        "worst": choice.worth.worst,
        "worst_case": choice.worst_case,
        "baselines": {rule.label: worth._asdict() for rule, worth in choice.baselines.items()},
        "num_candidates": choice.num_candidates,
    }


def chosen_to_json(choices: Sequence[tuple[Suspects, Choice]], facts: Mapping[str, Any]) -> str:
    """Chosen rules as JSON, for `read_chosen`.

    Args:
      choices: what may fail, and what was chosen for it.
      facts: what else there is to say; `classes`, if given, is a list that must be that of readers.
    """
    entries = [
        {
            "suspect": suspects.name,
            "perturbed": suspects.perturbed,
            "rule": json.loads(choice.rule.to_json()),
            **choice_to_dict(choice),
        }
        for suspects, choice in choices
    ]
    return json.dumps({"schema": SCHEMA, "chosen": entries, **facts}, indent=2)


def read_chosen(
    text: str,
    *,
    modalities: Sequence[str],
    classes: Sequence[Hashable] | None = None,
    perturbed: Sequence[str] = (),
    share: float | None = None,
    against: Against | None = None,
) -> ChosenRule:
    """Reads a rule from JSON: one that `Rule.to_json` wrote, or one of `chosen_to_json`.

    Args:
      text: JSON.
      modalities: that there are.
      classes: their names, in order; None where they have none.
      perturbed: the modalities that it must be for; none: whichever the JSON says.
      share: of attacks, that it must be for; None: the only one that fits otherwise.
      against: likewise.

    Raises:
      ValueError: it is no JSON, none of rules, or of another schema, none or more than one fits, a
        rule is none that is known or has a modality that there is not, or rules were chosen for
        other classes.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"no JSON ({error}); give a rule, or chosen.json") from error
    if not isinstance(content, dict) or not ({"chosen", "rule"} & content.keys()):
        raise ValueError("holds neither `rule` nor `chosen`; give a rule, or chosen.json")
    schema = content.get("schema")
    if schema != SCHEMA:
        is_newer = isinstance(schema, int) and schema > SCHEMA
        remedy = "a newer jacfuse_jax reads it" if is_newer else "write it again"
        raise ValueError(f"of schema {schema!r}, not {SCHEMA}: {remedy}")
    if "chosen" not in content:
        return ChosenRule(rule_from_json(text, RULES), None, "")
    entries = _entries(content["chosen"])
    wanted = {"perturbed": sorted(perturbed) or None, "share": share, "against": against}
    found = [entry for entry in entries if _fits(entry, wanted)]
    if len(found) != 1:
        listed = "; ".join(
            f"perturbed={','.join(entry['perturbed'])} attack_share={entry['share']:g} "
            f"against={entry['against']}"
            for entry in entries
        )
        number = f"{len(found)}" if found else "none"
        raise ValueError(f"{number} of its rules fit; ask for one of: {listed}")
    (entry,) = found
    unknown = sorted(set(entry["perturbed"]) - set(modalities))
    if unknown:
        raise ValueError(
            f"a rule was chosen for the modality {unknown[0]}, and there are only "
            f"{', '.join(modalities)}"
        )
    own = content.get("classes")
    if own is not None and classes is not None and own != list(classes):
        raise ValueError(
            "rules were chosen for other classes, or another order of them; choose for these"
        )
    remark = (
        f"chosen for a share of {entry['share']:g} against {entry['against']}, "
        f"{100 * entry['expected']:.2f}% expected"
    )
    rule = rule_from_json(json.dumps(entry["rule"]), RULES)
    return ChosenRule(rule, tuple(entry["perturbed"]), remark)


def _entries(chosen: Any) -> list[dict[str, Any]]:
    """The rules that were chosen; raises where an entry is none."""
    entries: list[Any] = chosen if isinstance(chosen, list) else []
    are_rules = [
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), kind) for name, kind in _FIELDS.items())
        for entry in entries
    ]
    if not are_rules or not all(are_rules):
        raise ValueError(f"`chosen` is no list of {', '.join(_FIELDS)}; write it again")
    return entries


def _fits(entry: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(
        value is None
        or (
            math.isclose(entry[name], value, abs_tol=_ROUNDING)
            if name == "share"
            else (sorted(entry[name]) if name == "perturbed" else entry[name]) == value
        )
        for name, value in wanted.items()
    )
