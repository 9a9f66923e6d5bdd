import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax.corruptions import SEVERITIES
from jacfuse_jax.evaluation.corruptions import applies, corrupt
from jacfuse_jax.evaluation.names import CORRUPTIONS

KEY = jax.random.key(0)
INPUTS = jnp.asarray(np.random.default_rng(0).uniform(size=(10, 12, 16, 1)), jnp.float32)
FILL = np.full((12, 16, 1), -1.0, np.float32)


def damaged(name, severity):
    fn = jax.jit(functools.partial(corrupt, name, valid_range=(0.0, 1.0), fill_value=FILL))
    return np.asarray(fn(KEY, INPUTS, SEVERITIES[name].values[severity - 1]))


def test_all_of_the_library_but_those_of_amplitudes():
    assert set(CORRUPTIONS) == set(SEVERITIES) - {"gain", "clipping"}


def test_every_corruption_applies_to_some_kind_and_general_ones_to_all():
    kinds = ("image", "video", "spectrogram", "vector", None)
    applied = {name: [kind for kind in kinds if applies(name, kind)] for name in CORRUPTIONS}
    assert applied["missing"] == list(kinds)
    assert applied["occlusion"] == ["image", "video"]
    assert applied["time_mask"] == ["spectrogram"]
    assert all(applied.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_takes_what_it_is_given(name):
    # What it then does is tested beside the library's.
    fn = functools.partial(corrupt, name, valid_range=(0.0, 1.0), fill_value=FILL)
    found = jax.eval_shape(fn, KEY, INPUTS, SEVERITIES[name].values[0])
    assert (found.shape, found.dtype) == (INPUTS.shape, INPUTS.dtype)


def test_masks_run_along_the_axes_of_the_spectrograms():
    masked = damaged("time_mask", 5)[..., 0] == -1
    assert (masked.all(axis=1) == masked.any(axis=1)).all()  # whole columns: time is axis 2
    assert masked.any(axis=1).sum(axis=1).tolist() == [8] * 10
    masked = damaged("frequency_mask", 5)[..., 0] == -1
    assert masked.all(axis=2).sum(axis=1).tolist() == [6] * 10
