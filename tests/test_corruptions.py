import jax
import numpy as np
import pytest

from jacfuse_jax import corruptions

KEY = jax.random.key(0)


def test_noise_has_the_stated_distribution(dtype):
    x = np.full((100, 30, 30), 0.5, dtype)
    for stddev in corruptions.GAUSSIAN_NOISE_STDDEV:
        noise = np.asarray(corruptions.gaussian_noise(KEY, x, stddev=stddev), np.float64) - 0.5
        assert abs(noise.mean()) < 5 * stddev / np.sqrt(noise.size)
        assert abs(noise.std() / stddev - 1) < 5 / np.sqrt(2 * noise.size)
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2


def test_noise_stays_in_the_valid_range(dtype):
    x = np.random.default_rng(0).uniform(size=(4, 50)).astype(dtype)
    noisy = corruptions.gaussian_noise(
        KEY, x, stddev=2.0, valid_range=(np.zeros(50), np.float64(1.0))
    )
    assert noisy.dtype == dtype
    assert noisy.min() == 0
    assert noisy.max() == 1


def test_missing_replaces_the_stated_share_and_nothing_else(dtype):
    x = np.random.default_rng(0).uniform(1, 2, size=(50, 20, 20)).astype(dtype)
    fill = np.random.default_rng(1).uniform(-2, -1, size=(20, 20)).astype(dtype)
    previous = np.zeros(x.shape, bool)
    for fraction in corruptions.MISSING_FRACTION:
        y = np.asarray(corruptions.missing(KEY, x, fraction=fraction, fill_value=fill))
        assert y.dtype == dtype
        removed = y < 0
        np.testing.assert_array_equal(y, np.where(removed, fill, x))
        assert abs(removed.mean() - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / x.size)
        assert (removed | ~previous).all()  # a larger share removes a superset
        previous = removed


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_missing_nothing_or_everything(fraction):
    x = np.random.default_rng(0).uniform(1, 2, size=(5, 200))
    expected = x if fraction == 0 else np.full_like(x, -3.0)
    actual = corruptions.missing(KEY, x, fraction=fraction, fill_value=-3.0)
    np.testing.assert_array_equal(actual, expected)


def test_same_key_same_corruption_and_jit_changes_nothing():
    x = np.random.default_rng(0).uniform(size=(5, 20))
    noise = jax.jit(lambda key, s: corruptions.gaussian_noise(key, x, stddev=s))
    np.testing.assert_allclose(
        noise(KEY, 0.3), corruptions.gaussian_noise(KEY, x, stddev=0.3), rtol=1e-14
    )
    assert not np.array_equal(noise(KEY, 0.3), noise(jax.random.key(1), 0.3))
    drop = jax.jit(lambda key, f: corruptions.missing(key, x, fraction=f))
    np.testing.assert_array_equal(drop(KEY, 0.5), corruptions.missing(KEY, x, fraction=0.5))


def test_severities_are_graded():
    for table in (corruptions.GAUSSIAN_NOISE_STDDEV, corruptions.MISSING_FRACTION):
        assert len(table) == 5
        assert list(table) == sorted(set(table))


def test_misuse():
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"stddev must lie in \[0, inf\), got -1"):
        corruptions.gaussian_noise(KEY, x, stddev=-1.0)
    with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\], got 1.5"):
        corruptions.missing(KEY, x, fraction=1.5)
    with pytest.raises(TypeError, match="x must be float32 or float64, got uint8"):
        corruptions.missing(KEY, x.astype(np.uint8), fraction=0.5)
