"""The flags of `jacfuse_jax.predictions`, without what takes long to import."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from absl import flags

from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.command_line import by_modality, choices, define
from jacfuse_jax.programs.parsers import ListOf, Number, NumberOrAuto, OfModality

OUTPUT_ENDINGS = (".parquet", ".csv", ".npz")  # those of `outputs.FORMATS`
INPUT_KINDS = ("logits", "probabilities", "log_probabilities")
Missing = Literal["fuse", "drop", "error"]
"""What becomes of rows that lack a modality."""
Combine = Literal["intersect", "unite"]
"""What becomes of classes that not all inputs have."""
Against = Literal["faults", "anything"]
"""What failing modalities do, as `selection.Against` has it, which takes long to import."""


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """Flags of all programs that read predictions, under their own names; see --help."""

    input: dict[str, Path]
    kernel: dict[str, Path]
    class_prior: str
    output: Path
    join: str | None
    missing: Missing
    classes: Combine | Literal["position"] | None
    ids_column: str | None
    labels_column: str | None
    logits_column: str | None
    groups_column: str | None
    inputs_are: str | None
    against: Against


@dataclasses.dataclass(frozen=True)
class FuseConfig(InputConfig):
    """All flags of `jacfuse_jax.predictions`. NaN stands for `auto`."""

    validation: dict[str, Path]
    perturbed: tuple[str, ...]
    gamma: float
    contamination: float
    rule: str | None
    attack_share: float | None


@dataclasses.dataclass(frozen=True)
class StressConfig(InputConfig):
    """All flags of `jacfuse_jax.predictions.stress`."""

    attack_shares: tuple[float, ...]
    num_failing: int
    seed: int


def define_flags(flag_values: flags.FlagValues) -> None:
    """Declares the flags; apart from import, since another binary has flags of the same names."""
    _define_input_flags(
        flag_values, f"File to write; its ending is one of {', '.join(OUTPUT_ENDINGS)}."
    )
    flags.DEFINE_multi(
        OfModality(),
        flags.ArgumentSerializer(),
        "validation",
        [],
        "As --input: clean labelled rows, to choose rules, parameters and the prior by.",
        flag_values=flag_values,
    )
    gamma = NumberOrAuto(float(np.finfo(np.float32).tiny), "(0, 1]")
    for parser, name, default, text in (
        (gamma, "gamma", 0.1, "In (0, 1], or auto; 1 recalibrates nothing."),
        (NumberOrAuto(), "contamination", 0.0, "In [0, 1], or auto; 0 contaminates nothing."),
        (
            flags.ArgumentParser(),
            "rule",
            None,
            "In the place of both: auto, the rule that is worth most, or a file, as chosen.json.",
        ),
        (
            Number(),
            "attack_share",
            None,
            "Share of inputs whose perturbed modalities fail, of auto or of a file; else 0.1.",
        ),
        (
            flags.ListParser(),
            "perturbed",
            [],
            "Modalities believed perturbed; not given, nothing is, which is statistical fusion.",
        ),
    ):
        define(parser, name, default, text, flag_values)


def define_stress_flags(flag_values: flags.FlagValues) -> None:
    """Declares the flags of `stress`."""
    _define_input_flags(flag_values, "Folder to write to.")
    define(
        ListOf(Number()),
        "attack_shares",
        "0.01,0.1,0.5",
        "Shares of inputs in which a modality fails; a rule is chosen for each.",
        flag_values,
    )
    define(
        flags.IntegerParser(lower_bound=1),
        "num_failing",
        1,
        "Any so many modalities may fail at once, beside each by itself.",
        flag_values,
    )
    define(
        flags.IntegerParser(lower_bound=0),
        "seed",
        0,
        "Of faults, folds and resamples.",
        flag_values,
    )


def _define_input_flags(flag_values: flags.FlagValues, output: str) -> None:
    """Those of `InputConfig`."""
    for name, text in (
        ("input", "<modality>=<file or folder> of its logits; once a modality."),
        ("kernel", "<perturbed modality>=<file> of its last layer, where its input has none."),
    ):
        flags.DEFINE_multi(
            OfModality(), flags.ArgumentSerializer(), name, [], text, flag_values=flag_values
        )
    for parser, name, default, text in (
        (
            flags.ArgumentParser(),
            "class_prior",
            "uniform",
            "uniform, labels, or a file of frequencies or counts.",
        ),
        (flags.ArgumentParser(), "output", None, output),
        (
            flags.EnumParser(["position"]),
            "join",
            None,
            "position: rows are joined in the order in which they are, whatever ids there are.",
        ),
        (
            flags.EnumParser(get_args(Missing)),
            "missing",
            "fuse",
            "Rows that lack a modality, where ids or NaN say so: fuse without it, drop, or error.",
        ),
        (
            flags.EnumParser([*get_args(Combine), "position"]),
            "classes",
            None,
            "Where inputs name other classes: intersect, or unite; position: whatever their names.",
        ),
        (
            flags.EnumParser(INPUT_KINDS),
            "inputs_are",
            None,
            "What the logits of all inputs are; probabilities are taken the logarithm of.",
        ),
        (
            flags.EnumParser(get_args(Against)),
            "against",
            "faults",
            "What failing modalities do: the worst of several faults, or anything at all.",
        ),
        *(
            (
                flags.ArgumentParser(),
                f"{name}_column",
                None,
                f"Array or column in the place of `{name}`, wherever predictions are read.",
            )
            for name in ("ids", "labels", "logits")
        ),
        (
            flags.ArgumentParser(),
            "groups_column",
            None,
            "Array or column of what rows have in common that depend on each other: a person.",
        ),
    ):
        define(parser, name, default, text, flag_values)


def config_from_flags(flag_values: flags.FlagValues) -> FuseConfig:
    """Collects the flags; raises InputError where some do not fit together."""
    values, output = _input_values(flag_values, FuseConfig)
    values["validation"] = by_modality("validation", values["validation"])
    inputs, kernel, validation = values["input"], values["kernel"], values["validation"]
    perturbed: tuple[str, ...] = ()
    if flag_values["perturbed"].present:
        perturbed = choices("perturbed", flag_values.perturbed, list(inputs))
    values |= _rule_values(flag_values, values, perturbed)
    for name, path in kernel.items():
        if name not in perturbed and not (values["rule"] and not perturbed):
            raise InputError(
                f"--kernel={name}={path} would not be used, since {name} is not in --perturbed; "
                "leave it out"
            )
    if validation and set(validation) != set(inputs):
        raise InputError(f"--validation must be given of {', '.join(inputs)}, each once")
    if output.suffix not in OUTPUT_ENDINGS or output.is_dir():
        raise InputError(
            f"--output={output} must be a file that ends in {', '.join(OUTPUT_ENDINGS)}"
        )
    _check_apart(output, [*inputs.values(), *kernel.values(), *validation.values()], values)
    values["perturbed"] = perturbed
    return FuseConfig(**values)


def stress_config_from_flags(flag_values: flags.FlagValues) -> StressConfig:
    """Collects the flags; raises InputError where some do not fit together."""
    values, output = _input_values(flag_values, StressConfig)
    inputs = values["input"]
    if len(inputs) < 2:
        raise InputError(
            "--input is given once; there must be two modalities, so that one can fail"
        )
    number = values["num_failing"]
    if number >= len(inputs):
        raise InputError(
            f"--num_failing={number} leaves none of {len(inputs)} modalities; give less"
        )
    if output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; name a folder")
    _check_apart(output, [*inputs.values(), *values["kernel"].values()], values)
    return StressConfig(**values)


def _input_values(
    flag_values: flags.FlagValues, config_class: type[InputConfig]
) -> tuple[dict[str, Any], Path]:
    """The values of flags, and the output; raises where those that all programs have are wrong."""
    values: dict[str, Any] = {
        field.name: flag_values[field.name].value for field in dataclasses.fields(config_class)
    }
    for name in ("input", "kernel"):
        values[name] = by_modality(name, values[name])
    if not values["input"]:
        raise InputError("--input is missing; give --input=<modality>=<file> once a modality")
    if flag_values.join == "position" and flag_values.ids_column:
        raise InputError(
            f"--ids_column={flag_values.ids_column} would not be used with --join=position; leave "
            "one out"
        )
    for name, path in values["kernel"].items():
        if name not in values["input"]:
            raise InputError(f"--kernel={name}={path}: no --input is called {name}")
    if not flag_values.output:
        raise InputError("--output is missing")
    for name in ("ids_column", "labels_column", "logits_column", "groups_column"):
        values[name] = values[name] or None
    values["output"] = Path(flag_values.output).expanduser()
    return values, values["output"]


def _rule_values(
    flag_values: flags.FlagValues, values: Mapping[str, Any], perturbed: tuple[str, ...]
) -> dict[str, Any]:
    """Flags that say which rule, as they count; raises where some would not be used."""
    given = [name for name in ("gamma", "contamination") if flag_values[name].present]
    rule = values["rule"] or None
    if rule is not None:
        if given:
            raise InputError(f"--{given[0]} would not be used with --rule={rule}; leave one out")
        if rule != "auto" and not Path(rule).expanduser().is_file():
            raise InputError(f"--rule={rule} is neither auto nor a file")
        if rule == "auto" and not perturbed:
            raise InputError("--rule=auto needs --perturbed; name modalities that may fail")
        return {"rule": rule, "gamma": 1.0, "contamination": 0.0}
    found: dict[str, Any] = {"rule": None}
    for name, neutral in (("gamma", 1.0), ("contamination", 0.0)):
        found[name] = values[name]
        if perturbed:
            continue
        if name in given and values[name] != neutral:
            text = "auto" if math.isnan(values[name]) else f"{values[name]:g}"
            raise InputError(
                f"--{name}={text} needs --perturbed; name modalities, or "
                "leave both out, which is statistical fusion"
            )
        found[name] = neutral
    if not any(math.isnan(found[name]) for name in ("gamma", "contamination")):
        for name in ("attack_share", "against", "groups_column"):
            if flag_values[name].present:
                raise InputError(
                    f"--{name} would not be used, since nothing is auto; leave it out, or give "
                    "--rule=auto"
                )
    return found


def _check_apart(output: Path, inputs: Sequence[Path], values: Mapping[str, Any]) -> None:
    """Raises where the output would replace an input or lie in one, or there is no prior."""
    class_prior = Path(values["class_prior"]).expanduser()
    if values["class_prior"] not in ("uniform", "labels") and not class_prior.exists():
        raise InputError(
            f"--class_prior={class_prior} is neither uniform nor labels nor a file or folder"
        )
    for path in (*inputs, class_prior):
        if output.resolve() == path.resolve():
            raise InputError(f"--output={output} would replace an input; choose another name")
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise InputError(f"--output={output} would lie in the input {path}; choose another")
