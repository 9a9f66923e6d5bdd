import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.experiments import runs

FOLDER = Path(runs.ROOT) / "experiments" / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_runs_from_the_root_and_draws_what_is_stored(path, monkeypatch):
    # Kernels talk over sockets of this machine alone; debuggers of frozen modules are not used.
    monkeypatch.setitem(os.environ, "PYDEVD_DISABLE_FILE_VALIDATION", "1")
    stored = nbformat.read(path, as_version=4)
    executed = nbformat.read(path, as_version=4)
    client = NotebookClient(
        executed, timeout=500, kernel_name="python3", resources={"metadata": {"path": runs.ROOT}}
    )
    client.execute()  # raises where a cell does, its assertions included
    assert kinds_of(executed) == kinds_of(stored)
    assert [kind for cell in kinds_of(executed) for kind in cell].count("image/png") == 4


def kinds_of(notebook):
    """What every code cell shows: names of streams, and figures."""
    return [
        [
            getattr(output, "name", None) or next(iter(sorted(output.get("data", ["error"]))))
            for output in cell.outputs
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
