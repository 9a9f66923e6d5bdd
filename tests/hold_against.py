"""Holds a finished run's worst cases against an attack that was not written here, or by hand.

    python -m tests.hold_against --workdir=runs/av_mnist

reads config.json and results.csv of a run of `experiments.robust_fusion`, takes its classifiers and
attacks every rule with the parameters that were chosen, where the defender knows which modality is
perturbed: by `tests.independent_attack`, or with --attack=autoattack by AutoAttack, see
`tests.autoattack`. Prints accuracy in %, and ends with status 1 where the run's own is more than a
point above. A rule on 200 rows takes a minute (image of AV-MNIST) to a quarter of an hour.
"""

import csv
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tabulate
from absl import flags as absl_flags

from experiments.run import launch
from experiments.run.config import Config
from jacfuse_jax.evaluation.input_checks import Projection, ResidualCheck
from jacfuse_jax.evaluation.measure import ENSEMBLE, WORST_ATTACK
from jacfuse_jax.evaluation.models import PROJECTED, Models, input_grams
from jacfuse_jax.evaluation.names import APGD_ENSEMBLE
from jacfuse_jax.evaluation.plan import SEVERITIES
from jacfuse_jax.evaluation.rows import Rows, make_rows, observe
from jacfuse_jax.evaluation.rules import LEARNED, PARAMETERS, expand, predict, regime_of
from jacfuse_jax.evaluation.subspaces import residual, stay_inside
from jacfuse_jax.evaluation.targets import STRENGTHS
from jacfuse_jax.evaluation.through import linf_bounds
from jacfuse_jax.fusion import Rule, rule_from_json
from jacfuse_jax.programs import InputError
from tests import autoattack, independent_attack

ATTACKS: dict[str, Callable[..., Any]] = {
    "independent": independent_attack.withstands,
    "autoattack": autoattack.withstands,
}
EPSILONS = STRENGTHS[APGD_ENSEMBLE]
_TOLERANCE = 0.01
_ROUNDING = 1e-9
_FOLDERS = ("workdir", "data_dir", "manual_dir")


class Contender(NamedTuple):
    """A rule of a run in the worst case.

    Attributes:
      modality: perturbed, as the rule is told.
      rule: with its parameters.
      accuracies: (5,), within the budgets.
    """

    modality: str
    rule: Rule
    accuracies: tuple[float, ...]


class Line(NamedTuple):
    """What two attacks leave of a rule: shares of the rows that are right."""

    perturbed: str
    rule: str
    epsilon: float
    ours: float
    theirs: float

    @property
    def gap(self) -> float:
        """What the other attack found beyond ours; negative where ours is stronger."""
        return self.ours - self.theirs


class Settings(NamedTuple):
    """What to hold against what; `perturbed` and `methods` are empty for all."""

    workdir: Path
    attack: str
    perturbed: Sequence[str]
    methods: Sequence[str]
    config: Config


def read_config(workdir: Path, **folders: str | None) -> Config:
    """The settings of the run in a working directory; folders replace those that it was given."""
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(f"--workdir={workdir} has no config.json: name that of a finished run")
    values: dict[str, Any] = json.loads(path.read_text())["flags"]
    values |= {name: folder for name, folder in folders.items() if folder}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    values |= {name: values[name] and Path(values[name]).expanduser() for name in _FOLDERS}
    values |= {"weights": {m: Path(file) for m, file in values["weights"].items()}}
    settings: Any = {**values, "workdir": workdir}
    try:
        return Config(**settings)
    except TypeError as error:
        raise InputError(f"{path} is of another version: {error}") from None


def read_contenders(path: Path, seed: int, modalities: Sequence[str]) -> list[Contender]:
    """The chosen rules of results.csv in the worst case over attacks, and those without choice."""
    if not path.exists():
        raise InputError(f"{path} is missing: the run is not finished")
    learned = _read_learned(path.with_name("rules.json"), seed)
    found: dict[tuple[str, Rule], dict[int, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["threat_model"], row["perturbation"]) != ("known", WORST_ATTACK):
                continue
            if row["attack_target"] != ENSEMBLE or row["selected"] == "False":
                continue
            if int(row["seed"]) == seed:
                is_learned = row["method"] == LEARNED
                rule = learned[row["perturbed"]] if is_learned else _rule_of(row, modalities)
                accuracies = found.setdefault((row["perturbed"], rule), {})
                accuracies[int(row["severity"])] = float(row["accuracy"])
    if not found:
        raise InputError(
            f"{path} has no worst case over attacks with a known modality, seed {seed}"
        )
    return [Contender(*key, tuple(of[s] for s in SEVERITIES)) for key, of in found.items()]


def _read_learned(path: Path, seed: int) -> dict[str, Rule]:
    """The learned cascade that was chosen for every belief."""
    lines = json.loads(path.read_text())["rules"] if path.exists() else []
    return {
        line["believed"]: rule_from_json(json.dumps(line["rule"]))
        for line in lines
        if (line["seed"], line["selected"], line["rule"]["rule"]) == (seed, True, LEARNED)
    }


def _rule_of(row: Mapping[str, str], modalities: Sequence[str]) -> Rule:
    """The rule of a line of results.csv."""
    kind, *_ = row["method"].partition(":")
    values = {p: (float(row[p] or math.nan),) for p in PARAMETERS}
    # Of a check with the cascade of this confidence, and the one without, the first.
    return next(r for r in expand([kind], modalities, values) if r.name == row["method"])


def make_log_prob_fn(models: Models, contender: Contender, *, with_grams: bool) -> Any:
    """What an attacker sees: maps (x (B, ...), rows of `given_of`) to log-probabilities (B, K)."""
    modality, rule, _ = contender
    head_parameters = {name: head.parameters for name, head in models.heads.items()}

    def log_prob_fn(x: Any, given: Any) -> Any:
        outputs, grams = given
        outputs = {regime: dict(of_regime) for regime, of_regime in outputs.items()}
        for regime in _regimes_of(rule):
            classifier = models.classifiers[regime][modality]
            outputs[regime][modality] = classifier.output_fn(classifier.parameters, x)
        if with_grams:
            standard = models.classifiers["standard"][modality]
            grams = {**grams, modality: input_grams(standard, standard.parameters, x)}
        residuals = {}
        if isinstance(rule, ResidualCheck):
            residuals[modality] = residual(models.subspaces[modality], x)
        observed = observe(models, head_parameters, outputs, grams, residuals)
        return predict(rule, observed, evidence=models.evidence, believed=(modality,))

    return log_prob_fn


def _regimes_of(rule: Rule) -> tuple[str, ...]:
    """Of the classifiers that a rule needs."""
    regimes = ("standard", PROJECTED if isinstance(rule, Projection) else regime_of(rule))
    return tuple(dict.fromkeys(regimes))


def given_of(rows: Rows, contender: Contender) -> Any:
    """What is not attacked: outputs and Gram matrices of the other modalities."""
    modality, rule, _ = contender
    outputs = {
        regime: {m: output for m, output in rows.outputs[regime].items() if m != modality}
        for regime in _regimes_of(rule)
    }
    return outputs, {m: gram for m, gram in rows.grams.items() if m != modality}


def compare(
    contender: Contender, models: Models, rows: Rows, attack: str, *, with_grams: bool = False
) -> list[Line]:
    """Attacks a rule within every budget."""
    modality, rule, accuracies = contender
    log_prob_fn = make_log_prob_fn(models, contender, with_grams=with_grams)
    clean, given = rows.inputs[modality], given_of(rows, contender)
    withstands = partial(ATTACKS[attack], valid_range=models.valid_ranges[modality])
    right = np.asarray(withstands(log_prob_fn, clean, given, rows.labels, epsilons=EPSILONS))
    if isinstance(rule, ResidualCheck):  # its gradient is zero outside
        for number, epsilon in enumerate(EPSILONS):
            inside = _stay_inside(log_prob_fn, models, modality, epsilon)
            arguments = inside, clean, (clean, given), rows.labels
            right[number:] &= np.asarray(withstands(*arguments, epsilons=[epsilon]))
    return [
        Line(modality, rule.label, epsilon, ours, float(theirs))
        for epsilon, ours, theirs in zip(EPSILONS, accuracies, right.mean(axis=1), strict=True)
    ]


def _stay_inside(log_prob_fn: Any, models: Models, modality: str, epsilon: float) -> Any:
    """The prediction of what is left of inputs inside of what a check lets pass."""

    def inside_fn(x: Any, given: Any) -> Any:
        clean, others = given
        bounds = linf_bounds(clean, epsilon, models.valid_ranges[modality])
        return log_prob_fn(stay_inside(models.subspaces[modality], x, *bounds), others)

    return inside_fn


def verdict(lines: Sequence[Line], attack: str) -> str:
    """What is wrong, in one line; nothing where no worst case is more than a point too high."""
    worse = [line for line in lines if line.gap > _TOLERANCE + _ROUNDING]
    if not worse:
        return ""
    most = max(worse, key=lambda line: line.gap)
    return (
        f"{len(worse)} of {len(lines)} worst cases are more than a point above what {attack} "
        f"leaves, most of all {most.rule} with {most.perturbed} attacked, epsilon {most.epsilon}: "
        f"{100 * most.ours:.1f}% against {100 * most.theirs:.1f}%"
    )


def print_lines(lines: Sequence[Line]) -> None:
    """A table, accuracies in %."""
    cells = [
        (
            line.perturbed,
            line.rule,
            line.epsilon,
            *map(_percent, (line.ours, line.theirs, line.gap)),
        )
        for line in lines
    ]
    headers = ("perturbed", "rule", "epsilon", "ours", "theirs", "difference")
    print(tabulate.tabulate(cells, headers, tablefmt="github", disable_numparse=True), flush=True)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def run(settings: Settings) -> None:
    """Attacks all rules and prints what was found, rule by rule."""
    from experiments.run import start  # takes seconds

    config, attack = settings.config, settings.attack
    dataset = start.load(config, classifiers_only=True)
    results = config.workdir / "results.csv"
    contenders = [
        contender
        for contender in read_contenders(results, config.seed, dataset.modalities)
        if contender.modality in (settings.perturbed or dataset.modalities)
        and contender.rule.name in (settings.methods or (contender.rule.name,))
    ]
    if not contenders:
        raise InputError("--perturbed and --methods leave no rule of the run")
    models = start.prepare(config, dataset, config.seed).models
    with_grams = config.jacobian == "input"
    rows = make_rows(
        models, dataset.splits["test"], batch_size=config.batch_size, with_grams=with_grams
    ).first(config.num_attack)
    lines: list[Line] = []
    for contender in contenders:
        began = time.monotonic()
        lines += compare(contender, models, rows, attack, with_grams=with_grams)
        print_lines(lines[-len(EPSILONS) :])
        print(f"{time.monotonic() - began:.0f} s\n", flush=True)
    print_lines(lines)
    problem = verdict(lines, attack)
    if problem:
        sys.exit(problem)
    print(f"no worst case of {len(lines)} is more than a point above what {attack} leaves")


def define_flags(flag_values: absl_flags.FlagValues) -> None:
    """Declares all flags."""
    strings = {
        "workdir": "Folder of a finished run of experiments.robust_fusion.",
        "data_dir": "Folder of prepared data; default that of the run.",
        "manual_dir": "Folder of the raw files; default that of the run.",
    }
    for name, text in strings.items():
        absl_flags.DEFINE_string(name, None, text, flag_values)
    absl_flags.DEFINE_enum("attack", "independent", list(ATTACKS), "By what.", flag_values)
    for name in ("perturbed", "methods"):
        absl_flags.DEFINE_list(name, (), "Which of the run's; default all.", flag_values)


def settings_from_flags(flag_values: absl_flags.FlagValues) -> Settings:
    """Collects the flags, and those of the run."""
    given = flag_values
    if given.workdir is None:
        raise InputError("give --workdir, that of a finished run")
    workdir = Path(given.workdir).expanduser()
    config = read_config(workdir, data_dir=given.data_dir, manual_dir=given.manual_dir)
    return Settings(workdir, given.attack, given.perturbed, given.methods, config)


def main(argv: list[str], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    launch.start(argv, partial(settings_from_flags, flag_values), run)


if __name__ == "__main__":
    define_flags(absl_flags.FLAGS)
    launch.launch(main)
