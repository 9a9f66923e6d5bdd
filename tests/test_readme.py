"""Examples of README.md and docs, run as users run them: in a process without x64."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
# Of examples {heading: code}, what each printed.
RUN = """
import contextlib, io, json, sys
printed = {}
for heading, code in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md: " + heading, "exec"), {})
    printed[heading] = out.getvalue()
print(json.dumps(printed))
"""


def examples():
    """{page, heading and number of the example below it: code}."""
    found = {}
    for page in PAGES:
        for section in re.split(r"^##+ ", page.read_text(), flags=re.MULTILINE):
            heading = section.partition("\n")[0].lstrip("# ")
            for number, code in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL)):
                found[f"{page.stem}: {heading} {number + 1}"] = code
    return found


CORRUPTIONS = "corruptions: Corruptions 1"
pytestmark = pytest.mark.slow  # half a minute, all examples in one process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the examples run; some write files."""
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def printed(folder, torch):
    """{heading and number: what the example printed}; one process runs them all."""
    del torch  # one of them imports it
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        input=json.dumps(examples()),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_examples_run(printed):
    assert list(printed) == [
        "README: Ten lines 1",
        "attacks: On classifiers of your own 1",
        CORRUPTIONS,
        "frameworks: In scikit-learn 1",
        "frameworks: In scikit-learn 2",
        "frameworks: From and to PyTorch 1",
        "library: Sylvester equations 1",
        "library: Sylvester equations 2",
        "performance: Several devices 1",
        "predictions: Predictions from any framework 1",
        "predictions: Predictions from any framework 2",
    ]


def test_links_lead_to_files_and_headings():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), (page.name, link)
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert not heading or heading in anchors, (page.name, link)


def test_a_corruption_has_five_severities(printed):
    assert len(printed[CORRUPTIONS].splitlines()) == 5


def test_results_are_sharded_as_the_batch(printed):
    assert printed["performance: Several devices 1"].count("'batch'") == 2


@pytest.mark.parametrize("example", ["README: Ten lines 1", "library: Sylvester equations 2"])
def test_fusions_print_classes_and_a_norm(printed, example):
    labels, norm = printed[example].strip().strip("[").split("]")
    assert len(labels.split()) == 128
    assert {int(label) for label in labels.split()} == set(range(10))
    assert 0 < float(norm) < 1


def test_what_pytorch_predicted_is_in_the_file(printed, folder):
    del printed
    arrays = safetensors.numpy.load_file(folder / "audio.safetensors")
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == {"logits": (200, 10), "weight": (10, 32), "labels": (200,), "ids": (200,)}
    np.testing.assert_array_equal(arrays["ids"], np.arange(200))


def test_scikit_learns_accuracies_are_those_of_the_text(printed):
    text = " ".join((ROOT / "docs" / "frameworks.md").read_text().split()).partition(
        "prints the accuracy on clean test digits"
    )[2]
    sentence = text.partition("by robust fusion.")[0]
    promised = re.findall(r"\b[01]\.\d{3}\b", sentence)
    assert len(promised) == 4
    accuracies = [float(word) for word in printed["frameworks: In scikit-learn 2"].split()]
    assert [f"{accuracy:.3f}" for accuracy in accuracies] == promised


def test_sylvester_equations_are_solved_in_float32(printed):
    residual, separation, converged = printed["library: Sylvester equations 1"].split()
    assert 1e-9 < float(residual) < 30 * 10 * np.finfo(np.float32).eps
    assert 0 < float(separation) < 0.01
    assert converged == "True"


def test_attacks_on_classifiers_of_ones_own_cost_accuracy(printed):
    lines = printed["attacks: On classifiers of your own 1"].splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["image", "image"]
    for line in lines:
        clean, worst = map(float, line.split()[-2:])
        assert 0.3 < worst < clean


def test_attacks_on_classifiers_of_pytorch_change_predictions(printed):
    assert 0 < float(printed["frameworks: From and to PyTorch 1"]) < 0.7
