"""The real data in the folder that JACFUSE_TEST_DATA names."""

import os
from pathlib import Path

import pytest

_VARIABLE = "JACFUSE_TEST_DATA"


def needs_real_data(what: str) -> pytest.MarkDecorator:
    """Skips a test where nobody has the data, which are too large to be kept beside the tests.

    Args:
      what: that the folder is to hold.
    """
    return pytest.mark.skipif(
        _VARIABLE not in os.environ, reason=f"{_VARIABLE} names no folder with {what}"
    )


def real_data(name: str) -> Path:
    """A file or folder of the data."""
    return Path(os.environ[_VARIABLE]) / name
