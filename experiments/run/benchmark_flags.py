"""The flags of `experiments.benchmark`."""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.command_line import choices

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
    workdir: str


def define_flags(flag_values: flags.FlagValues) -> None:
    """Declares the flags; apart from import, since another binary has flags of the same names."""
    flags.DEFINE_enum(
        "op", "recalibrate", list(METHODS), "What to measure.", flag_values=flag_values
    )
    known = "; ".join(f"{op}: {','.join(names)}" for op, names in METHODS.items())
    for name, default, text in (
        ("num_classes", ["10", "50"], "Numbers of classes K."),
        ("batch_sizes", ["256"], "Batch sizes B."),
        ("dtypes", ["float32"], f"Of {','.join(_DTYPES)}."),
        ("cases", None, "KxBxdtype, in this order; default all combinations of these three."),
        (
            "peer_cases",
            None,
            "Cases of methods other than the first, after all of the first's; default the same.",
        ),
        ("methods", None, f"Default all. Of {known}."),
    ):
        flags.DEFINE_list(name, default, text, flag_values=flag_values)
    flags.DEFINE_integer("num_repeats", 5, "Timed repeats.", lower_bound=5, flag_values=flag_values)
    flags.DEFINE_float(
        "max_s",
        math.inf,
        "Seconds after which a method is not repeated at the same size.",
        lower_bound=0,
        flag_values=flag_values,
    )
    for name, default, text in (
        ("yardstick_size", 2048, "n of the first yardstick, a product of n x n matrices."),
        ("yardstick_bytes", 2**28, "Of the second yardstick, the copy of an array."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=flag_values)
    flags.DEFINE_integer(
        "seed", 0, "Of the inputs.", lower_bound=0, upper_bound=2**32 - 1, flag_values=flag_values
    )
    flags.DEFINE_string("workdir", "runs/benchmark", "Folder of results.", flag_values=flag_values)


def config_from_flags(flag_values: flags.FlagValues) -> BenchmarkConfig:
    """Collects the flags; raises InputError where one does not fit."""
    known = METHODS[flag_values.op]
    combined = itertools.product(
        choices("dtypes", flag_values.dtypes, _DTYPES),
        _sizes("num_classes", flag_values.num_classes),
        _sizes("batch_sizes", flag_values.batch_sizes),
    )
    return BenchmarkConfig(
        op=flag_values.op,
        cases=tuple(_parse_case("cases", text) for text in flag_values.cases or ())
        or tuple(Case(K, batch_size, dtype) for dtype, K, batch_size in combined),
        peer_cases=(
            None
            if flag_values.peer_cases is None
            else tuple(_parse_case("peer_cases", text) for text in flag_values.peer_cases)
        ),
        methods=choices(
            "methods", known if flag_values.methods is None else flag_values.methods, known
        ),
        num_repeats=flag_values.num_repeats,
        max_s=flag_values.max_s,
        yardstick_size=flag_values.yardstick_size,
        yardstick_bytes=flag_values.yardstick_bytes,
        seed=flag_values.seed,
        workdir=str(Path(flag_values.workdir).expanduser()),
    )


def _parse_case(flag: str, text: str) -> Case:
    """The case that a flag writes as KxBxdtype; raises where it does not."""
    match = re.fullmatch(rf"([1-9]\d*)x([1-9]\d*)x({'|'.join(_DTYPES)})", text)
    if match is None:
        raise InputError(f"--{flag}: {text!r} is not like 10x4096x{_DTYPES[0]}")
    return Case(int(match[1]), int(match[2]), match[3])


def _sizes(flag: str, texts: Sequence[str]) -> tuple[int, ...]:
    """The numbers of a flag; raises where one is not a positive integer."""
    for text in texts:
        if not text.isdecimal() or int(text) == 0:
            raise InputError(f"--{flag}: {text!r} is not a positive integer")
    if not texts:
        raise InputError(f"--{flag} is empty; give positive integers")
    return tuple(sorted({int(text) for text in texts}))
