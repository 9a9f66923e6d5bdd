"""RAVDESS and VGGSound, from archives and clips to tables."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.data_pipelines.media_files import ravdess_zips
from tests.data_pipelines.vggsound_files import clip_path, write_vggsound
from tests.experiments import runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TARGETS = {"unimodal", "statistical", "robust", "ensemble"}
SMALL = (
    "--num_workers=2",
    "--perturbations=clean,occlusion,fgm",
    "--methods=unimodal,statistical,robust",
    "--gammas=0.1",
    "--perturbed=video",
)


def accuracies(workdir, perturbation):
    """{(method, severity, target): accuracy}."""
    return {
        (row["method"], row["severity"], row["attack_target"]): float(row["accuracy"])
        for row in runs.read_rows(workdir)
        if row["perturbation"] == perturbation
    }


def trained_stem(workdir):
    """The first kernel of the classifier of the video after one epoch, (H, W, C, K)."""
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(workdir / "seed_0/checkpoints/video/1/default")
    return np.asarray(restored["0"]["stem"]["conv"]["kernel"]["value"])


@pytest.fixture(scope="module")
def ravdess(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ravdess")
    flags = (
        "--dataset=ravdess",
        f"--manual_dir={ravdess_zips(folder / 'raw')}",
        f"--data_dir={folder / 'data'}",
        *SMALL,
        "--fold=5",
        "--num_train=64",
        "--num_epochs=4",
        "--batch_size=8",
        "--num_eval=24",
        "--num_attack=8",
    )
    return folder / "run", flags, runs.run_process(folder / "run", *flags, is_optimised=True)


def test_ravdess_from_its_archives_to_tables(ravdess):
    workdir, _, (code, stdout, stderr) = ravdess
    assert code == 0, stderr[-3000:]
    assert "| robust γ=0.1" in stdout
    clean = accuracies(workdir, "clean")
    assert clean["unimodal:video", "0", ""] > 0.7  # of eight emotions, by actors never seen
    occluded = accuracies(workdir, "occlusion")
    assert {severity for _, severity, _ in occluded} == set("12345")
    attacked = accuracies(workdir, "fgm")
    assert {target for _, _, target in attacked} == {
        "unimodal",
        "statistical",
        "robust",
        "ensemble",
    }
    strongest = attacked["unimodal:video", "5", "unimodal"]
    assert strongest < clean["unimodal:video", "0", ""]
    assert json.loads((workdir / "config.json").read_text())["flags"]["fold"] == 5


def test_another_fold_is_another_run(ravdess):
    workdir, flags, _ = ravdess
    code, _, stderr = runs.run_process(workdir, *flags, "--fold=4")
    assert code == 1
    assert "belongs to a run with other flags (--fold=5, now 4)" in stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def vggsound(tmp_path_factory):
    """The folder, two clips that cannot be used, and the flags."""
    folder = tmp_path_factory.mktemp("vggsound")
    clips = write_vggsound(folder / "raw", num_train=8, num_test=3)
    missing, damaged = [clip for clip in clips if clip.split == "train" and clip.start > 1][:2]
    clip_path(folder / "raw", missing).unlink()
    clip_path(folder / "raw", damaged).write_text("not a video")
    flags = (
        "--dataset=vggsound",
        f"--manual_dir={folder / 'raw'}",
        f"--data_dir={folder / 'data'}",
        *SMALL,
        "--num_train=12",
        "--num_epochs=1",
        "--batch_size=4",
        "--num_eval=8",
        "--num_attack=4",
    )
    return folder, (missing, damaged), flags


def test_vggsound_from_its_clips_to_tables_starting_from_torchvision(vggsound, torch, torchvision):
    from safetensors.torch import save_file

    folder, unusable, flags = vggsound
    torch.manual_seed(0)
    start = torchvision.models.resnet18().state_dict()
    save_file(start, folder / "resnet18.safetensors")
    weights = f"--weights=video={folder / 'resnet18.safetensors'}"
    code, stdout, stderr = runs.run_process(folder / "run", *flags, weights, is_optimised=True)
    assert code == 0, stderr[-3000:]
    assert "| robust γ=0.1" in stdout
    assert "prepared with 46 of 48 clips" in stderr
    (listing,) = (folder / "data").rglob("missing_clips.txt")
    lines = listing.read_text().splitlines()
    assert len(lines) == 2
    for clip in unusable:
        assert any(clip.youtube_id in line for line in lines)
    attacked = accuracies(folder / "run", "fgm")
    assert {target for _, _, target in attacked} == {
        "unimodal",
        "statistical",
        "robust",
        "ensemble",
    }
    assert {row["num_examples"] for row in runs.read_rows(folder / "run")} == {"8", "4"}
    # Three steps of Adam move an entry by 1e-3 each at the most or little more.
    stem = start["conv1.weight"].numpy().transpose(2, 3, 1, 0)
    assert stem.std() > 0.02
    np.testing.assert_allclose(trained_stem(folder / "run"), stem, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--max_missing=0.01", "--max_missing=0.01 allows"),
        ("--weights=video={csv}", "--weights=video={csv}: damaged, or no safetensors file"),
    ],
)
def test_bad_input_ends_in_one_line(vggsound, argument, message, tmp_path):
    folder, _, flags = vggsound
    csv = folder / "raw" / "vggsound.csv"
    code, _, stderr = runs.run_process(tmp_path / "run", *flags, argument.format(csv=csv))
    assert code == 1
    last = stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message.format(csv=csv) in last
    assert "Traceback" not in stderr
