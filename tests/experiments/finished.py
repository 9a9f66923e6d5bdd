"""Working directories of runs that have ended, by hand: their figures can be foretold."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jacfuse_jax.evaluation.rules import PARAMETERS
from jacfuse_jax.selection import FAULTS

MODALITIES = ("image", "audio")
SHARES = (0.02, 0.1, 0.5)
STATED = 0.1
# Columns of parameters, label, whether it was chosen, clean accuracy and loss at severity 5.
RULES: tuple[tuple[str, dict[str, float], str, str, float, float], ...] = (
    ("mean", {}, "mean", "", 0.88, 0.8),
    ("statistical", {}, "statistical", "", 0.95, 0.9),
    ("scaled", {"scale": 0.5}, "scaled t=0.5", "True", 0.93, 0.5),
    ("scaled", {"scale": 0.2}, "scaled t=0.2", "False", 0.90, 0.4),
    ("drop_suspect", {"confidence": 0.0}, "drop_suspect c=0", "True", 0.7, 0.0),
    ("cascade", {"confidence": 0.8, "tempering": 1.0}, "cascade c=0.8 t=1", "True", 0.94, 0.3),
)
CLEAN = {label: clean for *_, label, _, clean, _ in RULES}
WORST = {label: clean - 0.6 * loss for *_, label, _, clean, loss in RULES}  # mean severity 3 of 5
HALF = 0.03  # half of an interval


def worth(label: str, share: float, shift: float = 0.0) -> float:
    """(1 - share) clean + share worst."""
    return (1 - share) * CLEAN[label] + share * WORST[label] + shift


def write_csv(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    rows = [*lines]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def chosen_for(share: float) -> str:
    return "statistical" if share < 0.05 else "cascade c=0.8 t=1"


def write_run(
    folder: Path,
    *,
    seeds: Sequence[int] = (0,),
    is_chosen: bool = True,
    modalities: Sequence[str] = MODALITIES,
    threat_models: Sequence[str] = ("known", "unknown"),
    dataset: str = "digits",
) -> Path:
    """What `experiments.robust_fusion` leaves; every seed adds a point of accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [(s, t, m) for s in seeds for t in threat_models for m in modalities]
    results: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    for seed, threat_model, perturbed in keys:
        scenario = {"seed": seed, "threat_model": threat_model, "perturbed": perturbed}
        for method, parameters, label, selected, clean, loss in RULES:
            shift = 0.01 * (seed - seeds[0])
            rule: dict[str, Any] = {"method": method}
            rule |= {name: parameters.get(name, "") for name in PARAMETERS}
            rule["selected"] = selected if is_chosen else ""
            for perturbation, severities in (
                ("clean", (0,)),
                ("missing", range(1, 6)),
                ("worst_attack", range(1, 6)),
            ):
                for severity in severities:
                    accuracy = round(clean - loss * severity / 5 + shift, 6)
                    results.append(
                        {
                            "dataset": dataset,
                            **scenario,
                            "perturbation": perturbation,
                            "severity": severity,
                            "attack_target": "ensemble" if perturbation == "worst_attack" else "",
                            **rule,
                            "accuracy": accuracy,
                            "ci_low": round(accuracy - HALF, 6),
                            "ci_high": round(accuracy + HALF, 6),
                            "ece": 0.125,
                            "num_examples": 60 if perturbation == "worst_attack" else 500,
                        }
                    )
            worst = WORST[label] + shift
            summary.append(
                {
                    **scenario,
                    **rule,
                    "clean": clean + shift,
                    "corruptions": worst,
                    "transfer": worst + 0.02,
                    "adaptive": worst + 0.01,
                    "worst": worst,
                    "worst_low": worst - HALF,
                    "worst_high": worst + HALF,
                    "certified": 0.7 if method == "drop_suspect" else "",
                }
            )
    write_csv(folder / "results.csv", results)
    write_csv(folder / "summary.csv", summary)
    if is_chosen:
        write_csv(folder / "envelope.csv", _envelope(seeds, modalities))
    content = {
        "flags": {
            "dataset": dataset,
            "workdir": str(folder),
            "data_dir": "/home/somebody/data",
            "kinds": {},
            "weights": {},
            "perturbed": [*modalities],
            "perturbations": ["clean", "missing", "apgd"],
            "num_select": 150 if is_chosen else 0,
            "select_attack": "apgd",
            "attack_share": STATED,
            "attack_steps": 10,
            "num_restarts": 1,
            "seed": seeds[0],
            "num_seeds": len(seeds),
        },
        "versions": {"python": "3.11.7", "jax": "0.9.2"},
        "device": "cpu",
        "wall_time_s": 3725.2,
        "num_gradients": 1234567,
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def _envelope(seeds: Sequence[int], modalities: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Lines of envelope.csv: differences of seeds are told apart by half a point."""
    for seed in seeds:
        shift = 0.01 * (seed - seeds[0])
        for perturbed in modalities:
            for share in SHARES:
                label = chosen_for(share)
                expected = worth(label, share, shift)
                for baseline in ("statistical", "drop_suspect c=0", "scaled t=0.5"):
                    # What is added to a baseline is lost to the difference.
                    difference = expected - worth(baseline, share, shift / 2)
                    half = 0.0 if baseline == label else HALF
                    yield {
                        "seed": seed,
                        "perturbed": perturbed,
                        "share": share,
                        "method": label,
                        "expected": f"{expected:.6f}",
                        "low": f"{expected - HALF:.6f}",
                        "high": f"{expected + HALF:.6f}",
                        "baseline": baseline,
                        "difference": f"{difference:.6f}",
                        "difference_low": f"{difference - half:.6f}",
                        "difference_high": f"{difference + half:.6f}",
                    }


def write_certified(folder: Path, *, modalities: Sequence[str] = MODALITIES) -> Path:
    """What `experiments.certified` leaves; config.json where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    rules = (
        ("statistical", "", "", "True", 0.95, 0.0),
        ("contaminated", 0.3, "", "True", 0.92, 0.41),
        ("contaminated", 0.7, "", "False", 0.8, 0.6),
        ("cascade", "", 0.8, "True", 0.94, 0.62),
    )
    lines: list[dict[str, Any]] = []
    for corrupted in modalities:
        for method, contamination, confidence, selected, clean, sure in rules:
            line = {"dataset": "digits", "seed": 0, "corrupted": corrupted, "method": method}
            line |= {"contamination": contamination, "confidence": confidence}
            line |= {"selected": selected}
            for name, share in (("clean", clean), ("certified", sure)):
                line |= {name: share, f"{name}_low": share - 0.02, f"{name}_high": share + 0.02}
            lines.append({**line, "num_examples": 500})
    write_csv(folder / "certified.csv", lines)
    radii = {"dataset": "digits", "seed": 0, "corrupted": modalities[0], "method": "statistical"}
    radii |= {"contamination": "", "gamma": "", "lipschitz": 12.0, "unlimited": 0, "median": 0.0123}
    radii |= {"changed_1": 0, "changed_10": 0.25, "changed_100": 0.5, "num_examples": 60}
    # Whatever the modality says: there is no radius to speak of.
    unlimited = {**radii, "method": "contaminated", "contamination": 0.7, "unlimited": 1}
    unlimited |= {"median": "inf", "changed_1": "nan", "changed_10": "nan", "changed_100": "nan"}
    write_csv(folder / "radii.csv", [radii, unlimited])
    if not (folder / "config.json").exists():
        flags = {"dataset": "digits", "workdir": str(folder), "attack_share": STATED, "seed": 0}
        content = {"flags": flags, "versions": {"jax": "0.9.2"}, "device": "cpu"}
        (folder / "config.json").write_text(json.dumps(content))
    return folder


def write_stress(folder: Path, *, modalities: Sequence[str] = MODALITIES) -> Path:
    """What `experiments.stress_predictions` leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    rules = (
        ("statistical", "", 0.9, 0.1),
        ("cascade", "confidence=0 tempering=1", 0.7, 0.7),
        ("contaminated", "contamination=0.3 tempering=1", 0.88, 0.6),
        ("robust", "gamma=0.1", 0.89, 0.2),
    )
    lines = [
        {
            "suspect": suspect,
            "rule": rule,
            "parameters": parameters,
            "clean": clean,
            "clean_low": clean - HALF,
            "clean_high": clean + HALF,
            "any_input": "" if rule == "robust" else 0.05,
            **{fault: worst + 0.01 * i for i, fault in enumerate(FAULTS)},
            "share_best": "0.1 0.5" if rule == "contaminated" else "",
            "remark": "",
            "schema": 1,
        }
        for suspect in modalities
        for rule, parameters, clean, worst in rules
    ]
    write_csv(folder / "stress.csv", lines)
    coverage = [
        {
            "suspect": suspect,
            "rule": "contaminated",
            "parameters": "contamination=0.3 tempering=1",
            "criterion": criterion,
            "threshold": 0.5,
            "coverage": covered,
            "accuracy": accuracy,
        }
        for suspect in modalities
        for criterion, covered, accuracy in (
            *(("confidence", 0.5, 0.99), ("confidence", 1, 0.88)),
            *(("certified", 0.4, 1.0), ("certified", 1, 0.88)),
        )
    ]
    write_csv(folder / "coverage.csv", coverage)
    rule = {"schema": 1, "rule": "contaminated", "contamination": 0.3, "tempering": 1.0}
    entries = [
        {
            "suspect": suspect,
            "perturbed": [suspect],
            "rule": rule,
            "share": share,
            "against": "faults",
            "expected": (1 - share) * 0.88 + share * 0.6,
            "low": 0.8,
            "high": 0.9,
            "clean": 0.88,
            "worst": 0.6,
            "worst_case": "silent",
            "baselines": {
                "statistical": {"expected": (1 - share) * 0.9 + share * 0.1},
                "cascade c=0 t=1": {"expected": 0.7},
            },
        }
        for suspect in modalities
        for share in (0.1, 0.5)
    ]
    content = {"schema": 1, "chosen": entries, "modalities": [*modalities], "num_rows": 1440}
    content |= {"num_groups": 24, "seed": 0, "versions": {"jax": "0.9.2"}}
    (folder / "chosen.json").write_text(json.dumps(content))
    return folder
