"""The command that repeats a run, from the flags that its config.json tells."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from data_pipelines.catalogue import MODALITIES, base_name
from experiments.run.flags import DEFAULT_NUM_EPOCHS
from experiments.run.suites import SUITES, values_of
from experiments.run.workdir import MEANS


def command_of(settings: Mapping[str, Any]) -> str:
    """The command of `experiments.robust_fusion` with these settings, in one line.

    Args:
      settings: see `arguments_of`.
    """
    return shlex.join(["python", "-m", "experiments.robust_fusion", *arguments_of(settings)])


def arguments_of(settings: Mapping[str, Any]) -> list[str]:
    """The fewest arguments that give these settings.

    Folders of the machine that it ran on are left out, also those of weights.

    Args:
      settings: the flags of a run, as config.json has them.
    """
    dataset = base_name(settings["dataset"])
    known = {
        "num_epochs": DEFAULT_NUM_EPOCHS.get(dataset),
        "perturbed": list(MODALITIES.get(dataset, ())),
    }
    chosen = {name: x for name, x in settings.items() if name not in (*MEANS, "weights")}
    candidates: list[dict[str, str]] = []
    for suite in ("", *SUITES):
        values = {name: flags.FLAGS[name].default for name in chosen if name in flags.FLAGS} | known
        values |= values_of(suite, dataset)
        rest = {
            name: _text(value)
            for name, value in chosen.items()
            if _text(value) != _text(values.get(name))
        }
        candidates.append(({"suite": suite} if suite else {}) | rest)
    shortest = min(candidates, key=len)
    weights = settings.get("weights", {}).items()
    return [
        *(f"--{name}={value}" for name, value in shortest.items()),
        *(f"--weights={modality}={Path(file).name}" for modality, file in weights),
    ]


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)
