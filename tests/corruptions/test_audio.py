import numpy as np
import pytest

from jacfuse_jax import corruptions
from jacfuse_jax.corruptions import SEVERITIES
from tests.corruptions.inputs import KEY, SHAPE, SMALL, corrupt

NOISES = ("white_noise", "pink_noise")


def recordings(*shape, dtype="float64"):
    """Samples of very different power, the mean not zero."""
    x = np.random.default_rng(0).normal(0.3, 1, size=shape)
    loudness = np.logspace(-3, 3, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    return (loudness * x).astype(dtype)


def power(x):
    return (np.asarray(x, np.float64) ** 2).mean(axis=tuple(range(1, x.ndim)))


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("shape", [(40, 255), SMALL])
def test_every_sample_has_the_stated_signal_to_noise_ratio(name, shape, dtype):
    x = recordings(*shape, dtype=dtype)
    for snr_db in SEVERITIES[name].values:
        y = corrupt(name, KEY, x, snr_db=snr_db)
        noise = np.asarray(y, np.float64) - x
        measured = 10 * np.log10(power(x) / power(noise))
        # The difference has lost what was rounded away beside the signal, 10^(snr_db / 20) larger.
        atol = 100 * np.finfo(dtype).eps * 10 ** (max(snr_db, 0) / 20)
        np.testing.assert_allclose(measured, snr_db, rtol=0, atol=atol)


@pytest.mark.parametrize("name", NOISES)
def test_silence_stays_silent(name):
    x = np.zeros((40, 255))
    np.testing.assert_array_equal(corrupt(name, KEY, x, snr_db=0.0), x)


def test_white_noise_is_gaussian_and_independent():
    num_entries = 40_000
    noise = corrupt("white_noise", KEY, np.ones((2, num_entries)), snr_db=0.0) - 1
    assert (abs(noise.mean(axis=1)) < 5 / np.sqrt(num_entries)).all()
    assert (abs((noise**4).mean(axis=1) - 3) < 5 * np.sqrt(96 / num_entries)).all()
    for first, second in ((noise[0, 1:], noise[0, :-1]), (noise[0], noise[1])):
        assert abs((first * second).mean()) < 5 / np.sqrt(num_entries)


@pytest.mark.parametrize(("name", "slope"), [("white_noise", 0), ("pink_noise", -1)])
@pytest.mark.parametrize("num_steps", [1024, 1023])
def test_spectral_slopes(name, slope, num_steps):
    x = np.ones((200, num_steps))
    noise = corrupt(name, KEY, x, snr_db=0.0) - 1
    periodogram = (abs(np.fft.rfft(noise)) ** 2).mean(axis=0)[1:-1]
    f = np.log(np.arange(1, len(periodogram) + 1))
    f -= f.mean()
    # The logarithm of a mean of 200 exponential variables has a variance of about 1 / 200.
    standard_error = np.sqrt(1 / 200 / (f**2).sum())
    assert abs(f @ np.log(periodogram) / (f @ f) - slope) < 5 * standard_error


def test_pink_noise_runs_along_its_axis_and_has_no_mean(dtype):
    x = np.ones(SHAPE, dtype)
    noise = corrupt("pink_noise", KEY, x, snr_db=0.0, axis=2).astype(np.float64) - 1
    assert abs(noise.mean(axis=2)).max() < 20 * np.finfo(dtype).eps
    along_time, along_frequency = noise[:, :, 1:] * noise[:, :, :-1], noise[:, 1:] * noise[:, :-1]
    k = np.arange(1, 13)  # the frequencies of 25 time steps
    correlation = (np.cos(2 * np.pi * k / 25) / k).sum() / (1 / k).sum()
    assert abs(along_time.mean() - correlation) < 0.03
    assert abs(along_frequency.mean()) < 0.03


def test_pink_noise_needs_two_time_steps():
    with pytest.raises(ValueError, match="pink noise needs at least 2 time steps, got 1"):
        corruptions.pink_noise(KEY, np.ones((3, 1)), snr_db=0.0)


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("time_mask", (40, 33), None),
        ("time_mask", (40, 33, 5, 1), None),
        ("frequency_mask", (40, 5, 33, 1), None),
        ("time_mask", (40, 5, 33, 1), 2),  # AV-MNIST
        ("frequency_mask", (40, 33, 5, 1), 1),
    ],
)
def test_masks_are_bands_of_the_stated_share(name, shape, axis):
    x = np.random.default_rng(0).uniform(1, 2, size=shape)
    fill = np.random.default_rng(1).uniform(-2, -1, size=shape[1:])
    kwargs = {} if axis is None else {"axis": axis}
    previous = np.zeros((40, 33), bool)
    for fraction in (0.0, *SEVERITIES[name].values, 1.0):
        y = corrupt(name, KEY, x, fraction=fraction, fill_value=fill, **kwargs)
        masked = y < 0
        np.testing.assert_array_equal(y, np.where(masked, fill, x))
        lines = np.moveaxis(masked, shape.index(33), 1).reshape(40, 33, -1)
        np.testing.assert_array_equal(lines, np.broadcast_to(lines[..., :1], lines.shape))
        band = lines[..., 0]
        assert (band.sum(axis=1) == round(fraction * 33)).all()
        assert (np.diff(np.pad(band, ((0, 0), (1, 1))).astype(int)) == 1).sum() == 40 * (
            fraction > 0
        )
        assert (band | ~previous).all()
        previous = band


def test_every_place_of_a_mask_is_equally_likely():
    num_samples = 6000
    y = corrupt("time_mask", KEY, np.ones((num_samples, 10)), fraction=0.3)
    shares = np.bincount(y.argmin(axis=1), minlength=8) / num_samples
    assert len(shares) == 8
    assert (abs(shares - 1 / 8) < 5 * np.sqrt(1 / 8 * 7 / 8 / num_samples)).all()


def test_gain_is_a_factor(dtype):
    x = recordings(3, 50, dtype=dtype)
    for gain_db in (*SEVERITIES["gain"].values, 0.0, 20.0):
        y = corrupt("gain", x, gain_db=gain_db)
        expected = 10 ** (gain_db / 20) * x.astype(np.float64)
        np.testing.assert_allclose(y, expected, rtol=16 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(
        corruptions.gain(np.full((1, 2), 0.3), gain_db=20.0, valid_range=(-1, 1)), np.ones((1, 2))
    )


def test_clipping_cuts_at_a_share_of_the_peak_of_each_sample(dtype):
    x = recordings(4, 50, 2, dtype=dtype)
    peak = abs(x).max(axis=(1, 2), keepdims=True)
    for fraction in (0.0, *SEVERITIES["clipping"].values, 1.0):
        y = corrupt("clipping", x, fraction=fraction)
        bound = np.asarray(fraction, dtype) * peak
        np.testing.assert_array_equal(y, np.clip(x, -bound, bound))
        np.testing.assert_array_equal(abs(y).max(axis=(1, 2), keepdims=True), bound)
