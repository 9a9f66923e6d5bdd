import os
import signal
from pathlib import Path

import filelock
import jax
import pytest

# A shell's background jobs ignore interrupts, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests cover float32 and float64; what users run, x64 off, is covered by the binaries' tests, which
# start processes of their own.
jax.config.update("jax_enable_x64", True)
# Of which all but tests/test_sharding.py use the first.
jax.config.update("jax_num_cpu_devices", 8)
# Nothing is promoted silently, neither dtypes nor ranks.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# No jaxlib from 0.9 to 0.12 refuses these; the last one halves the time of a small program up to
# 0.11, and means nothing to 0.12.
_UNOPTIMISED = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)

# Each program keeps some, and 0.2 MB for each; beyond the 65,530 that Linux grants a process
# compilation crashes.
_MANY_MAPS = 12_000


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="the first case of every test that is not slow"
    )
    parser.addoption(
        "--unoptimised",
        action="store_true",
        help="compile as fast as XLA can, here and in children",
    )


def pytest_configure(config):
    # Read when the first program is compiled; a flag that XLA does not know ends the process.
    if config.getoption("--unoptimised"):
        os.environ["XLA_FLAGS"] = _UNOPTIMISED


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--quick"):
        return
    first, rest, seen = [], [], set()
    for item in items:
        promise = item.nodeid.partition("[")[0]
        is_kept = promise not in seen and not item.get_closest_marker("slow")
        seen.add(promise)
        (first if is_kept else rest).append(item)
    config.hook.pytest_deselected(items=rest)
    items[:] = first


def pytest_runtest_setup(item):
    marker = item.get_closest_marker("cpu_only")
    if marker is not None and jax.default_backend() != "cpu":
        pytest.skip(f"CPU only: {marker.args[0]}")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_end_before_they_are_too_many():
    yield
    maps = Path("/proc/self/maps")  # a line each
    if not maps.exists() or maps.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def prepared_av_mnist(tmp_path_factory, worker_id):
    """Folders of the raw files and of what is prepared from them, once for all processes."""
    from data_pipelines import av_mnist

    raw = Path(os.environ["JACFUSE_TEST_DATA"]).absolute()
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent
    with filelock.FileLock(folder / "av_mnist.lock"):
        av_mnist.prepare(folder / "av_mnist", raw, progress=False)
    return raw, folder / "av_mnist"


_NO_PEER = "a peer of tests is not installed here; `make test` installs it"


@pytest.fixture(scope="session")
def torch():
    """Imported by what needs it alone, since that takes seconds."""
    return pytest.importorskip("torch", reason=f"PyTorch, {_NO_PEER}")


@pytest.fixture(scope="session")
def torchvision(torch):
    del torch
    return pytest.importorskip("torchvision", reason=f"torchvision, {_NO_PEER}")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param
