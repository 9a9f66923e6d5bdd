import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data_pipelines.raw_files import needs_published_files
from tests.experiments import runs

COLUMNS = [
    *("dataset", "seed", "perturbed", "perturbation", "severity", "attack_target", "method"),
    *("gamma", "scale", "contamination", "tempering"),
    *("accuracy", "ci_low", "ci_high", "nll", "brier", "ece", "num_examples"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    code, stdout, stderr = runs.run(workdir, *runs.SMALL)
    assert code == 0, stderr[-3000:]
    return workdir, stdout, stderr


@pytest.mark.slow
class TestFinishedRun:
    def test_has_a_row_for_every_perturbation_severity_and_method(self, finished):
        rows = runs.read_rows(finished[0])
        assert list(rows[0]) == COLUMNS
        methods = {(row["method"], row["gamma"], row["scale"]) for row in rows}
        assert methods == {
            ("unimodal:upper", "", ""),
            ("unimodal:lower", "", ""),
            ("mean", "", ""),
            ("statistical", "", ""),
            ("scaled", "", "0.2"),
            ("robust", "0.5", ""),
            ("robust", "0.01", ""),
        }
        counts = {}
        for row in rows:
            key = row["perturbed"], row["perturbation"], int(row["severity"])
            counts[key] = counts.get(key, 0) + 1
        for perturbed in ("upper", "lower"):
            assert counts.pop((perturbed, "clean", 0)) == 7
            for severity in range(1, 6):
                for corruption in ("gaussian_noise", "missing"):
                    assert counts.pop((perturbed, corruption, severity)) == 7
                for attack in ("fgm", "pgd"):
                    # All on the attack of the classifier, the fused ones on their own as well.
                    assert counts.pop((perturbed, attack, severity)) == 7 + 5
        assert not counts

    def test_attack_rows_say_what_was_attacked_and_others_nothing(self, finished):
        for row in runs.read_rows(finished[0]):
            if row["perturbation"] in ("fgm", "pgd"):
                assert row["attack_target"] in (f"unimodal:{row['perturbed']}", row["method"])
                assert row["num_examples"] == "40"
            else:
                assert row["attack_target"] == ""
                assert row["num_examples"] == "60"

    def test_figures_are_consistent(self, finished):
        for row in runs.read_rows(finished[0]):
            accuracy, low, high = (float(row[k]) for k in ("accuracy", "ci_low", "ci_high"))
            assert 0 <= low <= accuracy <= high <= 1
            count = int(row["num_examples"])
            assert round(accuracy * count) == pytest.approx(accuracy * count, abs=1e-3)
            assert float(row["nll"]) >= 0
            assert 0 <= float(row["ece"]) <= 1

    def test_the_trusted_modality_is_untouched_and_the_perturbed_one_is_hurt(self, finished):
        rows = runs.read_rows(finished[0])

        def accuracy(method, perturbation, severity, rows=rows):
            return float(
                next(
                    row["accuracy"]
                    for row in rows
                    if row["perturbed"] == "upper"
                    and row["method"] == method
                    and row["perturbation"] == perturbation
                    and row["severity"] == str(severity)
                )
            )

        clean = accuracy("unimodal:lower", "clean", 0)
        assert accuracy("unimodal:lower", "missing", 5) == clean
        assert accuracy("unimodal:upper", "pgd", 5) < accuracy("unimodal:upper", "clean", 0) - 0.3

    def test_prints_the_table_and_says_where_the_files_are(self, finished):
        workdir, stdout, stderr = finished
        assert "| robust γ=0.01" in stdout
        figures = [f"accuracy_{name}.png" for name in ("upper", "lower")]
        for path in ("results.csv", "config.json", *(f"figures/{name}" for name in figures)):
            assert f"wrote {workdir / path}" in stdout
            assert (workdir / path).exists()
        assert "train upper" in stderr  # the progress bars, and nothing else
        lines = re.split(r"[\r\n]+", stderr)
        assert not [line for line in lines if line.strip() and "|" not in line]
        for name in figures:
            with Image.open(workdir / "figures" / name) as image:
                image.load()
                pixels = np.asarray(image)
            assert pixels.shape[0] > 300
            assert pixels.std() > 10  # not blank

    def test_config_holds_flags_versions_device_and_wall_time(self, finished):
        config = json.loads((finished[0] / "config.json").read_text())
        assert config["flags"]["num_eval"] == 60
        assert config["flags"]["gammas"] == [0.5, 0.01]
        assert {"python", "jax", "flax", "jacfuse_jax"} <= set(config["versions"])
        assert config["device"]
        assert config["wall_time_s"] > 0

    def test_no_partial_file_is_left(self, finished):
        assert not [path for path in finished[0].rglob("*") if "partial" in path.name]


@pytest.mark.slow
def test_input_jacobians_change_robust_fusion_and_nothing_else(finished, tmp_path):
    code, _, stderr = runs.run(
        tmp_path / "run",
        *runs.SMALL,
        "--jacobian=input",
        "--perturbed=upper",
        "--perturbations=clean,missing,fgm",
        "--methods=statistical,robust",
    )
    assert code == 0, stderr[-3000:]

    def likelihoods(workdir, method):
        return {
            (row["perturbation"], row["severity"], row["attack_target"], row["gamma"]): row["nll"]
            for row in runs.read_rows(workdir)
            if (row["perturbed"], row["method"]) == ("upper", method)
        }

    of_head = likelihoods(finished[0], "statistical")
    of_input = likelihoods(tmp_path / "run", "statistical")
    assert of_input.items() <= of_head.items()
    of_head = likelihoods(finished[0], "robust")
    of_input = likelihoods(tmp_path / "run", "robust")
    assert len(of_input) == 2 + 10 + 2 * 10  # clean; missing; fgm on the classifier, on each method
    assert all(np.isfinite(float(nll)) for nll in of_input.values())
    differing = [key for key, nll in of_input.items() if nll != of_head[key]]
    assert len(differing) > 0.9 * len(of_input)


# Enough of the work to have all its stages.
QUICK = (*runs.SMALL, "--perturbations=clean,missing,fgm", "--methods=statistical,robust")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, _, stderr = runs.run(workdir, *QUICK)
    assert code == 0, stderr[-3000:]
    return (workdir / "results.csv").read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_results(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"

    def step_exists(modality, step):
        return lambda: (checkpoints / modality / str(step)).exists()

    def save_begun(modality, step):
        return lambda: (
            any(checkpoints.glob(f"{modality}/{step}.*tmp*")) or step_exists(modality, step)()
        )

    def seconds_after(condition, seconds):
        times = []

        def waited():
            if condition() and not times:
                times.append(time.monotonic() + seconds)
            return bool(times) and time.monotonic() > times[0]

        return waited

    moments = [
        (workdir / "config.json").exists,
        save_begun("upper", 1),
        step_exists("upper", 2),
        step_exists("upper", 3),
        save_begun("lower", 2),
        step_exists("lower", 3),
        seconds_after(step_exists("lower", 3), 1.0),  # in the middle of the evaluation
    ]
    for moment in moments:
        code, _ = runs.stop_when(moment, workdir, *QUICK)
        assert code == -signal.SIGKILL
        assert not (workdir / "results.csv").exists()
    trained = (checkpoints / "upper" / "3").stat().st_mtime_ns
    code, _, stderr = runs.run(workdir, *QUICK)
    assert code == 0, stderr[-3000:]
    assert (workdir / "results.csv").read_bytes() == uninterrupted
    assert (checkpoints / "upper" / "3").stat().st_mtime_ns == trained  # not trained again
    # Run once more when all is done: from the checkpoints, to the same results.
    code, _, stderr = runs.run(workdir, *QUICK)
    assert code == 0, stderr[-3000:]
    assert (workdir / "results.csv").read_bytes() == uninterrupted


@pytest.mark.slow
def test_interrupted_from_the_keyboard_ends_in_one_line(tmp_path):
    begun = (tmp_path / "run" / "checkpoints" / "upper" / "1").exists
    code, stderr = runs.stop_when(begun, tmp_path / "run", *QUICK, sent=signal.SIGINT)
    assert code == 130
    assert stderr.splitlines()[-1] == "interrupted; the same command carries on"
    assert "Traceback" not in stderr


# In a process of its own also because orbax's threads complain long after the error was raised.
@pytest.mark.slow
def test_damaged_checkpoint_ends_in_one_line(tmp_path):
    workdir = tmp_path / "run"
    checkpoint = workdir / "checkpoints" / "upper" / "3"
    runs.stop_when((checkpoint / "_CHECKPOINT_METADATA").exists, workdir, *QUICK)
    for path in checkpoint.rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)
    code, _, stderr = runs.run(workdir, *QUICK)
    assert code == 1
    assert stderr.splitlines()[-1].startswith(f"error: checkpoint {checkpoint} is damaged")
    assert "Traceback" not in stderr


@pytest.mark.slow
@needs_published_files
def test_real_audio_visual_digits(tmp_path):
    workdir = tmp_path / "run"
    code, _, stderr = runs.run(
        workdir,
        "--dataset=av_mnist",
        f"--manual_dir={Path(os.environ['JACFUSE_TEST_DATA']).absolute()}",
        f"--data_dir={tmp_path / 'data'}",
        "--num_train=4000",
        "--num_epochs=3",
        "--num_eval=1000",
        "--num_attack=100",
        "--attack_steps=5",
        "--perturbed=image",
        "--perturbations=clean,fgm,pgd",
        "--gammas=0.01",
        "--scales=0.2",
    )
    assert code == 0, stderr[-3000:]
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
            and row["attack_target"] == "unimodal:image"
        }
        assert transferred["robust"] > transferred["statistical"]
