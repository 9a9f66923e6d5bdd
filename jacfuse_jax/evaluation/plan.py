"""What an evaluation does: which rules meet in a scenario, and which attacks each of them meets."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from jacfuse_jax import fusion
from jacfuse_jax.evaluation.names import APGD_ENSEMBLE, ATTACKS
from jacfuse_jax.evaluation.rules import Unimodal, is_recalibrated
from jacfuse_jax.evaluation.targets import MAX_TOWARDS, OWN, Step, Target, applies
from jacfuse_jax.evaluation.threat_models import Scenario
from jacfuse_jax.fusion import Rule

SEVERITIES = (1, 2, 3, 4, 5)
_SURROGATES = ("stop_gradient", "iterated")
_STATISTICAL = Target(fusion.Statistical())


class Contest(NamedTuple):
    """The rules of one belief.

    Attributes:
      rules: all that are evaluated.
      selected: those whose parameters validation data chose; empty where nothing was chosen.
    """

    rules: list[Rule]
    selected: frozenset[Rule]

    def of(self, scenario: Scenario) -> list[Rule]:
        """The rules to evaluate in a scenario.

        The whole trade-off where the defender knows what is perturbed; else what was chosen.

        Args:
          scenario: of this belief.
        """
        return self.rules if scenario.threat_model == "known" else self.chosen

    @property
    def chosen(self) -> list[Rule]:
        """Rules without parameters, and with those that were chosen; all where nothing was."""
        if not self.selected:
            return self.rules
        return [rule for rule in self.rules if not rule.searched or rule in self.selected]


Contests = Mapping[tuple[str, ...], Contest]


class Plan(NamedTuple):
    """Everything that is perturbed, and what it is measured on; see `make_plan`.

    Attributes:
      scenarios: threat models on modalities.
      contests: {believed modalities: rules} of all scenarios.
      perturbations: "clean" and whatever else, in the order of the results.
      found: {(attacked modalities, perturbation, severity): its steps}; one for every target of an
        attack, the own classifiers' first, or one corruption.
    """

    scenarios: Sequence[Scenario]
    contests: Contests
    perturbations: Sequence[str]
    found: Mapping[tuple[tuple[str, ...], str, int], Sequence[Step]]

    @property
    def steps(self) -> list[Step]:
        """All steps, each once."""
        return list(dict.fromkeys(step for steps in self.found.values() for step in steps))

    def steps_of(self, scenario: Scenario, perturbation: str, severity: int) -> list[Step]:
        """The steps that a scenario is measured on; none where the perturbation does not apply.

        Args:
          scenario: of the plan.
          perturbation: not "clean".
          severity: 1 to 5.
        """
        keys = [(attacked, perturbation, severity) for attacked in scenario.alternatives]
        if any(key not in self.found for key in keys):
            return []
        return [step for key in keys for step in self.found[key]]


def make_plan(
    scenarios: Sequence[Scenario],
    contests: Contests,
    perturbations: Sequence[str],
    kinds: Mapping[str, str],
    *,
    num_classes: int,
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> Plan:
    """Plans an evaluation.

    Attacked are the modalities' own classifiers, by "apgd_ensemble" also towards every wrong class,
    or the nine likeliest; statistical fusion, which is robust fusion without its recalibration;
    every fused rule under every belief; and of recalibrated rules the surrogates "stop_gradient"
    and "iterated", where validation data chose parameters of those only.

    Args:
      scenarios: threat models on modalities.
      contests: {believed modalities: rules} of all scenarios.
      perturbations: of `names.PERTURBATIONS`; those that do not apply are left out.
      kinds: of modalities, see `corruptions.applies`.
      num_classes: K.
      shapes: of one input of each modality, where they are known.

    Returns:
      The plan.
    """
    found: dict[tuple[tuple[str, ...], str, int], list[Step]] = {}
    for attacked in dict.fromkeys(a for scenario in scenarios for a in scenario.alternatives):
        targets = _targets(attacked, scenarios, contests)
        for perturbation in perturbations:
            if perturbation == "clean" or not applies(perturbation, attacked, kinds, shapes):
                continue
            aimed = [OWN._replace(towards=r) for r in range(1, min(num_classes, MAX_TOWARDS + 1))]
            chosen: Sequence[Target | None] = targets if perturbation in ATTACKS else [None]
            if perturbation == APGD_ENSEMBLE:
                chosen = [OWN, *aimed, *targets[1:]]
            for severity in SEVERITIES:
                found[attacked, perturbation, severity] = [
                    Step(attacked, perturbation, severity, target) for target in chosen
                ]
    return Plan(scenarios, contests, perturbations, found)


def target_of(rule: Rule, believed: tuple[str, ...]) -> Target:
    """The attack on a rule; beliefs do not matter to rules without parameters.

    Args:
      rule: to attack.
      believed: modalities that it believes perturbed.
    """
    return Target(rule, believed if rule.searched else ())


def _targets(
    attacked: tuple[str, ...], scenarios: Sequence[Scenario], contests: Contests
) -> list[Target]:
    """What is attacked where these modalities are perturbed, each target once."""
    targets = [OWN, _STATISTICAL]
    for scenario in scenarios:
        if attacked not in scenario.alternatives:
            continue
        contest = contests[scenario.believed]
        for rule in contest.of(scenario):
            if isinstance(rule, Unimodal):
                continue
            target = target_of(rule, scenario.believed)
            targets.append(target)
            if is_recalibrated(rule) and rule in (contest.selected or contest.rules):
                targets += [target._replace(surrogate=surrogate) for surrogate in _SURROGATES]
    return list(dict.fromkeys(targets))
