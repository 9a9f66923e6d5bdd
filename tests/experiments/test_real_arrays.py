"""Real data as arrays, from folders to tables; a few rows and epochs of each."""

import pytest

from tests.data_pipelines.real_arrays import (
    needs_real_arrays,
    write_hapt,
    write_leaves,
    write_ravdess,
)
from tests.experiments import runs

pytestmark = needs_real_arrays

SMALL = (
    "--dataset=arrays",
    "--num_attack=10",
    "--attack_steps=2",
    "--methods=unimodal,statistical,drop_suspect",
)
CONVOLUTIONS = (*SMALL, "--batch_size=32", "--num_train=640", "--num_eval=100", "--num_epochs=3")


def run_convolutions(workdir, *arguments):
    """In a process of its own, optimised."""
    code, _, stderr = runs.run_process(workdir, *CONVOLUTIONS, *arguments, is_optimised=True)
    assert code == 0, stderr


def accuracies(workdir, perturbed):
    """{(method, perturbation, severity): the worst accuracy of any target}."""
    worst: dict[tuple[str, str, str], float] = {}
    for row in runs.read_rows(workdir):
        if row["perturbed"] == perturbed:
            key = row["method"], row["perturbation"], row["severity"]
            worst[key] = min(worst.get(key, 1.0), float(row["accuracy"]))
    return worst


@pytest.mark.extended  # compiling convolutions takes long
def test_phones(tmp_path):
    """Logistic regression of simple features has 89% of accelerometers, 79% of gyroscopes."""
    run_convolutions(
        tmp_path / "run",
        f"--manual_dir={write_hapt(tmp_path / 'hapt')}",
        "--perturbations=clean,stuck_value,pgd",
        "--perturbed=gyroscope",
    )
    found = accuracies(tmp_path / "run", "gyroscope")
    clean = {m: found[f"unimodal:{m}", "clean", "0"] for m in ("accelerometer", "gyroscope")}
    assert min(clean.values()) > 0.4
    assert found["statistical", "clean", "0"] > min(clean.values())
    assert found["unimodal:gyroscope", "pgd", "5"] < 0.3
    assert found["drop_suspect", "stuck_value", "5"] == clean["accelerometer"]
    assert found["unimodal:gyroscope", "stuck_value", "5"] < clean["gyroscope"]


@pytest.mark.slow
def test_leaves(tmp_path):
    """Logistic regression has 82, 65 and 84% of the three views, 99% of their product."""
    runs.run(
        tmp_path / "run",
        *SMALL,
        f"--manual_dir={write_leaves(tmp_path / 'leaves')}",
        "--perturbations=clean,pgd",
        "--perturbed=view1",
        "--num_epochs=60",
    )
    found = accuracies(tmp_path / "run", "view1")
    for view, known in (("view1", 0.82), ("view2", 0.62), ("view3", 0.83)):
        assert found[f"unimodal:{view}", "clean", "0"] > known - 0.05
    assert found["statistical", "clean", "0"] > 0.96
    assert found["unimodal:view1", "pgd", "5"] == 0


@pytest.mark.extended  # compiling convolutions takes long
def test_acted_emotions(tmp_path):
    """Of action units logistic regression has 55% of eight emotions."""
    run_convolutions(
        tmp_path / "run",
        f"--manual_dir={write_ravdess(tmp_path / 'ravdess')}",
        "--kinds=voice:spectrogram",
        "--perturbations=clean,time_mask,pgd",
    )
    for perturbed in ("face", "voice"):
        found = accuracies(tmp_path / "run", perturbed)
        assert found["unimodal:face", "clean", "0"] > 0.35
        assert (("statistical", "time_mask", "5") in found) == (perturbed == "voice")
        assert found[f"unimodal:{perturbed}", "pgd", "5"] < 0.2
