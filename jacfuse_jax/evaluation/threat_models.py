"""Who perturbs which modalities, and which ones the defender believes perturbed."""

from collections.abc import Sequence
from typing import NamedTuple

THREAT_MODELS = ("known", "wrong", "unknown", "detect", "both", "either")
DETECT = ("detect",)
"""In place of believed modalities: the defender judges each sample, see `jacfuse_jax.detection`."""


class Scenario(NamedTuple):
    """One threat model on one choice of modalities.

    Attributes:
      threat_model: of `THREAT_MODELS`.
      alternatives: sets of modalities to perturb; the attacker takes, sample by sample, whichever
        hurts most.
      believed: the modalities that the defender believes perturbed, or `DETECT`.
    """

    threat_model: str
    alternatives: tuple[tuple[str, ...], ...]
    believed: tuple[str, ...]

    @property
    def perturbed(self) -> str:
        """The perturbed modalities for people to read."""
        return " or ".join("+".join(attacked) for attacked in self.alternatives)


def make_scenarios(
    threat_models: Sequence[str], perturbed: Sequence[str], modalities: tuple[str, ...]
) -> list[Scenario]:
    """Lists the scenarios of threat models.

    "known": one modality is perturbed and the defender knows which; "wrong": the defender believes
    all others perturbed; "unknown": believes all of them; "detect": judges each sample; "both": all
    are perturbed, and the defender knows; "either": the attacker perturbs the modality that hurts
    most, sample by sample, and the defender does not know which.

    Args:
      threat_models: of `THREAT_MODELS`.
      perturbed: modalities to perturb in turn.
      modalities: all of the data set, at least two.
    """
    scenarios: list[Scenario] = []
    for name in threat_models:
        if name == "both":
            scenarios.append(Scenario(name, (modalities,), modalities))
        elif name == "either":
            scenarios.append(Scenario(name, tuple((m,) for m in perturbed), modalities))
        else:
            for modality in perturbed:
                others = tuple(other for other in modalities if other != modality)
                believed = {
                    "known": (modality,),
                    "wrong": others,
                    "unknown": modalities,
                    "detect": DETECT,
                }[name]
                scenarios.append(Scenario(name, ((modality,),), believed))
    return scenarios
