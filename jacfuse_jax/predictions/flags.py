"""The flags of `jacfuse_jax.predictions`, without what takes long to import."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from absl import flags

from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.command_line import by_modality, choices, define
from jacfuse_jax.programs.parsers import NumberOrAuto, OfModality

OUTPUT_ENDINGS = (".parquet", ".csv", ".npz")  # those of `outputs.FORMATS`
INPUT_KINDS = ("logits", "probabilities", "log_probabilities")
Missing = Literal["fuse", "drop", "error"]
"""What becomes of rows that lack a modality."""
Combine = Literal["intersect", "unite"]
"""What becomes of classes that not all inputs have."""


@dataclasses.dataclass(frozen=True)
class FuseConfig:
    """All flags, under their own names; see --help. NaN stands for `auto`."""

    input: dict[str, Path]
    kernel: dict[str, Path]
    validation: dict[str, Path]
    perturbed: tuple[str, ...]
    gamma: float
    contamination: float
    class_prior: str
    output: Path
    join: str | None
    missing: Missing
    classes: Combine | Literal["position"] | None
    ids_column: str | None
    labels_column: str | None
    logits_column: str | None
    inputs_are: str | None


def define_flags(flag_values: flags.FlagValues) -> None:
    """Declares the flags; apart from import, since another binary has flags of the same names."""
    for name, text in (
        ("input", "<modality>=<file or folder> of its logits; once a modality."),
        ("kernel", "<perturbed modality>=<file> of its last layer, where its input has none."),
        ("validation", "As --input: clean labelled rows, to choose parameters and the prior by."),
    ):
        flags.DEFINE_multi(
            OfModality(), flags.ArgumentSerializer(), name, [], text, flag_values=flag_values
        )
    gamma = NumberOrAuto(float(np.finfo(np.float32).tiny), "(0, 1]")
    for parser, name, default, text in (
        (gamma, "gamma", 0.1, "In (0, 1], or auto; 1 recalibrates nothing."),
        (NumberOrAuto(), "contamination", 0.0, "In [0, 1], or auto; 0 contaminates nothing."),
        (
            flags.ArgumentParser(),
            "class_prior",
            "uniform",
            "uniform, labels, or a file of frequencies or counts.",
        ),
        (
            flags.ArgumentParser(),
            "output",
            None,
            f"File to write; its ending is one of {', '.join(OUTPUT_ENDINGS)}.",
        ),
        (
            flags.ListParser(),
            "perturbed",
            [],
            "Modalities believed perturbed; not given, nothing is, which is statistical fusion.",
        ),
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
        *(
            (
                flags.ArgumentParser(),
                f"{name}_column",
                None,
                f"Array or column in the place of `{name}`, of --input and --validation.",
            )
            for name in ("ids", "labels", "logits")
        ),
    ):
        define(parser, name, default, text, flag_values)


def config_from_flags(flag_values: flags.FlagValues) -> FuseConfig:
    """Collects the flags; raises InputError where some do not fit together."""
    values: dict[str, Any] = {
        field.name: flag_values[field.name].value for field in dataclasses.fields(FuseConfig)
    }
    for name in ("input", "kernel", "validation"):
        values[name] = by_modality(name, values[name])
    inputs, kernel, validation = values["input"], values["kernel"], values["validation"]
    if not inputs:
        raise InputError("--input is missing; give --input=<modality>=<file> once a modality")
    perturbed: tuple[str, ...] = ()
    if flag_values["perturbed"].present:
        perturbed = choices("perturbed", flag_values.perturbed, list(inputs))
    else:
        for name, neutral in (("gamma", 1.0), ("contamination", 0.0)):
            if flag_values[name].present and values[name] != neutral:
                given = "auto" if math.isnan(values[name]) else f"{values[name]:g}"
                raise InputError(
                    f"--{name}={given} needs --perturbed; name modalities, or "
                    "leave both out, which is statistical fusion"
                )
            values[name] = neutral
    if flag_values.join == "position" and flag_values.ids_column:
        raise InputError(
            f"--ids_column={flag_values.ids_column} would not be used with --join=position; leave "
            "one out"
        )
    for name, path in kernel.items():
        if name not in perturbed:
            raise InputError(
                f"--kernel={name}={path} would not be used, since {name} is not in --perturbed; "
                "leave it out"
            )
    if validation and set(validation) != set(inputs):
        raise InputError(f"--validation must be given of {', '.join(inputs)}, each once")
    if not flag_values.output:
        raise InputError("--output is missing")
    output = Path(flag_values.output).expanduser()
    if output.suffix not in OUTPUT_ENDINGS or output.is_dir():
        raise InputError(
            f"--output={output} must be a file that ends in {', '.join(OUTPUT_ENDINGS)}"
        )
    class_prior = Path(flag_values.class_prior).expanduser()
    if flag_values.class_prior not in ("uniform", "labels") and not class_prior.exists():
        raise InputError(
            f"--class_prior={class_prior} is neither uniform nor labels nor a file or folder"
        )
    for path in (*inputs.values(), *kernel.values(), *validation.values(), class_prior):
        if output.resolve() == path.resolve():
            raise InputError(f"--output={output} would replace an input; choose another name")
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise InputError(f"--output={output} would lie in the input {path}; choose another")
    for name in ("ids_column", "labels_column", "logits_column"):
        values[name] = values[name] or None
    values |= {"perturbed": perturbed, "output": output}
    return FuseConfig(**values)
