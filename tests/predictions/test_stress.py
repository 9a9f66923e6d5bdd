"""What is lost if a modality fails: tables, chosen rules, and what is wrong with flags."""

import csv
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from absl import flags

from experiments import stress_predictions
from experiments.reports import frontier
from experiments.reports.frontier import write_frontier
from jacfuse_jax import fusion, selection
from jacfuse_jax.predictions import stress, stress_run
from jacfuse_jax.predictions.flags import define_stress_flags
from jacfuse_jax.predictions.stress_tables import Stressed
from jacfuse_jax.programs.command_line import parse_flags
from tests.experiments.read_page import Page
from tests.predictions.runs import ROOT, fuse

NUM_ROWS, NUM_CLASSES = 150, 4
NAMES = ("image", "audio", "text")
RNG = np.random.default_rng(5)
LABELS = RNG.integers(NUM_CLASSES, size=NUM_ROWS)
PEOPLE = np.array([f"p{i}" for i in RNG.integers(12, size=NUM_ROWS)])
LOGITS = {
    name: (
        RNG.normal(size=(NUM_ROWS, NUM_CLASSES)) + strength * np.eye(NUM_CLASSES)[LABELS]
    ).astype(np.float32)
    for name, strength in zip(NAMES, (3.0, 2.0, 1.5), strict=True)
}
PRIOR = np.full(NUM_CLASSES, 1 / NUM_CLASSES)


def run(*arguments):
    """In this process."""
    values = flags.FlagValues()
    define_stress_flags(values)
    stress.main(parse_flags(["stress", *map(str, arguments)], values), values)


def error_of(*arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix("error: ")


def write(folder, names=NAMES, **columns):
    """Flags of inputs; the first has labels and people."""
    ids = np.arange(NUM_ROWS)
    for name in names:
        own = {"labels": LABELS, "person": PEOPLE} if name == names[0] else {}
        np.savez(folder / f"{name}.npz", logits=LOGITS[name], ids=ids, **own, **columns)
    return [f"--input={name}={folder}/{name}.npz" for name in names]


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run on three modalities, and its folder."""
    folder = tmp_path_factory.mktemp("stress")
    inputs = write(folder)
    output = folder / "out"
    run(
        *inputs,
        "--groups_column=person",
        "--attack_shares=0.1,0.6",
        "--num_failing=2",
        f"--output={output}",
    )
    return output, inputs


@pytest.mark.slow
class TestTables:
    def test_a_line_a_suspect_and_rule(self, found):
        output, _ = found
        lines = read(output / "stress.csv")
        assert list(lines[0]) == [
            *("suspect", "rule", "parameters", "clean", "clean_low", "clean_high", "any_input"),
            *(*selection.FAULTS, "share_best", "remark", "schema"),
        ]
        suspects = list(dict.fromkeys(line["suspect"] for line in lines))
        assert suspects == [*NAMES, "any 2"]
        kinds = {line["rule"] for line in lines}
        assert {"majority_vote", "median", "learned_cascade", "robust"} <= kinds
        for line in lines:
            low, mean, high = (float(line[f"clean{x}"]) for x in ("_low", "", "_high"))
            assert low <= mean <= high
            is_known = line["rule"] not in ("robust", "contaminated_robust")
            assert (line["any_input"] != "") == is_known == (line["remark"] == "")
            if is_known:
                worst = min(float(line[fault]) for fault in selection.FAULTS)
                assert float(line["any_input"]) <= worst + 5e-5

    def test_figures_are_those_of_the_rules(self, found):
        output, _ = found
        lines = read(output / "stress.csv")
        grams = None
        for rule, name in ((fusion.Statistical(), "statistical"), (fusion.Cascade(0.8), "cascade")):
            (line,) = (
                x
                for x in lines
                if (x["suspect"], x["rule"]) == ("audio", name)
                and x["parameters"] in ("", "confidence=0.8 tempering=1")
            )
            fused = fusion.fuse(rule, LOGITS, PRIOR, perturbed="audio", grams=grams)
            right = np.asarray(fused).argmax(axis=1) == LABELS
            assert float(line["clean"]) == pytest.approx(right.mean(), abs=5e-5)
            silent = {"audio": np.zeros(NUM_ROWS, bool)}
            fused = fusion.fuse(rule, LOGITS, PRIOR, perturbed="audio", present=silent)
            right = np.asarray(fused).argmax(axis=1) == LABELS
            assert float(line["silent"]) == pytest.approx(right.mean(), abs=5e-5)

    def test_faults_and_coverage(self, found):
        output, _ = found
        faults = read(output / "faults.csv")
        assert {line["fault"] for line in faults} == {"clean", *selection.FAULTS}
        assert all(float(line["nll"]) > 0 <= float(line["ece"]) for line in faults)
        coverage = read(output / "coverage.csv")
        assert {line["criterion"] for line in coverage} == {"confidence", "certified"}
        clean = {
            (x["suspect"], x["rule"], x["parameters"]): x["clean"]
            for x in read(output / "stress.csv")
        }
        for line in coverage:
            if float(line["coverage"]) == 1:
                key = (line["suspect"], line["rule"], line["parameters"])
                assert line["accuracy"] == clean[key]

    def test_chosen_rules_are_the_ones_that_are_marked(self, found):
        output, _ = found
        content = json.loads((output / "chosen.json").read_text())
        assert content["schema"] == 1
        assert (content["num_rows"], content["num_groups"]) == (NUM_ROWS, 12)
        assert len(content["chosen"]) == 4 * 2
        lines = read(output / "stress.csv")
        for entry in content["chosen"]:
            rule = fusion.rule_from_json(json.dumps(entry["rule"]))
            parameters = " ".join(f"{name}={x:g}" for name, x in rule.parameters.items())
            (line,) = (
                x
                for x in lines
                if x["suspect"] == entry["suspect"]
                and (x["rule"], x["parameters"]) == (rule.name, parameters)
            )
            assert f"{entry['share']:g}" in line["share_best"].split()
            assert float(line["clean"]) == pytest.approx(entry["clean"], abs=5e-5)
            assert entry["expected"] >= max(x["expected"] for x in entry["baselines"].values())
        text = (output / "chosen.json").read_text()
        assert str(output.parent) not in text  # folders may be private

    def test_a_chosen_rule_fuses(self, found, tmp_path):
        output, inputs = found
        fuse(
            *inputs,
            f"--rule={output}/chosen.json",
            "--perturbed=text",
            "--attack_share=0.6",
            f"--output={tmp_path}/fused.npz",
        )
        content = json.loads((output / "chosen.json").read_text())
        (entry,) = (x for x in content["chosen"] if (x["suspect"], x["share"]) == ("text", 0.6))
        with np.load(tmp_path / "fused.npz") as file:
            metadata = json.loads(str(file["jacfuse_jax"]))
            accuracy = (file["prediction"] == LABELS).mean()
        assert json.loads(metadata["rule"]) == entry["rule"]
        # Of a learned cascade the rows were held out from its fit.
        if entry["rule"]["rule"] != "learned_cascade":
            assert accuracy == pytest.approx(entry["clean"])


@pytest.mark.slow
def test_the_experiment_ends_with_a_figure_and_a_page(found, capsys, monkeypatch):
    output, inputs = found
    monkeypatch.setattr(stress_run, "run", lambda _: stress_run.Outcome([], "What was found."))
    monkeypatch.setattr(frontier, "write_frontier", lambda *_: None)
    values = flags.FlagValues()
    define_stress_flags(values)
    arguments = parse_flags(["stress_predictions", *inputs, f"--output={output}"], values)
    stress_predictions.main(arguments, values)
    printed = capsys.readouterr().out
    assert printed == f"What was found.\nwrote {output}/ and {output}/report.html\n"
    page = Page(output / "report.html")
    lines = read(output / "stress.csv")
    for suspect in (*NAMES, "any 2"):
        table = page.table(f"{suspect} fails: all rules")
        expected = [line for line in lines if line["suspect"] == suspect]
        assert [cells[0].split()[0] for cells in table.rows] == [x["rule"] for x in expected]
        clean = [f"{100 * float(line['clean']):.1f}" for line in expected]
        assert [cells.split()[0] for cells in table.column("clean")] == clean
    assert len(page.findings) == 4


@pytest.mark.slow
def test_what_it_says(tmp_path, capsys):
    inputs = write(tmp_path, NAMES[:2])
    run(*inputs, "--attack_shares=0.3", "--against=anything", f"--output={tmp_path}/out")
    printed = capsys.readouterr()
    assert "150 labelled rows; accuracy in %" in printed.out
    assert "Statistical fusion, if a modality fails:" in printed.out
    statistical = np.asarray(
        fusion.statistical_fusion({m: LOGITS[m] for m in NAMES[:2]}, PRIOR)
    ).argmax(axis=1)
    assert f"| image   | {100 * (statistical == LABELS).mean():.1f} " in printed.out
    assert "audio fails in a share of inputs" in printed.out
    chosen = json.loads((tmp_path / "out" / "chosen.json").read_text())["chosen"]
    assert {entry["against"] for entry in chosen} == {"anything"}


def test_what_is_wrong_is_said_in_a_line(tmp_path):
    inputs = write(tmp_path, NAMES[:2])
    output = f"--output={tmp_path}/out"
    for arguments, message in (
        ([inputs[0], output], "--input is given once; there must be two modalities"),
        ([*inputs, output, "--num_failing=2"], "--num_failing=2 leaves none of 2 modalities"),
        (inputs, "--output is missing"),
        ([*inputs, f"--output={tmp_path}/image.npz"], "--output="),
        ([*inputs, output, "--groups_column=who"], "--groups_column=who is in no --input"),
        ([*inputs, output, "--kernel=smell=."], "--kernel=smell=.: no --input is called smell"),
    ):
        assert error_of(*arguments).startswith(message)
    for name in NAMES[:2]:
        np.savez(tmp_path / f"{name}.npz", logits=LOGITS[name])
    assert error_of(*inputs, output) == "stress needs `labels`, and no --input has any"
    assert not (tmp_path / "out" / "stress.csv").exists()


def test_help_lists_its_flags_at_once():
    found = subprocess.run(
        [sys.executable, "-m", "jacfuse_jax.predictions.stress", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert "--attack_shares" in found.stdout
    assert "--validation" not in found.stdout


def test_the_figure_has_a_panel_a_suspect(tmp_path):
    def measured(rule, clean, worst, *, certified=True):
        rows = np.arange(100) < 100 * clean
        failing = (np.arange(100) < 100 * worst).astype(float)
        faults: dict[str, Any] = dict.fromkeys(selection.FAULTS, failing)
        known = np.arange(100) < 100 * worst if certified else None
        figures = {"clean": selection.Figures(clean, 1.0, 0.1)}
        return selection.Measured(rule, rows.astype(float), faults, np.ones(100), known, figures)

    rules = [
        measured(fusion.Statistical(), 0.9, 0.1),
        measured(fusion.Cascade(0.0), 0.6, 0.6),
        measured(fusion.Robust(0.1), 0.88, 0.2, certified=False),
    ]
    for against in selection.AGAINST:
        choices = [selection.choose(rules, share, against=against) for share in (0.1, 0.9)]
        stressed = [Stressed(selection.Suspects.of(name), rules, choices) for name in "ab"]
        path = tmp_path / f"{against}.png"
        write_frontier(stressed, against, path)
        assert path.read_bytes().startswith(b"\x89PNG")
