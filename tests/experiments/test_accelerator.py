"""What `.ci/accelerator` puts together, from steps that were finished, failed or were ended."""

import csv
import json
import subprocess
import sys

import pytest

from experiments.measuring import accelerator_digits
from experiments.measuring.benchmark import NOT_REACHED, Row
from experiments.reports import accelerator
from tests.experiments.runs import ROOT

H100 = "NVIDIA H100 80GB HBM3"


def make_row(method, num_classes=10, **changes):
    row = Row("recalibrate", H100, 50_000.0, 3000.0, method, num_classes, 1000, "float32")
    return row._replace(**changes)._asdict()


def measured(method, num_classes=10, **changes):
    """1,000 samples in a millisecond: 6,690 GFLOP/s nominal, 13,380 executed, 335 GB/s."""
    figures = {
        "num_measured": 1000,
        "num_repeats": 5,
        "compile_s": 2.0,
        "median_s": 1e-3,
        "us_per_sample": 1.0,
        "gflop_per_s": 6690.0,
        "executed_gflop_per_s": 13380.0,
        "gb_per_s": 335.0,
    }
    return make_row(method, num_classes, **{**figures, **changes})


def write_lines(path, objects):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(x) + "\n" for x in objects))


@pytest.fixture
def partial(tmp_path):
    """One finished step and one that was ended while it wrote a line."""
    folder = tmp_path / "partial"
    steps = [("recalibrate", 50, 0), ("schur", 30, 124), ("digits", 30, 1), ("late", 0, None)]
    names = ("name", "limit_s", "code")
    steps = [{**dict(zip(names, step, strict=True)), "wall_s": 7} for step in steps]
    write_lines(folder / "steps.jsonl", steps)
    planned = [make_row(m, skipped=NOT_REACHED) for m in ("closed_form", "eigh")]
    failed = make_row("eigh", skipped="failed: RuntimeError: out of memory")
    write_lines(
        folder / "recalibrate" / "benchmark_recalibrate.jsonl",
        [*planned, measured("closed_form"), failed],
    )
    planned = [make_row(m, K, skipped=NOT_REACHED) for K in (10, 50) for m in ("schur", "eig")]
    done = measured("schur", executed_gflop_per_s=None, dtype="float32")
    path = folder / "schur" / "benchmark_schur.jsonl"
    write_lines(path, [{**row, "op": "schur"} for row in (*planned, done)])
    path.write_text(path.read_text() + '{"op": "schur", "meth')
    return folder


def rows_of(findings):
    return {(row["op"], row["method"], row["num_classes"]): row for row in findings["rows"]}


class TestCollect:
    def test_takes_the_last_line_of_every_row(self, partial):
        rows = rows_of(accelerator.collect(partial))
        assert len(rows) == 6
        assert rows["recalibrate", "closed_form", 10]["skipped"] is None
        assert "out of memory" in rows["recalibrate", "eigh", 10]["skipped"]
        missing = rows["schur", "eig", 50]
        assert missing["skipped"] == "not reached: the step was ended after its 30 s"

    def test_relates_to_the_card(self, partial):
        rows = rows_of(accelerator.collect(partial))
        row = rows["recalibrate", "closed_form", 10]
        assert row["nominal_flops"] == 6_690_000
        assert row["executed_flops"] == 13_380_000
        assert row["share_of_peak"] == pytest.approx(0.1)
        assert row["executed_share_of_peak"] == pytest.approx(0.2)
        assert row["share_of_bandwidth"] == pytest.approx(0.1)
        assert rows["schur", "schur", 10]["executed_flops"] is None

    def test_measures_unknown_devices_by_themselves(self, partial):
        path = partial / "recalibrate" / "benchmark_recalibrate.jsonl"
        lines = [measured("closed_form", device="cpu"), measured("closed_form", dtype="float64")]
        write_lines(path, [{**line, "device": "cpu"} for line in lines])
        findings = accelerator.collect(partial)
        assert findings["ceilings"]["shares_are_of"].startswith("measured here")
        in_float32, in_float64 = findings["rows"][:2]
        assert in_float32["share_of_peak"] == pytest.approx(6690 / 50_000)
        assert in_float64["share_of_peak"] is None

    def test_says_how_steps_ended(self, partial):
        outcomes = [step["outcome"] for step in accelerator.collect(partial)["steps"]]
        assert outcomes == [
            "was finished",
            "was ended after its 30 s",
            "failed with 1",
            "had no time left",
        ]

    def test_of_nothing(self, tmp_path):
        findings = accelerator.collect(tmp_path)
        assert findings["rows"] == findings["steps"] == []
        accelerator.write(findings, tmp_path)
        assert "no device" in accelerator.describe(findings)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (
            "...\n== 2 failed, 30 passed, 1 error in 12.1s ==\n",
            {"failed": 2, "passed": 30, "error": 1},
        ),
        ("a PASSED [1%]\nb FAILED [2%]\nc PASSED", {"passed": 2, "failed": 1}),
        ("killed", {}),
    ],
)
def test_counts_tests(text, counts):
    assert accelerator.count_tests(text) == counts


def test_writes_json_csv_and_figures(partial, tmp_path):
    findings = accelerator.collect(partial)
    accelerator.write(findings, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{name}.png" for name in ("time", "peers", "roofline", "compile")}
    assert files == {"accelerator.json", "accelerator.csv", *figures}
    assert json.loads((tmp_path / "out" / "accelerator.json").read_text()) == findings
    with (tmp_path / "out" / "accelerator.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["share_of_peak"] for row in rows if row["share_of_peak"]] == ["0.1", "0.1"]
    text = accelerator.describe(findings)
    assert "schur eig K=50 B=1000 float32: not reached" in text
    assert "all of step late: had no time left" in text
    cells = next(line for line in text.splitlines() if "closed_form" in line).split()
    assert cells[2:9] == ["10", "1,000", "float32", "1,000", "1", "6,690,000", "13,380,000"]
    assert cells[9:] == ["10", "20", "10", "2"]


@pytest.mark.slow
def test_digits_are_trained_and_attacked():
    findings = accelerator_digits.measure(num_test=60, num_steps=2)
    for name in ("statistical", "robust"):
        assert findings[f"clean_{name}"] > 0.4
        assert findings[f"attacked_{name}"] <= findings[f"clean_{name}"]


def test_the_command_goes_on_after_a_failure(tmp_path):
    # A Python that knows no module but is there for the report.
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *accelerator_report*) exec {sys.executable} "$@";; esac\nexit 3\n'
    )
    python.chmod(0o755)
    process = subprocess.run(
        [ROOT / ".ci" / "accelerator", "recalibrate", "tests"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OUT": str(tmp_path), "SMALL": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.count("ended with 3") == 2
    findings = json.loads((tmp_path / "accelerator.json").read_text())
    assert [step["outcome"] for step in findings["steps"]] == ["failed with 3"] * 2
    assert not (tmp_path / "partial").exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        "python",
        "log.txt",
        "accelerator.json",
        "accelerator.csv",
    }
