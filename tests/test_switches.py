"""Every public function under JAX's own switches, and without a program a call."""

import inspect

import jax
import pytest

import jacfuse_jax
from jacfuse_jax.attacks import losses
from tests.public_calls import CALLS, make_data

# They loop over a function that is new at every call, and say so.
_RECOMPILING = {"spectral_norm"}
_OF_NO_ARRAYS = {"rule_from_json"}


def public_functions(module):
    """Names in `__all__`, or else of what the module defines."""
    names = getattr(module, "__all__", [name for name in vars(module) if name[0] != "_"])
    functions = {name: getattr(module, name) for name in names}
    return {
        name
        for name, function in functions.items()
        if inspect.isfunction(function) and function.__module__.startswith(module.__name__)
    } - _OF_NO_ARRAYS


def test_the_table_holds_every_public_function():
    named = {getattr(jacfuse_jax, name) for name in jacfuse_jax.__all__ if name != "__version__"}
    assert {*named, losses} == set(CALLS)
    for module, calls in CALLS.items():
        assert set(calls) == public_functions(module), module.__name__


@pytest.mark.extended
@pytest.mark.parametrize("switch", ["debug_nans", "check_tracer_leaks", "disable_jit"])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=f"{module.__name__}.{name}")
        for module, calls in CALLS.items()
        for name, call in calls.items()
    ],
)
def test_under_a_switch(call, switch):
    data = make_data(0)
    with getattr(jax, switch)(True):
        call(data)


@pytest.mark.slow
def test_an_eager_call_with_other_values_compiles_nothing():
    compiled = []

    def listen(event, duration_secs, **_):
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    first, second = make_data(0), make_data(1)
    counts = {}
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for calls in CALLS.values():
            for name, call in calls.items():
                call(first)
                num_compiled = len(compiled)
                call(second)
                counts[name] = len(compiled) - num_compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) > 2 * len(counts)  # the first calls are seen
    assert {name for name, count in counts.items() if count} == _RECOMPILING
