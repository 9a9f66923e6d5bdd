import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from experiments import certified
from jacfuse_jax.evaluation.measure import Row
from jacfuse_jax.evaluation.selection import SHARES
from jacfuse_jax.evaluation.summary import Summary
from tests.data_pipelines.raw_files import needs_published_files
from tests.experiments import runs

# A run takes minutes on a loaded machine.
pytestmark = pytest.mark.timeout(1800)

ALL = (
    *runs.SMALL,
    "--threat_models=known,wrong,unknown,both,either",
    "--scales=0.5,0.2",
    "--num_select=20",
    "--select_attack=fgm",
    "--attack_share=0.3",
)
SCENARIOS = [
    *(
        (name, modality)
        for name in ("known", "wrong", "unknown")
        for modality in ("upper", "lower")
    ),
    ("both", "upper+lower"),
    ("either", "upper or lower"),
]
MODALITIES = ("upper", "lower")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, *runs.run(workdir, *ALL)


def columns_of(line):
    """Of a file: a rule is its name and its parameters."""
    before, after = ",".join(line._fields).split(",rule,")
    return f"{before},method,gamma,scale,contamination,tempering,confidence,share,{after}".split(
        ","
    )


def label_in_tables(row):
    values = {"t": row["scale"], "γ": row["gamma"]}
    return row["method"] + "".join(f" {s}={value}" for s, value in values.items() if value)


def label_of(row):
    return row["method"], row["gamma"], row["scale"]


@pytest.mark.slow
def test_every_threat_model_perturbation_severity_method_and_target_has_a_row(finished):
    rows = runs.read_rows(finished[0])
    assert list(rows[0]) == columns_of(Row)
    assert list(dict.fromkeys((r["threat_model"], r["perturbed"]) for r in rows)) == SCENARIOS
    for scenario in SCENARIOS:
        chosen = [r for r in rows if (r["threat_model"], r["perturbed"]) == scenario]
        clean = [r for r in chosen if r["perturbation"] == "clean"]
        methods = [label_of(r) for r in clean]
        # Rules with parameters: those that validation data chose, and the front where it is known.
        fixed = {("unimodal:upper", "", ""), ("unimodal:lower", "", ""), ("statistical", "", "")}
        tuned = {("scaled", "", "0.5"), ("scaled", "", "0.2"), ("robust", "0.1", "")}
        assert fixed < set(methods) <= fixed | tuned
        for rule in ("scaled", "robust"):
            assert [r["selected"] for r in clean if r["method"] == rule].count("True") == 1
        if scenario[0] != "known":
            assert len(methods) == 5
        expected = {("clean", "0", "", label) for label in methods}
        for severity in "12345":
            expected |= {("missing", severity, "", label) for label in methods}
            for label in methods:
                targets = {"unimodal", "ensemble", label[0]} - {f"unimodal:{m}" for m in MODALITIES}
                expected |= {("fgm", severity, target, label) for target in targets}
                expected.add(("worst_attack", severity, "ensemble", label))
        found = [
            (r["perturbation"], r["severity"], r["attack_target"], label_of(r)) for r in chosen
        ]
        assert len(set(found)) == len(found)
        assert set(found) == expected


@pytest.mark.slow
def test_numbers_are_consistent(finished):
    rows = runs.read_rows(finished[0])
    for row in rows:
        accuracy, low, high = (float(row[k]) for k in ("accuracy", "ci_low", "ci_high"))
        assert 0 <= low <= accuracy <= high <= 1
        count = 60 if row["perturbation"] in ("clean", "missing") else 20
        assert int(row["num_examples"]) == count
        assert round(accuracy * count) == pytest.approx(accuracy * count, abs=1e-3)
        assert float(row["nll"]) >= 0
        assert 0 <= float(row["ece"]) <= 1
        assert 0 <= float(row["macro_accuracy"]) <= 1
    # One attack alone: its worst case is that of all.
    ensembles, worst = (
        {
            (r["threat_model"], r["perturbed"], r["severity"], label_of(r)): r["accuracy"]
            for r in rows
            if (r["perturbation"], r["attack_target"]) == (name, "ensemble")
        }
        for name in ("fgm", "worst_attack")
    )
    assert ensembles == worst


@pytest.mark.slow
def test_the_worst_of_several_attacks_is_no_better_than_any_of_them(finished):
    rows = runs.read_rows(finished[0])
    attacked = {}
    for row in rows:
        if row["attack_target"]:
            names = ("threat_model", "perturbed", "perturbation", "severity")
            cell = (*(row[name] for name in names), label_of(row))
            attacked.setdefault(cell, {})[row["attack_target"]] = float(row["accuracy"])
    assert all(of_cell["ensemble"] == min(of_cell.values()) for of_cell in attacked.values())
    # The worst case sample by sample is worse than the worst of the attacks.
    assert any(
        list(of_cell.values()).count(of_cell["ensemble"]) == 1
        for of_cell in attacked.values()
        if len(of_cell) > 1
    )

    def accuracies(*scenario):
        return {
            (row["perturbation"], row["severity"], label_of(row)): float(row["accuracy"])
            for row in rows
            if (row["threat_model"], row["perturbed"]) == scenario
            and row["attack_target"] in ("", "ensemble")
        }

    # The defender believes the same, and the attacker may choose.
    either = accuracies("either", "upper or lower")
    for modality in MODALITIES:
        alone = accuracies("unknown", modality)
        assert either.keys() == alone.keys()
        assert all(either[key] <= alone[key] for key in either)


@pytest.mark.slow
def test_where_the_modality_is_known_all_that_a_share_chooses_is_shown(finished):
    rows = runs.read_rows(finished[0])
    selection = runs.read_rows(finished[0], "selection.csv")
    envelope = runs.read_rows(finished[0], "envelope.csv")
    for modality in MODALITIES:
        shown = {
            f"scaled t={row['scale']}" if row["scale"] else f"robust γ={row['gamma']}"
            for row in rows
            if (row["threat_model"], row["perturbed"]) == ("known", modality)
            and row["method"] in ("scaled", "robust")
        }
        of_modality = [line for line in selection if line["believed"] == modality]
        lines = [line for line in envelope if line["perturbed"] == modality]
        chosen = {x["method"] for x in of_modality if x["selected"] == "True"}
        chosen |= {x[name] for x in lines for name in ("method", "baseline")}
        assert shown == {x for x in chosen if x != "statistical"}
        assert {float(x["share"]) for x in lines} == {0.3, *SHARES}
        # Those that were not attacked are not chosen for any share.
        attacked = {x["method"] for x in of_modality if x["robust"]}
        assert shown <= attacked


@pytest.mark.slow
def test_what_chosen_rules_are_worth_is_that_of_the_results(finished):
    rows = runs.read_rows(finished[0])

    def worth(label, perturbed, share):
        of_rule = [
            row
            for row in rows
            if (row["threat_model"], row["perturbed"]) == ("known", perturbed)
            and label_in_tables(row) == label
        ]
        (clean,) = (float(r["accuracy"]) for r in of_rule if r["perturbation"] == "clean")
        worst = [float(r["accuracy"]) for r in of_rule if r["perturbation"] == "worst_attack"]
        assert len(worst) == 5
        return (1 - share) * clean + share * np.mean(worst)

    envelope = runs.read_rows(finished[0], "envelope.csv")
    assert {line["baseline"].split()[0] for line in envelope} == {"statistical", "scaled"}
    for line in envelope:
        share = float(line["share"])
        expected = worth(line["method"], line["perturbed"], share)
        assert float(line["expected"]) == pytest.approx(expected, abs=2e-6)
        assert float(line["low"]) <= expected <= float(line["high"])
        difference = expected - worth(line["baseline"], line["perturbed"], share)
        assert float(line["difference"]) == pytest.approx(difference, abs=2e-6)


@pytest.mark.slow
def test_the_trusted_modality_is_untouched_and_the_perturbed_one_is_hurt(finished):
    rows = [
        r
        for r in runs.read_rows(finished[0])
        if (r["threat_model"], r["perturbed"]) == ("known", "upper")
    ]

    def accuracies(method, perturbation):
        return {
            float(r["accuracy"])
            for r in rows
            if (r["method"], r["perturbation"]) == (method, perturbation)
        }

    clean = accuracies("unimodal:lower", "clean")
    assert accuracies("unimodal:lower", "missing") == clean
    assert len(accuracies("unimodal:lower", "fgm")) == 1
    assert min(accuracies("unimodal:upper", "fgm")) < min(accuracies("unimodal:upper", "clean"))


@pytest.mark.slow
def test_prints_the_tables_and_says_where_the_files_are(finished):
    workdir, stdout, _ = finished
    assert "| robust γ=0.1" in stdout
    figures = ["trade_off.png"]
    figures += [
        f"accuracy_{model}_{perturbed}.png".replace(" ", "_").replace("+", "_")
        for model, perturbed in SCENARIOS
    ]
    names = [
        f"{name}.csv" for name in ("results", "summary", "comparison", "selection", "envelope")
    ]
    names += ["report.md", "report.html", "config.json"]
    for path in (*names, *(f"figures/{name}" for name in figures)):
        assert f"wrote {workdir / path}" in stdout
        assert (workdir / path).exists()
    assert (workdir / "report.md").read_text() in stdout
    for name in figures:
        with Image.open(workdir / "figures" / name) as image:
            image.load()
            pixels = np.asarray(image)
        assert pixels.shape[0] > 300
        assert pixels.std() > 10  # not blank
    assert not [path for path in workdir.rglob("*") if "partial" in path.name]


@pytest.mark.slow
def test_other_files_tell_the_same_methods(finished):
    workdir = finished[0]
    rows = runs.read_rows(workdir)
    summary = runs.read_rows(workdir, "summary.csv")
    assert list(summary[0]) == columns_of(Summary)
    key = ("threat_model", "perturbed", "method", "gamma", "scale")
    of_rows = dict.fromkeys(tuple(r[k] for k in key) for r in rows)
    assert list(of_rows) == [tuple(r[k] for k in key) for r in summary]
    clean = {tuple(r[k] for k in key): r["accuracy"] for r in rows if r["perturbation"] == "clean"}
    assert {tuple(r[k] for k in key): r["clean"] for r in summary} == clean
    selection = runs.read_rows(workdir, "selection.csv")
    assert {row["believed"] for row in selection} == {"upper", "lower", "upper+lower"}
    assert len(selection) == 3 * 4  # statistical fusion, too


@pytest.mark.slow
def test_config_holds_flags_versions_device_and_what_it_took(finished):
    config = json.loads((finished[0] / "config.json").read_text())
    assert config["flags"]["num_eval"] == 60
    assert config["flags"]["scales"] == [0.5, 0.2]
    assert {"python", "jax", "flax", "jacfuse_jax"} <= set(config["versions"])
    assert config["device"]
    assert config["wall_time_s"] > 0
    assert config["num_gradients"] > 0


# One run for two questions: each takes as long as it takes to start.
@pytest.mark.slow
def test_input_jacobians_change_robust_fusion_alone_and_every_seed_is_a_run(finished, tmp_path):
    workdir = tmp_path / "run"
    flags = ("--jacobian=input", "--num_seeds=2", "--perturbations=clean,missing")
    runs.run(workdir, *runs.SMALL, *flags)

    def likelihoods(workdir, seed, method):
        return {
            (row["perturbed"], row["perturbation"], row["severity"]): row["nll"]
            for row in runs.read_rows(workdir)
            if (row["seed"], row["threat_model"], row["method"]) == (seed, "known", method)
            and row["perturbation"] in ("clean", "missing")
        }

    of_head, of_input = (likelihoods(w, "0", "statistical") for w in (finished[0], workdir))
    assert of_head == of_input
    of_head, of_input = (likelihoods(w, "0", "robust") for w in (finished[0], workdir))
    assert len(of_input) == 2 * (1 + 5)
    assert of_input.keys() == of_head.keys()
    differing = [key for key, nll in of_input.items() if nll != of_head[key]]
    assert len(differing) > 0.9 * len(of_input)

    of_first, of_second = (likelihoods(workdir, seed, "statistical") for seed in "01")
    assert of_first.keys() == of_second.keys()
    assert not set(of_first.values()) & set(of_second.values())
    assert sorted(path.name for path in workdir.glob("seed_*")) == ["seed_0", "seed_1"]
    assert re.search(
        r"\| statistical +\| +\d+\.\d ± \d+\.\d \|", (workdir / "report.md").read_text()
    )


@pytest.mark.slow
def test_certified_takes_classifiers_of_a_run_with_other_flags_and_leaves_its_files(
    finished, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file() and p.suffix}
    page = workdir / "report.html"
    del before[page]  # which has both
    flags = ("--confidences=0.5", "--contaminations=0.6", "--num_attack=10", "--attack_share=0.5")
    runs.run(workdir, *runs.SMALL, *flags, binary=certified)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((workdir / "config.json").read_text())["wall_time_s"] > 0
    assert runs.read_rows(workdir, "certified.csv")[-1]["confidence"] == "0.5"
    assert "certified" not in (finished[0] / "report.html").read_text().partition("<main>")[0]
    assert 'href="#certified"' in page.read_text()
    assert [path.name for path in workdir.glob("seed_*")] == ["seed_0"]


# Little to do, but some of everything, since each process compiles it anew.
FEW = (
    *runs.SMALL,
    "--num_train=200",
    "--num_epochs=2",
    "--num_eval=20",
    "--num_attack=10",
    "--perturbed=upper",
    "--scales=0.2,0.5",
    "--num_select=10",
    "--select_attack=fgm",
    "--methods=unimodal,statistical,scaled,robust,learned_cascade",
    "--num_permutations=2",
)
FILES = (
    *("results.csv", "summary.csv", "comparison.csv", "selection.csv", "envelope.csv"),
    *("shuffled.csv", "rules.json", "report.md"),
)


class Interrupted:
    """A run that was ended twice and carried on by the same command, and one that was not."""

    def __init__(self, folder):
        self.whole = folder / "whole"
        code, _, self.whole_stderr = runs.run_process(self.whole, *FEW)
        assert code == 0, self.whole_stderr[-3000:]
        self.workdir = workdir = folder / "run"
        self.seed = seed = workdir / "seed_0"
        # A checkpoint is being saved, or is.
        killed, _ = runs.stop_when(lambda: any(seed.glob("checkpoints/lower/1*")), workdir, *FEW)
        self.trained = self.times("checkpoints/upper/2")
        self.damaged = folder / "damaged"
        shutil.copytree(workdir, self.damaged)
        interrupted, self.said = runs.stop_when(
            lambda: len(self.times("test/**/[!.]*.npz")) > 2, workdir, *FEW, sent=signal.SIGINT
        )
        self.codes = (killed, interrupted)
        self.kept = self.times("**/[!.]*.npz")
        self.had_results = (workdir / "results.csv").exists()
        code, _, stderr = runs.run_process(workdir, *FEW)
        assert code == 0, stderr[-3000:]

    def times(self, pattern):
        """When each step or checkpoint was kept; partial files do not count."""
        return {path: path.stat().st_mtime_ns for path in self.seed.glob(pattern)}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    return Interrupted(tmp_path_factory.mktemp("interrupted"))


@pytest.mark.slow
def test_ended_at_any_moment_the_same_command_ends_with_the_same_results(interrupted):
    assert interrupted.codes == (-signal.SIGKILL, 130)
    assert not interrupted.had_results
    for name in FILES:
        expected = (interrupted.whole / name).read_bytes()
        assert (interrupted.workdir / name).read_bytes() == expected, name


@pytest.mark.slow
def test_what_was_done_is_not_done_again(interrupted):
    assert interrupted.trained
    assert interrupted.times("checkpoints/upper/2") == interrupted.trained
    steps = interrupted.times("**/[!.]*.npz")
    kept = {path.relative_to(interrupted.seed).parts[0] for path in interrupted.kept}
    assert kept == {"validation", "test"}
    assert {path: steps[path] for path in interrupted.kept} == interrupted.kept
    names = {path.relative_to(interrupted.workdir) for path in steps}
    assert len(names) > len(interrupted.kept)
    whole = interrupted.whole
    assert names == {path.relative_to(whole) for path in whole.rglob("*.npz")}


@pytest.mark.slow
def test_a_run_says_nothing_on_standard_error(interrupted):
    # Its progress only on a terminal.
    assert not interrupted.whole_stderr


@pytest.mark.slow
def test_interrupted_from_the_keyboard_ends_in_one_line(interrupted):
    assert interrupted.said.splitlines()[-1] == "interrupted; the same command carries on"
    assert "Traceback" not in interrupted.said


# In a process of its own since orbax's threads complain long after the error was raised.
@pytest.mark.slow
def test_damaged_checkpoint_ends_in_one_line(interrupted):
    checkpoint = interrupted.damaged / "seed_0" / "checkpoints" / "upper" / "2"
    for path in checkpoint.rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)
    code, _, stderr = runs.run_process(interrupted.damaged, *FEW)
    assert code == 1
    assert stderr.splitlines()[-1].startswith(f"error: checkpoint {checkpoint} is damaged")
    assert "Traceback" not in stderr


@pytest.mark.slow
@needs_published_files
def test_real_audio_visual_digits(prepared_av_mnist, tmp_path):
    raw, prepared = prepared_av_mnist
    workdir = tmp_path / "run"
    code, _, stderr = runs.run_process(
        workdir,
        "--dataset=av_mnist/clean",
        f"--manual_dir={raw}",
        f"--data_dir={prepared}",
        "--num_train=4000",
        "--num_epochs=5",
        "--num_eval=1000",
        "--num_attack=100",
        "--attack_steps=3",
        "--perturbed=image",
        "--perturbations=clean,fgm,pgd",
        "--methods=unimodal,statistical,robust",
        "--gammas=0.01",
        is_optimised=True,
    )
    assert code == 0, stderr[-3000:]
    note = "Images are perturbed before they are reduced (--attack_at=raw).\n\n"
    assert (workdir / "report.md").read_text().startswith(note)
    rows = runs.read_rows(workdir)
    clean = {row["method"]: row for row in rows if row["perturbation"] == "clean"}
    accuracy = {method: float(row["accuracy"]) for method, row in clean.items()}
    assert accuracy["unimodal:image"] > 0.5
    assert accuracy["unimodal:audio"] > 0.75
    assert accuracy["statistical"] > accuracy["unimodal:audio"]
    for attack in ("fgm", "pgd"):
        transferred = {
            row["method"]: float(row["accuracy"])
            for row in rows
            if (row["perturbation"], row["severity"]) == (attack, "3")
            and row["attack_target"] == "unimodal"
        }
        assert transferred["robust"] > transferred["statistical"]
