import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import corruptions, fusion
from jacfuse_jax.corruptions import SEVERITIES
from jacfuse_jax.evaluation.corruptions import applies, corrupt
from jacfuse_jax.evaluation.names import CORRUPTIONS, SERIES_CORRUPTIONS
from jacfuse_jax.evaluation.plan import Contest, make_plan
from jacfuse_jax.evaluation.threat_models import make_scenarios

KEY = jax.random.key(0)
INPUTS = jnp.asarray(np.random.default_rng(0).uniform(size=(10, 12, 16, 1)), jnp.float32)
FILL = np.full((12, 16, 1), -1.0, np.float32)
SERIES = jnp.asarray(np.random.default_rng(0).normal(size=(10, 12, 3)), jnp.float32)
OF_SERIES: dict[str, Any] = {
    "valid_range": (-2.0, 2.0),
    "fill_value": np.tile(np.array([-0.1, 0.0, 0.1], np.float32), (12, 1)),
    "stddev": np.array([0.5, 1.0, 2.0], np.float32),
}


def damaged(name, severity):
    fn = jax.jit(functools.partial(corrupt, name, valid_range=(0.0, 1.0), fill_value=FILL))
    return np.asarray(fn(KEY, INPUTS, SEVERITIES[name].values[severity - 1]))


def test_all_of_the_library_but_those_of_amplitudes():
    assert set(CORRUPTIONS) == set(SEVERITIES) - {"gain", "clipping"}


def test_every_corruption_applies_to_some_kind_and_general_ones_to_all():
    kinds = ("image", "video", "spectrogram", "series", "vector", None)
    applied = {name: [kind for kind in kinds if applies(name, kind)] for name in CORRUPTIONS}
    assert applied["missing"] == list(kinds)
    assert applied["occlusion"] == ["image", "video"]
    assert applied["time_mask"] == ["spectrogram"]
    assert all(applied[name] == ["series"] for name in SERIES_CORRUPTIONS)
    assert all(applied.values())


@pytest.mark.parametrize(("shape", "is_rotated"), [((9, 3), True), ((9, 6), True), ((9, 4), False)])
def test_axes_are_rotated_three_by_three(shape, is_rotated):
    assert applies("rotation", "series", shape) == is_rotated
    assert applies("drift", "series", shape)
    step_names = [
        step.perturbation
        for step in make_plan(
            make_scenarios(["known"], ["a"], ("a", "b")),
            {("a",): Contest([fusion.Statistical()], frozenset())},
            ["rotation", "drift"],
            {"a": "series"},
            num_classes=3,
            shapes={"a": shape},
        ).steps
    ]
    assert set(step_names) == ({"rotation", "drift"} if is_rotated else {"drift"})


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_takes_what_it_is_given(name):
    # What it then does is tested beside the library's.
    is_of_series = name in SERIES_CORRUPTIONS
    x = SERIES if is_of_series else INPUTS
    known: Any = OF_SERIES if is_of_series else {"valid_range": (0.0, 1.0), "fill_value": FILL}
    found = jax.eval_shape(
        functools.partial(corrupt, name, **known), KEY, x, SEVERITIES[name].values[0]
    )
    assert (found.shape, found.dtype) == (x.shape, x.dtype)


def test_series_are_measured_by_their_channels():
    known = {"mean": OF_SERIES["fill_value"][0], "stddev": OF_SERIES["stddev"]}
    saturated = corrupt("saturation", KEY, SERIES, 0.5, **OF_SERIES)
    expected = corruptions.saturation(SERIES, limit=0.5, **known)
    np.testing.assert_allclose(saturated, expected, rtol=0, atol=1e-6)
    assert (saturated != SERIES).any(axis=(0, 1)).all()
    drifted = corrupt("drift", KEY, SERIES, 3.0, **OF_SERIES)
    assert abs(drifted).max() == 2  # within the valid range
    filled = np.asarray(corrupt("dropouts", KEY, SERIES, 0.5, **OF_SERIES))
    lost = filled == OF_SERIES["fill_value"]
    assert lost.all(axis=-1).mean() == pytest.approx(0.5, abs=0.1)
    without = {name: value for name, value in OF_SERIES.items() if name != "stddev"}
    for name in ("saturation", "drift"):
        with pytest.raises(ValueError, match=f"{name} needs `Models.stddevs`, of the channels"):
            corrupt(name, KEY, SERIES, 0.5, **without)


def test_masks_run_along_the_axes_of_the_spectrograms():
    masked = damaged("time_mask", 5)[..., 0] == -1
    assert (masked.all(axis=1) == masked.any(axis=1)).all()  # whole columns: time is axis 2
    assert masked.any(axis=1).sum(axis=1).tolist() == [8] * 10
    masked = damaged("frequency_mask", 5)[..., 0] == -1
    assert masked.all(axis=2).sum(axis=1).tolist() == [6] * 10
