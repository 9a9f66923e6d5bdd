import signal

import jax
import pytest

# A shell's background jobs ignore interrupts, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests cover float32 and float64; what users run, x64 off, is covered by the binaries' tests, which
# start processes of their own.
jax.config.update("jax_enable_x64", True)


def pytest_runtest_setup(item):
    marker = item.get_closest_marker("cpu_only")
    if marker is not None and jax.default_backend() != "cpu":
        pytest.skip(f"CPU only: {marker.args[0]}")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_end_with_their_module():
    # Each keeps memory maps, of which Linux grants a process 65,530: beyond, compilation crashes.
    yield
    jax.clear_caches()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param
