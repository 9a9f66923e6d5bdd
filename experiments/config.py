"""Settings of one run, and its claim on a working directory."""

import dataclasses
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.files import write_atomically

# Flags that say where and with what means, not what is computed.
_MEANS = ("workdir", "data_dir", "manual_dir", "num_workers", "max_missing")


class ConfigError(ValueError):
    """A flag, or the working directory, does not fit; the message names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All flags of `experiments.robust_fusion`, under their own names; see its --help."""

    dataset: str
    workdir: str
    data_dir: str
    manual_dir: str | None
    num_workers: int | None
    max_missing: float
    fold: int
    weights: dict[str, str]
    perturbed: tuple[str, ...]
    perturbations: tuple[str, ...]
    methods: tuple[str, ...]
    threat_models: tuple[str, ...]
    gammas: tuple[float, ...]
    scales: tuple[float, ...]
    contaminations: tuple[float, ...]
    temperings: tuple[float, ...]
    confidences: tuple[float, ...]
    num_select: int
    select_attack: str
    max_clean_loss: float
    jacobian: str
    num_train: int | None
    num_eval: int | None
    num_attack: int
    attack_steps: int
    num_restarts: int
    num_epochs: int
    batch_size: int
    seed: int
    num_seeds: int


def choices(flag: str, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names of a flag, each once.

    Args:
      flag: its name.
      names: that were given.
      known: to choose from.

    Raises:
      ConfigError: a name is unknown, or there is none.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"--{flag}: unknown {name!r}; choose from {','.join(known)}")
    if not names:
        raise ConfigError(f"--{flag} is empty; choose from {','.join(known)}")
    return tuple(dict.fromkeys(names))


def check_folder(workdir: str) -> None:
    """Raises ConfigError where the working directory is a file.

    Args:
      workdir: of the flag.
    """
    if Path(workdir).is_file():
        raise ConfigError(f"--workdir={workdir} is a file; name a folder")


def check_workdir(config: Config, data: str | None = None) -> None:
    """Raises unless the working directory is new or belongs to a run with the same flags.

    Args:
      config: the settings of this run.
      data: digest of its data set; None where it is not loaded yet.

    Raises:
      ConfigError: the directory's config.json is of other flags or data, is not a config, or is
        missing beside results.
    """
    check_folder(config.workdir)
    path = Path(config.workdir) / "config.json"
    if not path.exists():
        for name in ("seed_*", "results.csv", "figures"):
            for remains in path.parent.glob(name):
                raise ConfigError(
                    f"{path} is missing beside {remains.name}; choose another --workdir"
                )
        return
    try:
        content = json.loads(path.read_text())
        owner = dict(content["flags"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a config of this program; choose another --workdir"
        ) from error
    flags = _flags(config)
    differences = [
        f"--{name}={owner.get(name)}, now {flags.get(name)}"
        for name in dict.fromkeys([*owner, *flags])
        if name not in _MEANS and owner.get(name) != flags.get(name)
    ]
    if differences:
        raise ConfigError(
            f"{path} belongs to a run with other flags ({'; '.join(differences)}); "
            "repeat those or choose another --workdir"
        )
    if data is not None and content.get("data") != data:
        raise ConfigError(
            f"{path} belongs to a run on other rows of {config.dataset}: the data set was prepared "
            "anew; choose another --workdir"
        )


def write_config(config: Config, data: str, *, wall_time_s: float | None) -> None:
    """Writes config.json: flags, data, versions, device and, when done, seconds since the start."""
    import jax  # only here: --help need not wait for it

    content = {
        "flags": _flags(config),
        "data": data,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "device": str(jax.devices()[0].device_kind),
        "platform": platform.platform(),
        "wall_time_s": wall_time_s,
    }
    write_atomically(Path(config.workdir) / "config.json", json.dumps(content, indent=2) + "\n")


_PACKAGES = (
    "jacfuse_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "numpy",
)


def _flags(config: Config) -> dict[str, Any]:
    """The settings as JSON reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
