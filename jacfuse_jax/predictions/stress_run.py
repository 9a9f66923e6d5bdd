"""The run of `stress`: measures, chooses, writes."""

import contextlib
from importlib import metadata
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from jacfuse_jax import selection
from jacfuse_jax.predictions.flags import StressConfig
from jacfuse_jax.predictions.labelled import LabelledRows, draw_labelled
from jacfuse_jax.predictions.needs import check_stress_run
from jacfuse_jax.predictions.opening import Opened, find_classes, names_of, open_inputs
from jacfuse_jax.predictions.stress_tables import Stressed, make_report, write_tables
from jacfuse_jax.programs.files import make_folder, write_atomically
from jacfuse_jax.selection import Candidate, Measured, Suspects

_PACKAGES = ("jacfuse_jax", "jax", "numpy")


class Outcome(NamedTuple):
    """What a run finds.

    Attributes:
      stressed: of each kind of failure.
      report: for people.
    """

    stressed: list[Stressed]
    report: str


def run(config: StressConfig) -> Outcome:
    """Measures all rules, chooses one for every share, and writes tables.

    Args:
      config: all settings.

    Returns:
      What was found.

    Raises:
      InputError: a file or flag does not fit.
    """
    classes = find_classes(config, [*config.input.values()])
    check_stress_run(config, names_of(config))
    make_folder(config.output, f"--output={config.output}")
    with contextlib.ExitStack() as stack:
        opened = open_inputs(
            config,
            {},
            classes,
            recalibrated=list(config.input),
            is_recalibrated=True,
            folder=config.output,
            stack=stack,
        )
        rows = draw_labelled(opened, "stress")
    failures = [Suspects.of(name) for name in config.input]
    failures.append(Suspects.any_of(config.input, config.num_failing))
    stressed = [_stress(suspects, rows, opened, config) for suspects in failures]
    # What was chosen before is of other tables.
    (config.output / "chosen.json").unlink(missing_ok=True)
    write_tables(config.output, stressed, rows.groups, config.seed)
    chosen = selection.chosen_to_json(
        [(each.suspects, choice) for each in stressed for choice in each.choices],
        {
            "modalities": list(config.input),
            "classes": classes and classes.names,
            "class_prior": opened.class_prior.tolist(),
            "num_rows": len(rows.labels),
            "num_groups": None if rows.groups is None else len(np.unique(rows.groups)),
            "seed": config.seed,
            "versions": {name: metadata.version(name) for name in _PACKAGES},
        },
    )
    write_atomically(config.output / "chosen.json", chosen)
    remarks = [*opened.class_remarks]
    remarks += [f"no kernel of {m}: its Gram matrix is the identity" for m in opened.identity_gram]
    return Outcome(stressed, make_report(stressed, rows, remarks))


def _stress(
    suspects: Suspects, rows: LabelledRows, opened: Opened, config: StressConfig
) -> Stressed:
    """Measures all rules, and chooses one for each share."""
    arguments = (rows.logits, rows.labels, opened.class_prior, suspects)
    options: dict[str, Any] = {
        "groups": rows.groups,
        "present": rows.present,
        "seed": config.seed,
    }
    candidates = selection.candidates(*arguments, shares=config.attack_shares, **options)
    # Each kind of rule is compiled once.
    kinds = [[*of_kind] for _, of_kind in groupby(candidates, key=_kind)]
    measured: list[Measured] = []
    with tqdm(total=len(candidates), unit="rule", desc=suspects.name, disable=None) as progress:
        for of_kind in kinds:
            measured += selection.measure(of_kind, *arguments, grams=opened.grams, **options)
            progress.update(len(of_kind))
    choices = [
        selection.choose(
            measured, share, against=config.against, groups=rows.groups, seed=config.seed
        )
        for share in config.attack_shares
    ]
    return Stressed(suspects, measured, choices)


def _kind(candidate: Candidate) -> str:
    return candidate.rule.kind
