"""What holds for every corruption."""

import jax
import numpy as np
import pytest

from jacfuse_jax import corruptions
from jacfuse_jax.corruptions import SEVERITIES
from tests.corruptions.inputs import KEY, SERIES, SMALL, TRACES, corrupt, takes

UNIT = {"valid_range": (0.0, 1.0)}
STDDEV = np.full(SERIES[-1], 0.2)
ARGUMENTS = {
    "shot_noise": UNIT,
    "impulse_noise": UNIT,
    "brightness": UNIT,
    "saturation": {"mean": np.full(SERIES[-1], 0.5), "stddev": STDDEV},
    "drift": {"stddev": STDDEV},
}
every_corruption = pytest.mark.parametrize("name", SEVERITIES)


def arguments(name, x, value, key=KEY, **kwargs):
    """What the corruption takes, its severity given by value."""
    key_if_any = (key,) if takes(name, "key") else ()
    kwargs = {**ARGUMENTS.get(name, {}), SEVERITIES[name].parameter: value, **kwargs}
    return (*key_if_any, x), kwargs


def compiled(name, *args, **kwargs):
    args, kwargs = arguments(name, *args, **kwargs)
    return corrupt(name, *args, **kwargs)


def eager(name, *args, **kwargs):
    args, kwargs = arguments(name, *args, **kwargs)
    return getattr(corruptions, name)(*args, **kwargs)


def random_input(name, dtype="float32"):
    shape = SERIES if is_of(name, "series") else SMALL
    return np.random.default_rng(0).uniform(size=shape).astype(dtype)


def is_of(name, kind):
    return getattr(corruptions, name).__module__.endswith(kind)


@every_corruption
def test_severities_move_ever_further(name, dtype):
    x = random_input(name, dtype)
    corrupted = [compiled(name, x, value) for value in SEVERITIES[name].values]
    assert all(y.dtype == dtype and y.shape == x.shape for y in corrupted)
    distances = [((y - x) ** 2).mean(dtype=np.float64) for y in corrupted]
    assert distances[0] > 0
    assert (np.diff(distances) > 0).all()


@every_corruption
def test_one_compilation_serves_all_severities_and_changes_nothing(name):
    x = random_input(name)
    compiled(name, x, SEVERITIES[name].values[0])
    num_traces = TRACES[name]
    for value in SEVERITIES[name].values:
        np.testing.assert_allclose(
            compiled(name, x, value),
            eager(name, x, value),
            rtol=2e-6,  # 16 eps
            atol=2e-6,
        )
    assert TRACES[name] == num_traces


@pytest.mark.parametrize("name", [name for name in SEVERITIES if takes(name, "key")])
def test_the_key_decides(name):
    x, value = random_input(name), SEVERITIES[name].values[2]
    y = compiled(name, x, value)
    np.testing.assert_array_equal(compiled(name, x, value), y)
    assert not np.allclose(compiled(name, x, value, key=jax.random.key(1)), y)


@pytest.mark.parametrize("name", [name for name in SEVERITIES if name != "mismatched_pair"])
def test_a_sample_depends_on_itself_alone(name):
    x = random_input(name)
    others = np.arange(len(x)) != 3
    for value in SEVERITIES[name].values[::4]:
        expected = compiled(name, x, value)
        assert np.isfinite(expected).all()
        for entry in (np.nan, np.inf, 0.0):
            other = x.copy()
            other[3] = entry
            actual = compiled(name, other, value)
            np.testing.assert_array_equal(actual[others], expected[others])
            if np.isnan(entry) and name != "missing_modality":
                assert np.isnan(actual[3]).any()


@pytest.mark.parametrize("name", [name for name in SEVERITIES if takes(name, "valid_range")])
def test_valid_ranges_are_respected(name, dtype):
    x = 0.25 + 0.5 * random_input(name, dtype)
    low = np.full(x.shape[1:], 0.25, dtype)
    for value in (SEVERITIES[name].values[0], SEVERITIES[name].values[-1]):
        y = compiled(name, x, value, valid_range=(low, 0.75))
        assert y.dtype == dtype
        assert (y >= low).all()
        assert (y <= np.asarray(0.75, dtype)).all()
        assert (y != x).any()


@every_corruption
def test_misuse(name):
    x, (parameter, _, values) = random_input(name), SEVERITIES[name]
    with pytest.raises(TypeError, match="x must be float32 or float64, got uint8; cast it first"):
        eager(name, x.astype(np.uint8), values[0])
    with pytest.raises(ValueError, match=f"{parameter} must (lie in|be finite).*got nan"):
        eager(name, x, np.nan)
    with pytest.raises(ValueError, match=f"{parameter} must be a scalar, got shape \\(40,\\)"):
        eager(name, x, np.full(40, values[0]))
    if not parameter.endswith("_db"):
        with pytest.raises(ValueError, match=f"{parameter} must lie in .*, got -0.5"):
            eager(name, x, -0.5)
    if parameter in ("fraction", "factor"):
        with pytest.raises(ValueError, match=f"{parameter} must lie in \\[0, 1\\], got 1.5"):
            eager(name, x, 1.5)
    if takes(name, "valid_range"):
        with pytest.raises(ValueError, match=r"low <= high, got \(1.0, 0.0\)"):
            eager(name, x, values[0], valid_range=(1.0, 0.0))
    if takes(name, "fill_value"):
        with pytest.raises(ValueError, match=r"fill_value must broadcast against x, .* \(7,\) and"):
            eager(name, x, values[0], fill_value=np.zeros(7))
    if is_of(name, "series"):
        with pytest.raises(ValueError, match=r"x must have shape \(B, T, C\) .*, got \(40, 12\)"):
            eager(name, x[..., 0], values[0])
    if is_of(name, "image"):
        with pytest.raises(
            ValueError, match=r"x must have shape \(B, H, W, C\) or .*, got \(40, 12"
        ):
            eager(name, x[..., 0], values[0])
    if takes(name, "axis"):
        with pytest.raises(ValueError, match=f"axis must be in 1 .. {x.ndim - 1}, .*, got 0"):
            eager(name, x, values[0], axis=0)
