"""The wheel in environments that have nothing else: each extra is enough for what it is for."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from tests import reference

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.extended, pytest.mark.timeout(1200)]  # what is installed is downloaded


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # From a copy, since setuptools builds in the folder of what it packs.
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    shutil.copytree(ROOT / "jacfuse_jax", source / "jacfuse_jax")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    constraints = ROOT / "constraints.txt"
    build = ("wheel", "--quiet", "--no-deps", "--build-constraint", constraints)
    run(sys.executable, "-m", "pip", *build, "--wheel-dir", folder, source, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def make_environment(folder, wheel, extra):
    """The interpreter of a new environment with the wheel and one of its extras."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = ("install", "--quiet", "--constraint", ROOT / "constraints.txt")
    run(python, "-m", "pip", *install, f"{wheel}{extra}", cwd=folder)
    return python


def test_predictions_fuse_two_files(wheel, tmp_path):
    python = make_environment(tmp_path / "environment", wheel, "[predictions]")
    rng = np.random.default_rng(0)
    logits = {name: rng.normal(size=(30, 4)).astype(np.float32) for name in ("audio", "video")}
    for name, array in logits.items():
        np.savez(tmp_path / f"{name}.npz", logits=array)
    inputs = [f"--input={name}={name}.npz" for name in logits]
    said = run(python, "-m", "jacfuse_jax.predictions", *inputs, "--output=f.npz", cwd=tmp_path)
    assert "statistical fusion, since nothing is perturbed" in said
    with np.load(tmp_path / "f.npz") as fused:
        expected = reference.statistical_fusion(logits, np.full(4, 0.25))
        np.testing.assert_allclose(np.exp(fused["log_probs"]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("", ["jacfuse_jax"]),
        ("[evaluation]", ["jacfuse_jax.evaluation"]),
        ("[models]", ["jacfuse_jax.models", "jacfuse_jax.training"]),
        ("[sklearn]", ["jacfuse_jax.sklearn"]),
    ],
)
def test_an_extra_is_enough_for_what_it_is_for(extra, modules, wheel, tmp_path):
    python = make_environment(tmp_path / "environment", wheel, extra)
    # Every module of what the extra is for.
    script = (
        "import importlib, pkgutil, sys\n"
        "for name in sys.argv[1:]:\n"
        "    package = importlib.import_module(name)\n"
        "    for module in pkgutil.iter_modules(getattr(package, '__path__', [])):\n"
        "        if name != 'jacfuse_jax' or not module.ispkg:\n"
        "            importlib.import_module(f'{name}.{module.name}')\n"
    )
    run(python, "-c", script, *modules, cwd=tmp_path)
