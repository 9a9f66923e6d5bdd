"""Rules that validation rows chose for shares of attacks, and what simple rules are worth."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.reports.page.estimates import Estimate, pool
from experiments.reports.page.files import Line, Run
from jacfuse_jax.fusion import rule_from_json

STATISTICAL, SCALING, DROPPING = "statistical fusion", "scaling", "dropping"
BASELINES = (STATISTICAL, SCALING, DROPPING)
"""Simple rules that choices are compared with."""
_OF_LABEL = {"statistical": STATISTICAL, "scaled": SCALING, "drop_suspect": DROPPING}
WITHOUT = "cascade c=0 t=1"
"""What drop_suspect is called among saved predictions."""


class Baseline(NamedTuple):
    """A simple rule beside a choice.

    Attributes:
      label: with its parameters; of several seeds all there are.
      worth: as in `Choice`, without an interval, which no file has.
      advantage: how much more the chosen rule is worth.
    """

    label: str
    worth: float
    advantage: Estimate


class Choice(NamedTuple):
    """A rule for a share of attacks.

    Attributes:
      perturbed: the modality that is attacked or fails.
      share: s, of inputs.
      seeds: of which there are lines.
      labels: the rule; of several seeds all there are.
      worth: (1 - s) clean + s worst.
      baselines: {one of the names above: the simple rule}.
    """

    perturbed: str
    share: float
    seeds: tuple[str, ...]
    labels: tuple[str, ...]
    worth: Estimate
    baselines: dict[str, Baseline]

    @property
    def label(self) -> str:
        """The rule for people to read."""
        return ", ".join(self.labels)

    @property
    def rules(self) -> list[str]:
        """Names of the rules, without parameters."""
        return list(dict.fromkeys(label.split()[0] for label in self.labels))


def choices_of(run: Run, *, by_seed: bool = False) -> list[Choice]:
    """What was chosen in a run, by modality and share.

    Args:
      run: read.
      by_seed: a choice for every seed, in place of one for all of them.
    """
    found = [*_of_envelope(run.envelope), *map(_of_entry, run.chosen.get("chosen", []))]
    if by_seed:
        return found
    together: dict[tuple[str, float], list[Choice]] = {}
    for choice in found:
        together.setdefault((choice.perturbed, choice.share), []).append(choice)
    return [_pool(of_seeds) for of_seeds in together.values()]


def stated(run: Run, choices: Sequence[Choice]) -> list[Choice]:
    """Choices for the share that the command stated; of saved predictions, for that nearest 10%.

    Args:
      run: that they are of.
      choices: of the run.
    """
    share = run.config.get("flags", {}).get("attack_share")
    if run.chosen:
        share = min((c.share for c in choices), key=lambda each: abs(each - 0.1), default=None)
    return [c for c in choices if c.share == share]


def _of_envelope(lines: Sequence[Line]) -> list[Choice]:
    """Choices of envelope.csv, one a seed."""
    together: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        together.setdefault((line["perturbed"], line["share"], line["seed"]), []).append(line)
    choices: list[Choice] = []
    for (perturbed, share, seed), of_choice in together.items():
        first = of_choice[0]
        worth = Estimate(*(float(first[name]) for name in ("expected", "low", "high")))
        baselines: dict[str, Baseline] = {}
        for line in of_choice:
            names = ("difference", "difference_low", "difference_high")
            advantage = Estimate(*(float(line[name]) for name in names))
            name = _OF_LABEL.get(line["baseline"].split()[0], line["baseline"])
            baselines[name] = Baseline(line["baseline"], worth.mean - advantage.mean, advantage)
        labels = (first["method"],)
        choices.append(Choice(perturbed, float(share), (seed,), labels, worth, baselines))
    return choices


def _of_entry(entry: dict[str, Any]) -> Choice:
    """A choice of chosen.json."""
    label = label_of_entry(entry)
    worth = Estimate(entry["expected"], entry["low"], entry["high"])
    baselines: dict[str, Baseline] = {}
    simple: dict[str, dict[str, float]] = entry.get("baselines", {})
    for name, of_rule in simple.items():
        advantage = Estimate(worth.mean - of_rule["expected"])
        called = DROPPING if name == WITHOUT else _OF_LABEL.get(name, name)
        baselines[called] = Baseline(name, of_rule["expected"], advantage)
    return Choice(entry["suspect"], entry["share"], ("",), (label,), worth, baselines)


def label_of_entry(entry: dict[str, Any]) -> str:
    """The rule of an entry of chosen.json.

    Args:
      entry: with its "rule".
    """
    return rule_from_json(json.dumps(entry["rule"])).label


def _pool(choices: Sequence[Choice]) -> Choice:
    """One for all seeds."""
    first = choices[0]
    if len(choices) == 1:
        return first
    baselines: dict[str, Baseline] = {}
    for name in first.baselines:
        of_seeds = [c.baselines[name] for c in choices if name in c.baselines]
        baselines[name] = Baseline(
            ", ".join(dict.fromkeys(b.label for b in of_seeds)),
            sum(b.worth for b in of_seeds) / len(of_seeds),
            pool([b.advantage for b in of_seeds]),
        )
    return Choice(
        first.perturbed,
        first.share,
        tuple(seed for choice in choices for seed in choice.seeds),
        tuple(dict.fromkeys(label for choice in choices for label in choice.labels)),
        pool([choice.worth for choice in choices]),
        baselines,
    )
