"""The command that prepares a data set without training on it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.prepare import prepare
from tests.data_pipelines.media_files import ravdess_zips
from tests.data_pipelines.raw_files import needs_published_files
from tests.data_pipelines.vggsound_files import write_vggsound

ROOT = Path(__file__).parents[2]
# What takes seconds to load.
HEAVY = {"tensorflow_datasets", "numpy", "scipy", "sklearn", "librosa", "av", "jax"}
_HELP = f"""
import runpy, sys
sys.argv = ["prepare", "--help"]
try:
    runpy.run_module("data_pipelines.prepare", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("loaded:", end.code, *sorted({HEAVY} & set(sys.modules)))
"""


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipelines.prepare", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = start(*arguments)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def flags_of(said: str) -> list[str]:
    """What --help says of each flag of the program."""
    _, _, listed = said.partition(".py:\n")
    return listed.partition("\n\n")[0].split("\n  --")


def test_help_lists_the_flags_of_the_experiments_without_loading_what_takes_seconds() -> None:
    command = [sys.executable, "-c", _HELP]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.endswith("loaded: 1\n")  # absl's code after help
    command = [sys.executable, "-m", "experiments.robust_fusion", "--help"]
    known = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    own = flags_of(said)
    assert len(own) == 5
    for flag in own:
        assert flag.strip().removeprefix("--") in known


def test_digits_need_no_preparation(tmp_path: Path) -> None:
    code, stdout, stderr = run("--dataset=digits", f"--data_dir={tmp_path / 'data'}")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("digits needs no preparation: ")
    assert stdout.endswith("(rows: train 1,097, validation 200, test 500)\n")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=cifar"], "--dataset=cifar: value should be one of <arrays|av_mnist|"),
        (
            ["--dataset=av_mnist/loud"],
            "--dataset=av_mnist/loud: value should be one of <arrays|av_mnist|av_mnist/balanced|",
        ),
        (["--num_workers=0"], "--num_workers=0: 0 is not a positive integer"),
        (["--max_missing=2"], "--max_missing=2: 2.0 is not a number in the range [0, 1]"),
        (["--manual_dri=x"], "Unknown command line flag 'manual_dri'. Did you mean: manual_dir"),
        (["digits"], "unexpected argument 'digits'; all settings are --flags"),
        (
            ["--dataset=av_mnist/balanced", "--manual_dir=/nowhere"],
            "--manual_dir=/nowhere: no such folder; name the one with the raw files, or leave it",
        ),
        (["--dataset=vggsound"], "--manual_dir=None: VGGSound is not downloaded; name the folder"),
        (["--dataset=vggsound", "--max_missing=nan"], "--max_missing=nan: choose a share"),
        (["--dataset=ravdess", "--data_dir=/dev/null"], "--data_dir=/dev/null: Not a directory;"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    code, stdout, stderr = run(f"--data_dir={tmp_path}", *arguments)
    assert (code, stdout) == (1, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


@pytest.mark.slow
def test_an_interrupted_preparation_ends_in_one_line_and_is_carried_on(tmp_path: Path) -> None:
    arguments = (
        "--dataset=ravdess",
        f"--data_dir={tmp_path / 'data'}",
        f"--manual_dir={ravdess_zips(tmp_path / 'raw', emotions=(1, 5))}",
        "--num_workers=1",
    )
    process = start(*arguments)
    decoded = tmp_path / "data/ravdess/default/decoded.1.0.0"
    while not list(decoded.glob("*.npz")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "\ninterrupted; the same command carries on\n"
    kept = {path: path.stat().st_mtime_ns for path in decoded.glob("*.npz")}
    assert 0 < len(kept) < 48

    for _ in range(2):  # the second finds it there
        code, stdout, stderr = run(*arguments)
        assert (code, stderr) == (0, "")
        folder = tmp_path / "data/ravdess/default/1.0.0"
        assert stdout == f"ravdess is prepared in {folder} (rows: full 48)\n"


def test_vggsound_is_reported_with_what_its_splits_have(tmp_path: Path) -> None:
    write_vggsound(tmp_path / "raw", num_train=2, num_test=1, num_classes=2)
    report = prepare(
        "vggsound",
        data_dir=tmp_path,
        manual_dir=tmp_path / "raw",
        num_workers=1,
        max_missing=0.0,
    )
    folder = tmp_path / "vggsound/default/1.0.0"
    assert report == f"vggsound is prepared in {folder} (rows: train 3, validation 3, test 2)"


@needs_published_files
def test_av_mnist_is_reported_where_it_lies(prepared_av_mnist: tuple[Path, Path]) -> None:
    raw, data_dir = prepared_av_mnist
    report = prepare(
        "av_mnist", data_dir=data_dir, manual_dir=raw, num_workers=None, max_missing=1.0
    )
    rows = "rows: train 55,000, validation 5,000, test 10,000"
    assert report == f"av_mnist is prepared in {data_dir / 'av_mnist/noisy/2.1.0'} ({rows})"
