import functools

import jax
import numpy as np
import pytest

from jacfuse_jax import corruptions
from tests.corruptions.inputs import KEY, SHAPE, corrupt


def test_noise_has_the_stated_distribution(dtype):
    x = np.full(SHAPE, 0.5, dtype)
    for stddev in corruptions.GAUSSIAN_NOISE_STDDEV:
        noise = corrupt("gaussian_noise", KEY, x, stddev=stddev).astype(np.float64) - 0.5
        assert abs(noise.mean()) < 5 * stddev / np.sqrt(noise.size)
        assert abs(noise.std() / stddev - 1) < 5 / np.sqrt(2 * noise.size)
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 5 / np.sqrt(1250)


def test_noise_stays_in_the_valid_range(dtype):
    x = np.random.default_rng(0).uniform(size=SHAPE).astype(dtype)
    bounds = (np.zeros((25, 2)), np.float64(1.0))
    noisy = corrupt("gaussian_noise", KEY, x, stddev=2.0, valid_range=bounds)
    assert noisy.dtype == dtype
    assert noisy.min() == 0
    assert noisy.max() == 1


def test_missing_replaces_the_stated_share_and_nothing_else(dtype):
    x = np.random.default_rng(0).uniform(1, 2, size=SHAPE).astype(dtype)
    fill = np.random.default_rng(1).uniform(-2, -1, size=SHAPE[1:]).astype(dtype)
    previous = np.zeros(x.shape, bool)
    for fraction in corruptions.MISSING_FRACTION:
        y = corrupt("missing", KEY, x, fraction=fraction, fill_value=fill)
        assert y.dtype == dtype
        removed = y < 0
        np.testing.assert_array_equal(y, np.where(removed, fill, x))
        assert abs(removed.mean() - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / x.size)
        assert (removed | ~previous).all()  # a larger share removes a superset
        previous = removed


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_missing_nothing_or_everything(fraction):
    x = np.random.default_rng(0).uniform(1, 2, size=SHAPE)
    expected = x if fraction == 0 else np.full_like(x, -3.0)
    actual = corrupt("missing", KEY, x, fraction=fraction, fill_value=-3.0)
    np.testing.assert_array_equal(actual, expected)


def test_bias_is_one_offset_per_sample_of_random_sign(dtype):
    x = np.random.default_rng(0).uniform(size=(6000, 2, 3)).astype(dtype)
    shift = corrupt("bias", KEY, x, offset=0.25) - x
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(np.abs(shift), 0.25, rtol=0, atol=2 * eps)
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1, :1], x.shape), atol=4 * eps)
    assert abs((shift[:, 0, 0] > 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(x))


def test_missing_modality_replaces_whole_samples(dtype):
    x = np.random.default_rng(0).uniform(1, 2, size=(6000, 3, 2)).astype(dtype)
    fill = np.random.default_rng(1).uniform(-2, -1, size=(3, 2)).astype(dtype)
    previous = np.zeros(len(x), bool)
    for fraction in corruptions.SEVERITIES["missing_modality"].values:
        y = corrupt("missing_modality", KEY, x, fraction=fraction, fill_value=fill)
        removed = y[:, 0, 0] < 0
        np.testing.assert_array_equal(y, np.where(removed[:, None, None], fill, x))
        assert abs(removed.mean() - fraction) <= 5 * np.sqrt(fraction * (1 - fraction) / len(x))
        assert (removed | ~previous).all()
        previous = removed
    assert previous.all()


@pytest.mark.parametrize("num_samples", [2, 5, 40])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.34, 1.0])
def test_mismatched_pairs_trade_inputs_in_one_cycle(num_samples, fraction):
    source = np.asarray(traded(KEY, num_samples, fraction))
    np.testing.assert_array_equal(np.sort(source), np.arange(num_samples))
    moved = np.flatnonzero(source != np.arange(num_samples))
    wanted = round(fraction * num_samples)
    assert len(moved) == (2 if wanted == 1 else wanted)
    if len(moved):
        cycle = [moved[0]]
        while source[cycle[-1]] != moved[0]:
            cycle.append(source[cycle[-1]])
        assert len(cycle) == len(moved)


def test_mismatched_pairs_are_drawn_uniformly():
    draws = np.asarray(jax.vmap(lambda key: traded(key, 5, 0.6))(jax.random.split(KEY, 5000)))
    moved = draws != np.arange(5)
    assert (abs(moved.mean(axis=0) - 0.6) < 5 * np.sqrt(0.24 / 5000)).all()
    counts = np.array([(draws[:, 0] == b).sum() for b in range(1, 5)])
    assert (abs(counts / 5000 - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 5000)).all()


@functools.partial(jax.jit, static_argnums=1)
def traded(key, num_samples, fraction):
    """Where every sample got its input from."""
    x = np.arange(num_samples, dtype=np.float64)[:, None] * np.ones(3)
    return corruptions.mismatched_pair(key, x, fraction=fraction)[:, 0].astype(int)


def test_a_mismatched_nan_moves_with_its_sample():
    x = np.random.default_rng(0).uniform(size=(5, 4))
    x[3] = np.nan
    y = corrupt("mismatched_pair", KEY, x, fraction=1.0)
    assert np.isnan(y).all(axis=1).sum() == np.isnan(y).any(axis=1).sum() == 1
    assert not np.isnan(y[3]).any()


def test_mismatched_pairs_need_two_samples():
    with pytest.raises(ValueError, match="x must hold at least 2 samples to trade inputs, got 1"):
        corruptions.mismatched_pair(KEY, np.ones((1, 3)), fraction=0.5)
