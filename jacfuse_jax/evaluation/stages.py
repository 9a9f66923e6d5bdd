"""The attacks that make up a step of a chain."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jacfuse_jax import attacks
from jacfuse_jax.evaluation.input_checks import ResidualCheck
from jacfuse_jax.evaluation.names import APGD_ENSEMBLE, L0_ATTACKS
from jacfuse_jax.evaluation.rules import EachAlone, Trained
from jacfuse_jax.evaluation.targets import MAX_TOWARDS, Step
from jacfuse_jax.evaluation.through import NUM_DRAWS, Through

# Attacks without gradients evaluate more often than the others take steps.
_QUERIES_A_STEP = 25
_MIN_CLASSES_OF_DLR = 4


class Stage(NamedTuple):
    """One attack of those that make up a step.

    Attributes:
      attack: of `names.ATTACKS`.
      from_clean: starts at the clean input; or else at what is best so far.
      relative_step_size: of APGD's first step, as a share of the budget.
      steps_share: of the steps that an attack has.
      through: how it gets through the check of a rule that has one.
      share_left: how much of the clean input's margin a row may have left to be attacked; 1: any.
      batch_share: of the batch size, where few rows are left.
    """

    attack: str
    from_clean: bool = False
    relative_step_size: float = 2.0
    steps_share: float = 1.0
    share_left: float = 1.0
    batch_share: float = 1.0
    through: Through = ""


# Long steps leave where a classifier that was trained against small perturbations has gradients,
# and do not come back: its units are dead there. Short ones from the clean input stay.
_SHORT = Stage("apgd", from_clean=True, relative_step_size=0.1)
# What takes nine times as many gradients is spent on rows that are nearly lost: those that have
# more of their margin left after the first stage are seldom overcome by it.
_CLOSING = (
    Stage("apgd_targeted", True, relative_step_size=0.5, share_left=0.4, batch_share=0.25),
    Stage("apgd", relative_step_size=0.25, share_left=0.15),
    Stage("apgd_targeted", share_left=0.05, batch_share=0.25),
)
_ROUND_A_CHECK = (
    Stage("fgm", through="outside"),
    *(Stage("apgd", through="averaged"), Stage("apgd", through="averaged_anew")),
)


def stages_of(step: Step, *, num_classes: int) -> list[Stage]:
    """The attacks that make up a step, each on what the ones before it did not overcome.

    Attacks on a rule that drops what fails its check stay inside of what passes; then they leave on
    purpose, and differentiate averages over noise in place of the rule.

    Args:
      step: an attack.
      num_classes: K.
    """
    assert step.target is not None
    is_checked = isinstance(step.target.rule, ResidualCheck)
    if step.perturbation != APGD_ENSEMBLE:
        is_inside = is_checked and step.perturbation.startswith("apgd")
        return [Stage(step.perturbation, through="inside" if is_inside else "")]
    rule = step.target.rule
    is_own = isinstance(rule, EachAlone)
    stages = [Stage("apgd")]
    if step.target.towards:
        return [Stage("apgd", steps_share=0.5)]
    if step.target.surrogate:
        return stages
    if is_own or isinstance(rule, Trained):  # what is found on a classifier is tried on its rules
        stages.append(_SHORT)
    if not is_own:
        stages += _CLOSING
    if num_classes < _MIN_CLASSES_OF_DLR:
        stages = [stage._replace(attack="apgd") for stage in stages]
    if not is_checked:
        return stages
    return [*(stage._replace(through="inside") for stage in stages), *_ROUND_A_CHECK]


def num_steps_of(stage: Stage, attack_steps: int) -> int:
    """The steps of the attack of a stage.

    Args:
      stage: of a step.
      attack_steps: of iterated attacks.
    """
    return max(1, round(stage.steps_share * attack_steps))


def num_gradients(stage: Stage, num_steps: int, num_restarts: int, *, num_classes: int) -> int:
    """How often the attack of a stage differentiates the prediction of one row.

    Args:
      stage: of a step.
      num_steps: see `num_steps_of`.
      num_restarts: starts of PGD and APGD.
      num_classes: K.
    """
    draws = NUM_DRAWS if stage.through.startswith("averaged") else 1
    if stage.attack == "fgm":
        return draws
    if stage.attack in L0_ATTACKS:
        return num_steps
    if not stage.attack.startswith(("pgd", "apgd")):
        return 0
    goals = _num_targets(num_classes) if stage.attack == "apgd_targeted" else 1
    return draws * goals * num_steps * num_restarts


def _num_targets(num_classes: int) -> int:
    return min(num_classes - 1, MAX_TOWARDS)


def make_attack(
    name: str, num_steps: int, num_restarts: int, *, num_classes: int
) -> Callable[..., dict[str, Any]]:
    """The attack of that name, to be given the prediction, inputs, labels, key and budget.

    Args:
      name: of `names.ATTACKS`.
      num_steps: of iterated attacks; those without gradients take 25 queries a step.
      num_restarts: starts of PGD and APGD.
      num_classes: K.
    """
    iterated = {"num_steps": num_steps, "num_restarts": num_restarts}
    losses = {"apgd_ce": "cross_entropy", "apgd_dlr": "dlr"}
    queries = {"num_queries": _QUERIES_A_STEP * num_steps}
    if name == "fgm":
        return attacks.fgm
    if name.startswith("pgd"):
        return partial(attacks.pgd, **iterated)
    if name == "apgd_targeted":
        iterated["num_targets"] = _num_targets(num_classes)
        return partial(attacks.apgd, loss="targeted_dlr", **iterated)
    if name.startswith("apgd"):
        return partial(attacks.apgd, loss=losses.get(name, "margin"), **iterated)
    if name == "hop_skip_jump":
        return partial(attacks.hop_skip_jump, num_iterations=num_steps)
    return partial(
        {"square": attacks.square, "random_search": attacks.random_search}[name], **queries
    )
