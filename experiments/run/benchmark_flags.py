"""The flags of `experiments.benchmark`."""

import dataclasses
import itertools
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from jacfuse_jax.programs.command_line import choices, define
from jacfuse_jax.programs.parsers import ListOf, OneOf

METHODS: dict[str, tuple[str, ...]] = {
    "schur": ("schur", "jax_schur", "scipy_loop", "eigh", "eig"),
    "solve_sylvester": ("bartels_stewart", "jax_schur", "jax_eigen", "scipy_loop", "eigh_spd"),
    "recalibrate": ("closed_form", "eigh", "scipy_loop"),
    "robust_fusion": ("closed_form", "eigh", "bartels_stewart"),
    "statistical_fusion": ("statistical_fusion", "scipy_loop"),
    "pgd_step": ("closed_form",),
    "jacobian": ("closed_form", "forward", "reverse"),
}
"""{operation: its methods, the library's own first}, as `operations` has them."""

_DTYPES = ("float32", "float64")


class Case(NamedTuple):
    """What all methods are measured for: K, B and the dtype."""

    num_classes: int
    batch_size: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """All flags, under their own names, sizes and dtypes as cases; see --help."""

    op: str
    cases: tuple[Case, ...]
    peer_cases: tuple[Case, ...] | None
    methods: tuple[str, ...]
    num_repeats: int
    max_s: float
    yardstick_size: int
    yardstick_bytes: int
    seed: int
    workdir: Path


class _CaseParser(flags.ArgumentParser[Case]):
    """KxBxdtype."""

    def parse(self, argument: str) -> Case:
        """See base class."""
        match = re.fullmatch(rf"([1-9]\d*)x([1-9]\d*)x({'|'.join(_DTYPES)})", argument)
        if match is None:
            raise ValueError(f"{argument!r} is not like 10x4096x{_DTYPES[0]}")
        return Case(int(match[1]), int(match[2]), match[3])


def define_flags(flag_values: flags.FlagValues) -> None:
    """Declares the flags; apart from import, since another binary has flags of the same names."""
    flags.DEFINE_enum(
        "op", "recalibrate", list(METHODS), "What to measure.", flag_values=flag_values
    )
    known = "; ".join(f"{op}: {','.join(names)}" for op, names in METHODS.items())
    size, cases = flags.IntegerParser(lower_bound=1), ListOf(_CaseParser())
    for parser, name, default, text in (
        (ListOf(size), "num_classes", (10, 50), "Numbers of classes K."),
        (ListOf(size), "batch_sizes", (256,), "Batch sizes B."),
        (ListOf(OneOf(_DTYPES)), "dtypes", ("float32",), f"Of {','.join(_DTYPES)}."),
        (cases, "cases", None, "KxBxdtype, in this order; default all combinations of these."),
        (
            cases,
            "peer_cases",
            None,
            "Cases of methods other than the first, after all of the first's; default the same.",
        ),
        (flags.ListParser(), "methods", None, f"Default all. Of {known}."),
        (
            flags.FloatParser(lower_bound=0),
            "max_s",
            math.inf,
            "Seconds after which a method is not repeated at the same size.",
        ),
        (flags.IntegerParser(lower_bound=5), "num_repeats", 5, "Timed repeats."),
        (size, "yardstick_size", 2048, "n of the first yardstick, a product of n x n matrices."),
        (size, "yardstick_bytes", 2**28, "Of the second yardstick, the copy of an array."),
        (flags.IntegerParser(0, 2**32 - 1), "seed", 0, "Of the inputs."),
        (flags.ArgumentParser(), "workdir", "runs/benchmark", "Folder of results."),
    ):
        define(parser, name, default, text, flag_values)


def config_from_flags(flag_values: flags.FlagValues) -> BenchmarkConfig:
    """Collects the flags; raises InputError where one does not fit."""
    known = METHODS[flag_values.op]
    combined = itertools.product(
        flag_values.dtypes, sorted(flag_values.num_classes), sorted(flag_values.batch_sizes)
    )
    fields = dataclasses.fields(BenchmarkConfig)
    values: dict[str, Any] = {field.name: flag_values[field.name].value for field in fields}
    values["workdir"] = Path(flag_values.workdir).expanduser()
    values["cases"] = flag_values.cases or tuple(
        Case(K, batch_size, dtype) for dtype, K, batch_size in combined
    )
    values["methods"] = choices(
        "methods", known if flag_values.methods is None else flag_values.methods, known
    )
    return BenchmarkConfig(**values)
