import subprocess
import sys

import numpy as np
import pytest

from experiments import certified, radii
from experiments.certified import Row
from tests.experiments import runs

FLAGS = (
    *runs.SMALL,
    "--num_epochs=12",
    "--contaminations=0.9,0.97",
    "--confidences=0.4,0.6",
    "--max_clean_loss=0.02",
)


def start(workdir, *flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.certified", f"--workdir={workdir}", *flags],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_writes_what_is_certified(tmp_path):
    process = start(tmp_path / "run", *FLAGS)
    assert process.returncode == 0, process.stderr[-2000:]
    rows = runs.read_rows(tmp_path / "run", "certified.csv")
    assert list(rows[0]) == list(Row._fields)
    assert (tmp_path / "run" / "figures" / "certified.png").stat().st_size > 10_000
    for corrupted in ("upper", "lower"):
        chosen = [row for row in rows if row["corrupted"] == corrupted]
        assert [(r["method"], r["contamination"], r["confidence"]) for r in chosen] == [
            ("statistical", "", ""),
            ("contaminated", "0.9", ""),
            ("contaminated", "0.97", ""),
            ("cascade", "", "0.4"),
            ("cascade", "", "0.6"),
        ]
        for method in ("statistical", "contaminated", "cascade"):
            marks = [r["selected"] for r in chosen if r["method"] == method]
            assert marks.count("True") == 1
        values = np.array([[float(r["clean"]), float(r["certified"])] for r in chosen])
        assert (values[:, 1] <= values[:, 0]).all()
        assert values[0, 1] == 0  # statistical fusion
        assert values[2, 1] > values[1, 1] > 0  # more contamination, more certified
        assert values[3, 1] > values[4, 1] > 0  # less confidence needed, more certified
        for row in chosen:
            for name in ("clean", "certified"):
                low, mid, high = (float(row[name + end]) for end in ("_low", "", "_high"))
                assert low <= mid <= high
    assert process.stdout.count(" *") == 6
    check_radii(runs.read_rows(tmp_path / "run", "radii.csv"), rows)
    # It reports the rows of the file.
    lines = [line for line in process.stdout.splitlines() if line.startswith("| upper")]
    cells = [cell.strip() for cell in lines[0].split("|")]
    assert cells[2:4] == ["statistical *", f"{100 * float(rows[0]['clean']):.1f}"]


def check_radii(found, certified_rows):
    assert list(found[0]) == list(radii.Row._fields)
    chosen = {
        row["corrupted"]: row["contamination"]
        for row in certified_rows
        if row["method"] == "contaminated" and row["selected"] == "True"
    }
    assert [(r["corrupted"], r["method"], r["contamination"], r["gamma"]) for r in found] == [
        (modality, *rule)
        for modality in ("upper", "lower")
        for rule in (
            ("statistical", "", ""),
            ("contaminated", chosen[modality], ""),
            ("robust", "", "0.1"),
        )
    ]
    for row in found:
        assert (float(row["unlimited"]) > 0) == (row["method"] == "contaminated")
        assert 0 < float(row["median"]) < 1
        assert 1 < float(row["lipschitz"]) < 1000
        assert row["num_examples"] == "20"
        shares = [float(row[f"changed_{factor}"]) for factor in (1, 10, 100)]
        assert shares[0] == 0
    assert max(float(row["changed_100"]) for row in found) > 0.3


def test_bad_flags_end_in_one_line(tmp_path):
    process = start(tmp_path / "run", "--confidences=2")
    assert process.returncode == 1
    assert process.stderr.strip().endswith("error: --confidences: '2' is not a number in [0, 1]")
    assert not (tmp_path / "run").exists()


def make_outcomes(**counts):
    """Of ten rows, so many right and so many certified."""
    return {
        rule: certified._Outcome(np.arange(10) < clean, np.arange(10) < sure)
        for rule, (clean, sure) in counts.items()
    }


def test_what_validation_data_choose():
    rule = certified._Rule
    outcomes = dict(
        zip(
            [
                rule("statistical"),
                rule("contaminated", 0.1),
                rule("contaminated", 0.5),
                rule("contaminated", 0.9),
                rule("cascade", None, 0.9),
                rule("cascade", None, 0.5),
            ],
            make_outcomes(a=(9, 0), b=(9, 2), c=(8, 4), d=(7, 6), e=(6, 1), f=(5, 5)).values(),
            strict=True,
        )
    )
    assert certified._select(outcomes, 0.1) == {
        rule("statistical"),
        rule("contaminated", 0.5),
        rule("cascade", None, 0.9),  # none is accurate enough: the most accurate
    }
