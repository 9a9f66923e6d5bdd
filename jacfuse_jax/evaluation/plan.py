"""Which methods meet in a scenario, and which attacks each of them meets."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jacfuse_jax.evaluation.methods import RECALIBRATED, Method
from jacfuse_jax.evaluation.names import ATTACKS, GRIDS
from jacfuse_jax.evaluation.targets import OWN, Step, Target, applies
from jacfuse_jax.evaluation.threat_models import Scenario

SEVERITIES = (1, 2, 3, 4, 5)
_SURROGATES = ("stop_gradient", "iterated")
_STATISTICAL = Target(Method("statistical"))


class Contest(NamedTuple):
    """The methods of one belief.

    Attributes:
      methods: all that are evaluated.
      selected: those whose parameters validation data chose; empty where nothing was chosen.
    """

    methods: list[Method]
    selected: frozenset[Method]

    def of(self, scenario: Scenario) -> list[Method]:
        """The methods to evaluate in a scenario.

        The whole trade-off where the defender knows what is perturbed; else what was chosen.

        Args:
          scenario: of this belief.
        """
        if scenario.threat_model == "known" or not self.selected:
            return self.methods
        return [m for m in self.methods if m.rule not in GRIDS or m in self.selected]


Contests = Mapping[tuple[str, ...], Contest]


def list_steps(
    perturbations: Sequence[str], scenarios: Sequence[Scenario], contests: Contests
) -> list[Step]:
    """All steps of an evaluation, each once.

    Args:
      perturbations: of `names.PERTURBATIONS`.
      scenarios: as for `evaluate`.
      contests: as for `evaluate`.
    """
    return list(
        dict.fromkeys(
            step
            for scenario in scenarios
            for attacked in scenario.alternatives
            for perturbation in perturbations
            if perturbation != "clean" and applies(perturbation, attacked)
            for severity in SEVERITIES
            for step in steps_of(attacked, perturbation, severity, scenarios, contests)
        )
    )


def targets_of(
    attacked: tuple[str, ...], scenarios: Sequence[Scenario], contests: Contests
) -> list[Target]:
    """What is attacked where these modalities are perturbed.

    Their own classifiers; statistical fusion, which is robust fusion without its recalibration;
    every fused method under every belief; and of recalibrated methods the surrogates
    "stop_gradient" and "iterated", where validation data chose parameters of those only.

    Args:
      attacked: modalities.
      scenarios: as for `evaluate`.
      contests: as for `evaluate`.

    Returns:
      Each target once; the first is the own classifiers.
    """
    targets = [OWN, _STATISTICAL]
    for scenario in scenarios:
        if attacked not in scenario.alternatives:
            continue
        contest = contests[scenario.believed]
        for method in contest.of(scenario):
            if method.rule.startswith("unimodal:"):
                continue
            target = target_of(method, scenario.believed)
            targets.append(target)
            if method.rule in RECALIBRATED and method in (contest.selected or contest.methods):
                targets += [target._replace(surrogate=surrogate) for surrogate in _SURROGATES]
    return list(dict.fromkeys(targets))


def target_of(method: Method, believed: tuple[str, ...]) -> Target:
    """The attack on a method; beliefs do not matter to rules without parameters.

    Args:
      method: to attack.
      believed: modalities that it believes perturbed.
    """
    return Target(method, believed if method.rule in GRIDS else ())


def steps_of(
    attacked: tuple[str, ...],
    perturbation: str,
    severity: int,
    scenarios: Sequence[Scenario],
    contests: Contests,
) -> list[Step]:
    """The steps of one perturbation: one for every target of an attack, or one corruption.

    Args:
      attacked: modalities.
      perturbation: not "clean".
      severity: 1 to 5.
      scenarios: as for `targets_of`.
      contests: as for `targets_of`.
    """
    is_attack = perturbation in ATTACKS
    targets = targets_of(attacked, scenarios, contests) if is_attack else [None]
    return [Step(attacked, perturbation, severity, target) for target in targets]
