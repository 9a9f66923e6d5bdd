import jax
import pytest

# Tests cover float32 and float64; what users run, x64 off, is covered by the binaries' tests, which
# start processes of their own.
jax.config.update("jax_enable_x64", True)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param
