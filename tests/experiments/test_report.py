import csv
from typing import Any

import pytest

from experiments import report
from experiments.evaluation import Row
from experiments.files import write_atomically


def make_row(**changes):
    values: dict[str, Any] = {
        "dataset": "digits",
        "seed": 0,
        "perturbed": "upper",
        "perturbation": "clean",
        "severity": 0,
        "attack_target": None,
        "method": "mean",
        "gamma": None,
        "scale": None,
        "contamination": None,
        "tempering": None,
        "accuracy": 0.75,
        "ci_low": 0.5,
        "ci_high": 0.9,
        "nll": 1 / 3,
        "brier": 0.25,
        "ece": 0.0,
        "num_examples": 8,
    }
    return Row(**{**values, **changes})


ROWS = [
    make_row(),
    make_row(method="robust", gamma=1e-6, accuracy=1.0),
    make_row(perturbation="fgm", severity=1, attack_target="unimodal:upper", accuracy=0.5),
    make_row(perturbation="fgm", severity=2, attack_target="unimodal:upper", accuracy=0.25),
    make_row(perturbation="fgm", severity=1, attack_target="mean", accuracy=0.0),
]


def test_csv_leaves_what_does_not_apply_empty(tmp_path):
    report.write_csv(ROWS, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        first, second, *_ = csv.DictReader(file)
    assert first["gamma"] == first["scale"] == first["attack_target"] == ""
    assert second["gamma"] == "1e-06"
    assert float(first["nll"]) == pytest.approx(1 / 3, abs=1e-6)
    assert first["num_examples"] == "8"


def test_table_averages_over_severities_and_tells_transfer_from_adaptive():
    lines = report.make_table(ROWS).splitlines()
    assert lines[0] == "digits, upper perturbed (accuracy in %, mean over severities)"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["method", "clean", "fgm, transfer", "fgm, adaptive", "worst attack"]
    assert cells[2] == ["mean", "75.0", "37.5", "0.0", "12.5"]
    assert cells[3] == ["robust γ=1e-06", "100.0", "", "", ""]


def test_figures_are_drawn_for_perturbed_modalities_with_perturbations(tmp_path):
    rows = [*ROWS, make_row(perturbed="lower")]
    paths = report.write_figures(rows, tmp_path / "figures")
    assert paths == [tmp_path / "figures" / "accuracy_upper.png"]
    assert paths[0].stat().st_size > 5_000


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def interrupted(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_text() == "old"
