"""What a run was asked to do, and how to do it again."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.catalogue import ARRAYS
from experiments.reports.page.estimates import listed
from experiments.reports.page.files import Run
from experiments.reports.page.scenarios import scenarios_of
from experiments.run.command import arguments_of
from jacfuse_jax.evaluation.names import ATTACKS, CORRUPTIONS
from jacfuse_jax.evaluation.targets import STRENGTHS

_THREAT_MODELS = {
    "known": "the defender knows which one",
    "wrong": "the defender believes that all others are",
    "unknown": "the defender does not know which one",
    "detect": "the defender judges each sample",
    "both": "all are, and the defender knows",
    "either": "whichever hurts most is, and the defender does not know which one",
}


def facts_of(run: Run) -> dict[str, str]:
    """The setting of a run, {term: in words}.

    Args:
      run: read.
    """
    flags = run.config.get("flags", {})
    facts = {"Run": run.name}
    if run.results or run.certified:
        facts["Data"] = _data(run, flags)
    if run.results:
        facts |= _attacks(run, flags)
    if run.certified:
        facts["Certified"] = "against any input, and any prediction, of one modality"
        if run.results:
            facts["Certified"] += "; flags that this alone was given are not recorded"
    if run.chosen:
        facts |= _failures(run.chosen)
    facts["Seeds"] = listed(run.seeds) if run.seeds else str(run.chosen.get("seed", "not recorded"))
    facts["Device"] = str(run.config.get("device", "not recorded"))
    seconds, gradients = run.config.get("wall_time_s"), run.config.get("num_gradients")
    facts["Time"] = "not recorded" if seconds is None else _duration(seconds)
    if run.results:
        facts["Gradients"] = "not recorded" if gradients is None else f"{gradients:,} in attacks"
    versions = run.config.get("versions") or run.chosen.get("versions", {})
    facts["Versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return facts


def commands_of(run: Run) -> list[str]:
    """Commands that repeat a run, but for folders.

    Args:
      run: read.
    """
    flags = run.config.get("flags", {})
    commands: list[str] = []
    for lines, binary in ((run.results, "robust_fusion"), (run.certified, "certified")):
        if lines:
            parts = [f"python -m experiments.{binary}", f"--workdir=runs/{shlex.quote(run.name)}"]
            if flags.get("manual_dir"):
                parts.append(f"--manual_dir={shlex.quote(Path(flags['manual_dir']).name)}")
            parts += map(shlex.quote, arguments_of(flags))
            commands.append(" \\\n    ".join(parts))
    if run.chosen:
        commands.append(" \\\n    ".join(_stress_command(run)))
    return commands


def _data(run: Run, flags: Mapping[str, Any]) -> str:
    """Which rows."""
    name = str(flags.get("dataset", "not recorded"))
    if name == ARRAYS and flags.get("manual_dir"):
        name = f"arrays of the folder {Path(flags['manual_dir']).name}"
    lines = run.results or run.certified
    count = max(int(line["num_examples"]) for line in lines)
    return f"{name}, {count} test rows"


def _attacks(run: Run, flags: Mapping[str, Any]) -> dict[str, str]:
    """What is perturbed, how strongly, and how parameters were chosen."""
    scenarios = scenarios_of(run)
    attacked = max(scenario.num_attacked for scenario in scenarios)
    modalities = dict.fromkeys(scenario.perturbed for scenario in scenarios)
    models = dict.fromkeys(scenario.threat_model for scenario in scenarios)
    names = flags.get("perturbations", [])
    attacks = [name for name in names if name in ATTACKS]
    corruptions = [name.replace("_", " ") for name in names if name in CORRUPTIONS]
    facts = {
        "Perturbed": "; ".join(modalities),
        "Threat models": "; ".join(f"{m}: {_THREAT_MODELS.get(m, m)}" for m in models),
    }
    if attacks:
        budgets = "; ".join(
            f"{name} with {', '.join(f'{e:g}' for e in STRENGTHS[name])}" for name in attacks
        )
        facts["Attacks"] = (
            f"{budgets}, in units of the input; steps: {flags.get('attack_steps')}, "
            f"starts: {flags.get('num_restarts')}; the first {attacked} test rows"
        )
    if corruptions:
        facts["Corruptions"] = f"{listed(corruptions)}, at severities 1 to 5"
    facts["Choice"] = _choice(flags)
    return facts


def _choice(flags: Mapping[str, Any]) -> str:
    """How parameters were chosen."""
    if not flags.get("num_select"):
        return "none: all parameters are shown"
    share = flags.get("attack_share", 0)
    return (
        f"on validation rows, {flags['num_select']} of them attacked by "
        f"{flags.get('select_attack')}, for {100 * share:g}% of attacked inputs "
        f"(--attack_share={share:g}): of the parameters of a rule, and of all rules, that are not "
        "told apart from the best, those with the highest clean accuracy"
    )


def _failures(chosen: Mapping[str, Any]) -> dict[str, str]:
    """What fails, of saved predictions."""
    rows = f"{chosen.get('num_rows', '?')} labelled rows"
    if chosen.get("num_groups"):
        rows += f" of {chosen['num_groups']} groups"
    shares = dict.fromkeys(f"{100 * entry['share']:g}%" for entry in chosen["chosen"])
    against = dict.fromkeys(entry["against"] for entry in chosen["chosen"])
    return {
        "Data": f"{rows}, predictions of {listed(chosen.get('modalities', ['?']))}",
        "Fails": listed(dict.fromkeys(entry["suspect"] for entry in chosen["chosen"]), "or"),
        "Worst case": f"against {listed(against)}",
        "Choice": f"on the same rows, for failures in {listed(shares, 'or')} of inputs",
    }


def _stress_command(run: Run) -> list[str]:
    """The command for saved predictions, whose files are not told."""
    chosen = run.chosen
    entries = chosen["chosen"]
    parts = ["python -m experiments.stress_predictions"]
    names = chosen.get("modalities", [])
    parts += [f"--input={shlex.quote(f'{name}={name}.npz')}" for name in names]
    if chosen.get("num_groups"):
        parts.append("--groups_column=GROUPS")
    shares = ",".join(dict.fromkeys(f"{entry['share']:g}" for entry in entries))
    parts += [f"--attack_shares={shares}", f"--against={entries[0]['against']}"]
    failing = [e["suspect"].removeprefix("any ") for e in entries if e["suspect"][:4] == "any "]
    if failing and failing[0].isdigit():
        parts.append(f"--num_failing={failing[0]}")
    return [
        *parts,
        f"--seed={chosen.get('seed', 0)}",
        f"--output=runs/{shlex.quote(run.name)}",
    ]


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
