import base64
import io
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from numpy.typing import NDArray
from PIL import Image

from tests.experiments import runs

FOLDER = Path(runs.ROOT) / "experiments" / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_says_and_draws_from_the_root_what_is_stored(path, monkeypatch):
    # Kernels talk over sockets of this machine alone; debuggers of frozen modules are not used.
    monkeypatch.setitem(os.environ, "PYDEVD_DISABLE_FILE_VALIDATION", "1")
    stored = nbformat.read(path, as_version=4)
    executed = nbformat.read(path, as_version=4)
    client = NotebookClient(
        executed, timeout=500, kernel_name="python3", resources={"metadata": {"path": runs.ROOT}}
    )
    client.execute()  # raises where a cell does, its assertions included
    (text, figures), (expected_text, expected_figures) = outputs_of(executed), outputs_of(stored)
    assert len(figures) == len(expected_figures) == 4
    for figure, other in zip(figures, expected_figures, strict=True):
        assert figure.shape == other.shape
        differs = (abs(figure - other) > 40).any(axis=-1)
        assert differs.mean() < 0.002  # of the pixels: lines are thin
    words, numbers = split_numbers(text)
    expected_words, expected_numbers = split_numbers(expected_text)
    assert words == expected_words
    np.testing.assert_allclose(numbers, expected_numbers, rtol=0.01)


def outputs_of(notebook):
    """What the cells print, and the pixels of their figures."""
    text, figures = "", list[NDArray[Any]]()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text += output.get("text", "")
            if "image/png" in output.get("data", {}):
                with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as image:
                    figures.append(np.asarray(image.convert("RGB"), int))
    return text, figures


def split_numbers(text):
    """The words between numbers, and the numbers."""
    pattern = r"\d+(?:\.\d+)?"
    return re.sub(pattern, "#", text).split(), [float(x) for x in re.findall(pattern, text)]
