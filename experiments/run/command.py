"""The command that repeats a run, from the flags that its config.json tells."""

import shlex
from collections.abc import Mapping
from typing import Any

from absl import flags

from data_pipelines.catalogue import MODALITIES, base_name
from experiments.run.flags import DEFAULT_NUM_EPOCHS
from experiments.run.suites import SUITES
from experiments.run.workdir import MEANS


def command_of(settings: Mapping[str, Any]) -> str:
    """The shortest command of `experiments.robust_fusion` with these settings.

    Folders of the machine that it ran on are left out.

    Args:
      settings: the flags of a run, as config.json has them.
    """
    dataset = base_name(settings["dataset"])
    known = {
        "num_epochs": DEFAULT_NUM_EPOCHS[dataset],
        "perturbed": list(MODALITIES.get(dataset, ())),
    }
    chosen = {name: value for name, value in settings.items() if name not in MEANS}
    candidates: list[dict[str, str]] = []
    for suite in ("", *SUITES):
        values = {name: flags.FLAGS[name].default for name in chosen} | known
        values |= {
            name: value
            for name, value in SUITES.get(suite, {}).items()
            if dataset == "av_mnist" or name not in ("num_train", "num_eval")
        }
        rest = {
            name: _text(value)
            for name, value in chosen.items()
            if _text(value) != _text(values[name])
        }
        candidates.append(({"suite": suite} if suite else {}) | rest)
    shortest = min(candidates, key=len)
    arguments = [f"--{name}={value}" for name, value in shortest.items()]
    return shlex.join(["python", "-m", "experiments.robust_fusion", *arguments])


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)
