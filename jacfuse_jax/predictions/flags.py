"""The flags of `jacfuse_jax.predictions`, without what takes long to import."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.command_line import choices

OUTPUT_ENDINGS = (".parquet", ".csv", ".npz")  # those of `outputs.FORMATS`
INPUT_KINDS = ("logits", "probabilities", "log_probabilities")


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
        flags.DEFINE_multi_string(name, [], text, flag_values=flag_values)
    for name, default, text in (
        ("gamma", "0.1", "In (0, 1], or auto; 1 recalibrates nothing."),
        ("contamination", "0", "In [0, 1], or auto; 0 contaminates nothing."),
        ("class_prior", "uniform", "uniform, labels, or a file of frequencies or counts."),
        ("output", None, f"File to write; its ending is one of {', '.join(OUTPUT_ENDINGS)}."),
    ):
        flags.DEFINE_string(name, default, text, flag_values=flag_values)
    flags.DEFINE_list(
        "perturbed",
        [],
        "Modalities believed perturbed; not given, nothing is, which is statistical fusion.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "join",
        None,
        ["position"],
        "position: rows are joined in the order in which they are, whatever ids there are.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "inputs_are",
        None,
        INPUT_KINDS,
        "What the logits of all inputs are; probabilities are taken the logarithm of.",
        flag_values=flag_values,
    )
    for name in ("ids", "labels", "logits"):
        flags.DEFINE_string(
            f"{name}_column",
            None,
            f"Array or column in the place of `{name}`, of --input and --validation.",
            flag_values=flag_values,
        )


def config_from_flags(flag_values: flags.FlagValues) -> FuseConfig:
    """Collects the flags; raises InputError where one does not fit."""
    inputs = _paths("input", flag_values.input)
    if not inputs:
        raise InputError("--input is missing; give --input=<modality>=<file> once a modality")
    kernel, validation = (
        _paths(name, flag_values[name].value) for name in ("kernel", "validation")
    )
    gamma = _number("gamma", flag_values.gamma, float(np.finfo(np.float32).tiny), "(0, 1]")
    contamination = _number("contamination", flag_values.contamination, 0, "[0, 1]")
    perturbed: tuple[str, ...] = ()
    if flag_values["perturbed"].present:
        perturbed = choices("perturbed", flag_values.perturbed, list(inputs))
    else:
        for name, number, neutral in (("gamma", gamma, 1), ("contamination", contamination, 0)):
            if flag_values[name].present and number != neutral:
                raise InputError(
                    f"--{name}={flag_values[name].value} needs --perturbed; name modalities, or "
                    "leave both out, which is statistical fusion"
                )
        gamma, contamination = 1.0, 0.0
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
    return FuseConfig(
        input=inputs,
        kernel=kernel,
        validation=validation,
        perturbed=perturbed,
        gamma=gamma,
        contamination=contamination,
        class_prior=flag_values.class_prior,
        output=output,
        join=flag_values.join,
        ids_column=flag_values.ids_column or None,
        labels_column=flag_values.labels_column or None,
        logits_column=flag_values.logits_column or None,
        inputs_are=flag_values.inputs_are,
    )


def _paths(flag: str, texts: Sequence[str] | None) -> dict[str, Path]:
    """The files of a flag by their modalities."""
    paths: dict[str, Path] = {}
    for text in texts or ():
        name, _, file = text.partition("=")
        if not name or not file:
            raise InputError(f"--{flag}={text}: write --{flag}=<modality>=<file>")
        if name in paths:
            raise InputError(f"--{flag}={text}: {name} is given twice")
        paths[name] = Path(file).expanduser()
        if not paths[name].exists():
            raise InputError(f"--{flag}={text}: no such file or folder")
    return paths


def _number(flag: str, text: str, low: float, interval: str) -> float:
    """The number of a flag; NaN for `auto`."""
    if text == "auto":
        return math.nan
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= 1:
        raise InputError(f"--{flag}={text} is neither a number in {interval} nor auto")
    return number
