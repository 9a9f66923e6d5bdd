"""Runs the quick tests on every supported Python and JAX (`make test-matrix`), and prints a table.

Everything else is the newest that pyproject.toml admits, without PyTorch. Environments are kept in
.matrix/, each with what its tests printed last (pytest.log).
"""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import tabulate

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".matrix"
# (Python, what is asked of jax): jax 0.9.2 is the last one for Python 3.11 that works.
ROWS = [
    ("3.11", "jax==0.9.2"),
    ("3.12", "jax==0.11.2"),
    ("3.12", "jax"),
    ("3.13", "jax==0.11.2"),
    ("3.13", "jax"),
]
PACKAGES = ["jax", "numpy", "scipy", "flax", "optax", "orbax-checkpoint", "av", "librosa",
            "pyarrow", "scikit-learn", "tensorflow-datasets", "pytest"]  # fmt: skip


def find_interpreter(version: str) -> str | None:
    """Path of a Python of this version, on the path or of pyenv, if one runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    paths = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    for path in [*map(str, paths), shutil.which(f"python{version}")]:
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def make_environment(folder: Path, interpreter: str, jax: str) -> None:
    """Installs there, unless this was done already for the same requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = json.dumps([interpreter, jax, project])
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--upgrade"]
    subprocess.run([*pip, "pip"], check=True)
    subprocess.run([*pip, "--editable", ".[experiments,dev]", jax], cwd=ROOT, check=True)
    stamp.write_text(wanted)  # last, so that an interrupted build is never taken for a whole one


def run_tests(folder: Path) -> dict[str, str]:
    """How many tests passed, failed and were skipped, and in how many minutes."""
    results, log = folder / "results.xml", folder / "pytest.log"
    results.unlink(missing_ok=True)
    command = [folder / "bin/python", "-m", "pytest", "--quick", "--unoptimised", "--quiet",
               "--numprocesses=2", "--dist=loadscope", f"--junit-xml={results}"]  # fmt: skip
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.run(
            command, cwd=ROOT, env=os.environ | threads, stdout=file, stderr=subprocess.STDOUT
        )
    minutes = f"{(time.monotonic() - start) / 60:.1f}"
    if process.returncode not in (0, 1):  # a crash, say, or no test at all
        return {"passed": "", "failed": f"all, see {log}", "skipped": "", "minutes": minutes}
    suite = ElementTree.parse(results).getroot()[0]
    tests, failures, errors, skipped = (
        int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
    )
    return {
        "passed": str(tests - failures - errors - skipped),
        "failed": str(failures + errors),
        "skipped": str(skipped),
        "minutes": minutes,
    }


def versions(folder: Path) -> dict[str, str]:
    """Those that matter most, by name."""
    python = folder / "bin/python"
    _, version = subprocess.check_output([python, "--version"], text=True).split()
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format=json"])
    found = {package["name"].lower(): package["version"] for package in json.loads(listed)}
    return {"python": version, **{name: found[name] for name in PACKAGES}}


def main() -> int:
    """0 if no test failed in any environment, else 1."""
    rows: list[dict[str, str]] = []
    for python, jax in ROWS:
        interpreter = find_interpreter(python)
        if interpreter is None:
            print(f"Python {python} is not there: left out with {jax}", flush=True)
            continue
        folder = FOLDER / f"python{python}-{jax.replace('==', '')}"
        print(f"{folder} ...", flush=True)
        make_environment(folder, interpreter, jax)
        rows.append(versions(folder) | run_tests(folder))
    print(tabulate.tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    return int(any(row["failed"] != "0" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
