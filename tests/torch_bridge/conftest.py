import importlib

import pytest


@pytest.fixture(scope="session")
def bridge(torch):
    """The package, which imports torch."""
    del torch
    return importlib.import_module("jacfuse_jax.torch")


@pytest.fixture(scope="session")
def networks(torch):
    del torch
    return importlib.import_module("tests.torch_bridge.networks")
