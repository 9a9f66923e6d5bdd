"""Examples of README.md, run as users run them: in a process without x64."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

README = Path(__file__).parents[1] / "README.md"
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
    """{heading and number of the example below it: code}."""
    found = {}
    for section in re.split(r"^##+ ", README.read_text(), flags=re.MULTILINE):
        heading = section.partition("\n")[0]
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL)):
            found[f"{heading} {number + 1}"] = code
    return found


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
        "Ten lines 1",
        "Predictions from any framework 1",
        "Predictions from any framework 2",
        "In scikit-learn 1",
        "In scikit-learn 2",
        "Sylvester equations 1",
        "Sylvester equations 2",
        "On several devices 1",
        "On classifiers of your own 1",
        "From and to PyTorch 1",
    ]


def test_results_are_sharded_as_the_batch(printed):
    assert printed["On several devices 1"].count("'batch'") == 2


@pytest.mark.parametrize("example", ["Ten lines 1", "Sylvester equations 2"])
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
    text = " ".join(README.read_text().split()).partition(
        "prints the accuracy on clean test digits"
    )[2]
    sentence = text.partition("by robust fusion.")[0]
    promised = re.findall(r"\b[01]\.\d{3}\b", sentence)
    assert len(promised) == 4
    accuracies = [float(word) for word in printed["In scikit-learn 2"].split()]
    assert [f"{accuracy:.3f}" for accuracy in accuracies] == promised


def test_sylvester_equations_are_solved_in_float32(printed):
    residual, separation, converged = printed["Sylvester equations 1"].split()
    assert 1e-9 < float(residual) < 30 * 10 * np.finfo(np.float32).eps
    assert 0 < float(separation) < 0.01
    assert converged == "True"


def test_attacks_on_classifiers_of_ones_own_cost_accuracy(printed):
    lines = printed["On classifiers of your own 1"].splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["image", "image"]
    for line in lines:
        clean, worst = map(float, line.split()[-2:])
        assert 0.3 < worst < clean


def test_attacks_on_classifiers_of_pytorch_change_predictions(printed):
    assert 0 < float(printed["From and to PyTorch 1"]) < 0.7
