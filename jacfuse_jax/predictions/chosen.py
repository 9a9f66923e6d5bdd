"""Rules in files: one that `Rule.to_json` wrote, or those that were chosen for shares of attacks.

{"schema": 1, "chosen": [{"suspect", "perturbed", "share", "against", "rule", ...}, ...], ...}
"""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jacfuse_jax.fusion import RULES, Rule, rule_from_json
from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.files import write_atomically
from jacfuse_jax.selection import Against, Choice, Suspects

SCHEMA = 1
"""Of the file."""
_ROUNDING = 1e-9


class ChosenRule(NamedTuple):
    """A rule of a file.

    Attributes:
      rule: with its parameters.
      perturbed: the modalities that it is to believe perturbed; None: the file does not say.
      remark: what it was chosen for, and what is expected of it.
    """

    rule: Rule
    perturbed: tuple[str, ...] | None
    remark: str


def write_chosen(
    path: Path, choices: Sequence[tuple[Suspects, Choice]], facts: Mapping[str, Any]
) -> None:
    """Writes chosen rules; the file has its name only once it is whole.

    Args:
      path: of the file.
      choices: what may fail, and what was chosen for it.
      facts: what else there is to say.
    """
    entries = [
        {
            "suspect": suspects.name,
            "perturbed": suspects.perturbed,
            "rule": json.loads(choice.rule.to_json()),
            **choice_to_json(choice),
        }
        for suspects, choice in choices
    ]
    write_atomically(path, json.dumps({"schema": SCHEMA, "chosen": entries, **facts}, indent=2))


def choice_to_json(choice: Choice) -> dict[str, Any]:
    """What a rule was chosen for, and what is expected of it and of what anybody would do.

    Args:
      choice: of the rule.
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


def read_rule(
    path: Path,
    *,
    modalities: Sequence[str],
    classes: Sequence[Hashable] | None,
    perturbed: Sequence[str] = (),
    share: float | None = None,
    against: Against | None = None,
) -> ChosenRule:
    """Reads a rule from a file.

    Args:
      path: of the file.
      modalities: that there are.
      classes: their names, in order; None where they have none.
      perturbed: the modalities that it must be for; none: whichever the file says.
      share: of attacks, that it must be for; None: the only one of the file.
      against: likewise.

    Raises:
      InputError: there is no such file, it is none of rules, or of another schema, none or more
        than one fits, a rule is none that is known or has a modality that there is not, or rules
        were chosen for other classes.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no JSON ({error}); give a rule, or chosen.json") from error
    if not isinstance(content, dict) or not ({"chosen", "rule"} & content.keys()):
        raise InputError(f"{path} holds neither `rule` nor `chosen`; give a rule, or chosen.json")
    schema = content.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        remedy = "a newer jacfuse_jax reads it" if newer else "write it again"
        raise InputError(f"{path} is of schema {schema!r}, not {SCHEMA}: {remedy}")
    if "chosen" not in content:
        return ChosenRule(_parse(path, content), None, "")
    entries = _entries(path, content["chosen"])
    wanted = {"perturbed": sorted(perturbed) or None, "share": share, "against": against}
    found = [entry for entry in entries if _fits(entry, wanted)]
    if len(found) != 1:
        listed = "; ".join(
            f"--perturbed={','.join(entry['perturbed'])} --attack_share={entry['share']:g} "
            f"--against={entry['against']}"
            for entry in entries
        )
        number = "none" if not found else f"{len(found)}"
        raise InputError(f"{path}: {number} of its rules fit; give one of: {listed}")
    (entry,) = found
    unknown = sorted(set(entry["perturbed"]) - set(modalities))
    if unknown:
        raise InputError(
            f"{path} chose a rule for the modality {unknown[0]}, and there are only "
            f"{', '.join(modalities)}"
        )
    of_file = content.get("classes")
    if of_file is not None and classes is not None and of_file != list(classes):
        raise InputError(
            f"{path}: its rules were chosen for other classes, or another order of them; choose "
            "for these"
        )
    remark = (
        f"chosen for a share of {entry['share']:g} against {entry['against']}, "
        f"{100 * entry['expected']:.2f}% expected"
    )
    return ChosenRule(_parse(path, entry["rule"]), tuple(entry["perturbed"]), remark)


_FIELDS = {
    "perturbed": list,
    "share": int | float,
    "against": str,
    "rule": dict,
    "expected": int | float,
}


def _entries(path: Path, chosen: Any) -> list[dict[str, Any]]:
    """The rules that were chosen; raises where an entry is none."""
    entries: list[Any] = chosen if isinstance(chosen, list) else []
    are_rules = [
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), kind) for name, kind in _FIELDS.items())
        for entry in entries
    ]
    if not are_rules or not all(are_rules):
        raise InputError(f"{path}: `chosen` is no list of {', '.join(_FIELDS)}; write it again")
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


def _parse(path: Path, rule: Mapping[str, Any]) -> Rule:
    """A rule of JSON."""
    try:
        return rule_from_json(json.dumps(rule), RULES)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
