"""The leaderboard: one JSON file a run, small enough to commit, and a page made of all of them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from experiments.reports.page.files import label_of
from experiments.run.command import command_of
from experiments.run.workdir import MEANS
from jacfuse_jax.evaluation.measure import WORST_ATTACK
from jacfuse_jax.evaluation.rules import PARAMETERS
from jacfuse_jax.evaluation.targets import STRENGTHS
from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.files import write_atomically

SCHEMA = 1
"""Of a result; one of a newer schema is refused."""
LICENCES: Mapping[str, str] = {
    "digits": "CC BY 4.0",
    "av_mnist": "MNIST CC BY-SA 3.0, recordings CC BY-SA 4.0, noise CC BY 3.0",
    "ravdess": "CC BY-NC-SA 4.0",
    "vggsound": "CC BY 4.0",
}
"""Of the data: none of them is in a result."""
_FILES = ("config.json", "results.csv", "summary.csv", "envelope.csv", "shuffled.csv", "rules.json")
_KEYS = (
    *("schema", "name", "seed", "licence", "command", "commit", "flags", "data", "versions"),
    *("device", "num_gradients", "rules", "figures", "envelope", "shuffled"),
)
_SHOWN = ("statistical", "scaled", "drop_suspect")


def collect(workdir: Path, *, name: str | None = None, licence: str | None = None) -> list[Any]:
    """Collects what a finished run has found, a result a seed.

    Args:
      workdir: of `experiments.robust_fusion`, with --num_select and
        --num_permutations.
      name: of the data set; None: that of the run, which arrays do not have.
      licence: of the data; None: that of `LICENCES`.

    Returns:
      Results, see `write`.

    Raises:
      InputError: the run is not finished or chose nothing, or its data have no name or licence.
    """
    for file in _FILES:
        if not (workdir / file).exists():
            raise InputError(
                f"--add={workdir} has no {file}: name the folder of a finished run of "
                "experiments.robust_fusion with --num_select and --num_permutations"
            )
    remedy = "give the command of the run again"
    config, rules = (_read_json(workdir / name, remedy) for name in ("config.json", "rules.json"))
    dataset = config["flags"]["dataset"]
    if name is None:
        has_folds = dataset == "ravdess"
        name = f"{dataset}/fold_{config['flags']['fold']}" if has_folds else dataset
    licence = LICENCES.get(dataset.partition("/")[0]) if licence is None else licence
    if name == "arrays" or licence is None:
        raise InputError(f"--add={workdir} is of data of one's own; give --name and --licence")
    if config["num_gradients"] is None:
        raise InputError(f"--add={workdir} is not finished; give its command again")
    flags = {key: value for key, value in config["flags"].items() if key not in MEANS}
    flags["weights"] = {m: Path(file).name for m, file in flags.get("weights", {}).items()}
    tables = {file: pd.read_csv(workdir / file) for file in _FILES if file.endswith(".csv")}
    results: list[Any] = []
    for seed in sorted(tables["results.csv"].seed.unique()):
        of_seed = {file: frame[frame.seed == seed] for file, frame in tables.items()}
        results.append(
            {
                "schema": SCHEMA,
                "name": name,
                "seed": int(seed),
                "licence": licence,
                "command": command_of(config["flags"]),
                "commit": config.get("commit"),
                "flags": flags,
                "data": config["data"],
                "versions": config["versions"],
                "device": config["device"],
                "num_gradients": config["num_gradients"],
                "rules": [rule for rule in rules["rules"] if rule["seed"] == seed],
                "figures": _figures(of_seed["results.csv"], of_seed["summary.csv"]),
                "envelope": _records(of_seed["envelope.csv"].drop(columns="seed")),
                "shuffled": _records(of_seed["shuffled.csv"].drop(columns="seed")),
            }
        )
    return results


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise InputError(f"{path} is no JSON; {remedy}") from None


def write(result: Mapping[str, Any], folder: Path) -> Path:
    """Writes a result as <name>_seed_<seed>.json.

    Args:
      result: of `collect`.
      folder: of all results.

    Returns:
      The path written.
    """
    path = folder / f"{result['name'].replace('/', '_')}_seed_{result['seed']}.json"
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    return path


def read(folder: Path) -> list[Any]:
    """Reads all results of a folder, by name and seed.

    Args:
      folder: with files of `write`.

    Raises:
      InputError: there is none, or a file is none of this schema.
    """
    results: list[Any] = []
    for path in sorted(folder.glob("*.json")):
        result = _read_json(path, "make it again with --add")
        if not isinstance(result, dict) or result.get("schema") != SCHEMA:
            found = result.get("schema") if isinstance(result, dict) else None
            raise InputError(f"{path} has schema {found}, not {SCHEMA}; make it again with --add")
        missing = [key for key in _KEYS if key not in result]
        if missing:
            raise InputError(f"{path} has no {', '.join(missing)}; make it again with --add")
        results.append(result)
    if not results:
        raise InputError(f"--results={folder} has no results; give --add")
    results.sort(key=lambda result: (result["name"], result["seed"]))
    first: dict[str, Any] = {}
    for result in results:
        other = first.setdefault(result["name"], result)
        if _setting_of(result) != _setting_of(other):
            raise InputError(
                f"--results={folder}: seeds {other['seed']} and {result['seed']} of "
                f"{result['name']} are of different settings; give one of them another --name"
            )
    return results


def _setting_of(result: Mapping[str, Any]) -> Any:
    """What the results of one name have in common."""
    seeds = ("seed", "num_seeds")
    return {key: value for key, value in result["flags"].items() if key not in seeds}


def make_page(results: Sequence[Any], picture: str = "leaderboard.png") -> str:
    """The leaderboard in Markdown.

    Args:
      results: of `read`.
      picture: name of the file of `leaderboard_figure`, beside the page.
    """
    parts = [_INTRODUCTION, f"![What chosen rules are worth by the share of attacks]({picture})"]
    by_name: dict[str, list[Any]] = {}
    for result in results:
        by_name.setdefault(result["name"], []).append(result)
    for name, of_name in by_name.items():
        parts += [f"## {name}", _setting(of_name), "Worth by share of attacks:"]
        parts.append(_envelope_table(of_name))
        frame = _figures_frame(of_name)
        for perturbed, of_scenario in frame.groupby("perturbed", sort=False):
            table = _figures_table(of_scenario, _weights(of_name, perturbed))
            parts += [f"{perturbed} perturbed, accuracy in %:", table]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """# Leaderboard

Made from [results](../results) by `python -m experiments.leaderboard`; a run is added by
`--add=<workdir>`.

One modality is attacked, and the defender knows which. "Worth" of a rule, for a share s of
attacked inputs, is (1 - s) accuracy on clean test rows + s accuracy in the worst case of attacks
in the maximum norm, mean over budgets. Rule and parameters were chosen on validation rows, out of
as many as stated; test rows had no part in it. Differences are to statistical fusion, to scaled
fusion with the scale chosen for the same share, and to dropping the suspect. Intervals are 95%,
over groups of rows that depend on each other; of several seeds, means, and the widest ends. Bold:
more than all that were measured by more than the interval; struck out: less than one of them by
more than the interval. Of rules whose parameters differ from seed to seed the name alone stands.
"Own weights": by how many points accuracy under corruptions is higher with the weights that a
rule gives every sample (recalibration, gate, energy) than with those of other samples; where the
interval contains zero they are not told from decoration."""


def _setting(results: Sequence[Any]) -> str:
    """How it was measured, and what classifiers do alone."""
    first = results[0]
    flags = first["flags"]
    seeds = ", ".join(str(result["seed"]) for result in results)
    rows = _figures_frame(results)
    alone = rows[rows.method.str.startswith("unimodal:")].groupby("method", sort=False).clean.mean()
    clean = rows[rows.method == "statistical"].clean.mean()
    said = ", ".join(f"{n.partition(':')[2]} {100 * x:.1f}%" for n, x in alone.items())
    budgets = ", ".join(f"{epsilon:g}" for epsilon in STRENGTHS["apgd"])
    num_attacked = int(rows.num_attacked.max())
    return (
        f"`{first['command']}`\n\n"
        f"Seeds {seeds}; classifiers {said}, fused {_number(clean)}%; {num_attacked} test rows "
        f"attacked within {budgets} of the input's range, at most {flags['num_select']} validation "
        f"rows attacked to choose by; commit {first['commit']}, jax {first['versions']['jax']}, "
        f"{first['device']}. Data: {first['licence']}."
    )


def _envelope_table(results: Sequence[Any]) -> str:
    """What chosen rules are worth, a line a suspect and share."""
    frame = pd.concat([pd.DataFrame(r["envelope"]).assign(seed=r["seed"]) for r in results])
    frame["against"] = frame.baseline.str.partition(" ")[0]
    body = []
    for _, lines in frame.groupby(["perturbed", "share"], sort=False):
        own = lines.drop_duplicates("seed")
        cells = {name: lines[lines.against == name] for name in _SHOWN}
        known = [cell for cell in cells.values() if len(cell)]
        label = _one_of(own.method)
        if all(cell.difference_low.min() > 0 for cell in known):
            label = f"**{label}**"
        if any(cell.difference_high.max() < 0 for cell in known):
            label = f"~~{label}~~"
        worth = _percent(own.expected.mean(), own.low.min(), own.high.max())
        body.append(
            [
                *(
                    lines.perturbed.iloc[0],
                    f"{lines.share.iloc[0]:g}",
                    label,
                    int(own.num_candidates.max()),
                    worth,
                ),
                *(
                    _percent(
                        cell.difference.mean(),
                        cell.difference_low.min(),
                        cell.difference_high.max(),
                        sign="+",
                    )
                    for cell in cells.values()
                ),
            ]
        )
    headers = ["suspect", "share", "chosen", "of", "worth", *_SHOWN[:2], "dropping"]
    return _table(headers, body, num_texts=3)


def _weights(results: Sequence[Any], perturbed: Any) -> dict[str, str]:
    """By how many points a rule's own weights are better than those of other samples."""
    frame = pd.DataFrame([line for r in results for line in r["shuffled"]])
    if frame.empty:
        return {}
    frame = frame[frame.perturbed == perturbed].copy()
    frame["rule"] = frame.method.str.partition(" ")[0]
    return {
        str(rule): _percent(lines.difference.mean(), lines.low.min(), lines.high.max(), sign="+")
        + (" (decoration)" if lines.low.min() <= 0 <= lines.high.max() else "")
        for rule, lines in frame.groupby("rule")
    }


def _figures_table(frame: Any, weights: Mapping[str, str]) -> str:
    """What every rule achieves, by accuracy in the worst case."""
    body = []
    for method, lines in frame.groupby("method", sort=False):
        label = _one_of(lines.label)
        clean = _percent(lines.clean.mean(), lines.clean_low.min(), lines.clean_high.max())
        worst = _percent(lines.worst.mean(), lines.worst_low.min(), lines.worst_high.max())
        others = [_number(lines[name].mean()) for name in ("corruptions", "certified")]
        order = lines.worst.mean(), method
        own = weights.get(str(method), "")
        body.append((order, [label, clean, others[0], worst, others[1], own]))
    body.sort(key=lambda line: line[0], reverse=True)
    headers = ["rule", "clean", "corruptions", "worst case", "certified", "own weights"]
    return _table(headers, [line for _, line in body], num_texts=1)


def _table(headers: Sequence[str], body: Sequence[Sequence[Any]], num_texts: int) -> str:
    """In Markdown; numbers to the right."""
    alignment = ["left"] * num_texts + ["right"] * (len(headers) - num_texts)
    return tabulate(
        body, headers, tablefmt="pipe", disable_numparse=True, colalign=alignment, numalign=None
    )


def _figures_frame(results: Sequence[Any]) -> Any:
    return pd.concat([pd.DataFrame(r["figures"]).assign(seed=r["seed"]) for r in results])


def _figures(rows: Any, summaries: Any) -> list[Any]:
    """Of every rule that was not passed over, where the defender knows what is perturbed."""
    key = ["perturbed", "method", *PARAMETERS]
    known = rows[(rows.threat_model == "known") & rows.selected.ne(False)]
    clean = known[known.perturbation == "clean"]
    chosen = summaries[(summaries.threat_model == "known") & summaries.selected.ne(False)]
    if WORST_ATTACK not in set(known.perturbation):
        raise InputError("a run without attacks in the maximum norm is none for the leaderboard")
    merged = chosen.merge(clean[[*key, "ci_low", "ci_high"]], on=key, how="left")
    worst = known[known.perturbation == WORST_ATTACK].drop_duplicates(key)
    merged = merged.merge(worst[[*key, "num_examples"]], on=key, how="left")
    names = {"num_examples": "num_attacked", "ci_low": "clean_low", "ci_high": "clean_high"}
    merged = merged.rename(columns=names)
    texts = merged.astype(object).where(merged.notna(), "").astype(str)
    merged["label"] = [label_of(line) for line in texts.to_dict("records")]
    shares = ("clean", "clean_low", "clean_high", "corruptions", "worst", "worst_low", "worst_high")
    return _records(merged[["perturbed", "method", "label", *shares, "certified", "num_attacked"]])


def _one_of(labels: Any) -> str:
    """The label that all seeds have, or the name of the rule."""
    unique = list(dict.fromkeys(labels))
    names = list(dict.fromkeys(label.partition(" ")[0] for label in unique))
    return unique[0] if len(unique) == 1 else " or ".join(names)


def _records(frame: Any) -> list[Any]:
    """Lines as JSON has them: None for what does not apply."""
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()}
        for line in frame.to_dict("records")
    ]


def _percent(mean: float, low: float, high: float, sign: str = "") -> str:
    if math.isnan(mean):
        return ""
    return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _number(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}"
