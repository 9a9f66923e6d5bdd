import contextlib
import tempfile

import pytest

from jacfuse_jax.predictions.inputs import Names, open_predictions
from tests.predictions.formats import WRITERS


@pytest.fixture
def scratch_fn(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(tempfile.TemporaryFile(dir=tmp_path))


@pytest.fixture
def write(tmp_path, scratch_fn):
    """Writes predictions in a format and opens them."""

    def write_and_open(kind, name="audio", /, names=None, **arrays):
        path = tmp_path / f"{name}.{kind}"
        WRITERS[kind](path, arrays)
        return open_predictions(path, scratch_fn=scratch_fn, names=names or Names())

    return write_and_open
