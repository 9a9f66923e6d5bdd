import numpy as np
import pytest
from scipy import ndimage, stats

from jacfuse_jax import corruptions
from jacfuse_jax.corruptions import SEVERITIES
from tests.corruptions.inputs import KEY, SHAPE, corrupt

UNIT = (0.0, 1.0)


def random_images(*shape, dtype="float64", low=0.0, high=1.0):
    return np.random.default_rng(0).uniform(low, high, size=shape).astype(dtype)


@pytest.mark.parametrize("photons", [4.0, 60.0])  # JAX samples small and large means differently
def test_shot_noise_counts_photons(photons, dtype):
    x = np.full(SHAPE, -0.5, dtype)  # a quarter of the way from -1 to 1
    y = corrupt("shot_noise", KEY, x, photons=photons, valid_range=(-1, 1)).astype(np.float64)
    counts = photons * (y + 1) / 2
    np.testing.assert_allclose(counts, np.rint(counts), atol=8 * photons * np.finfo(dtype).eps)
    counts, mean, n = np.rint(counts), photons / 4, x.size
    assert abs(counts.mean() - mean) < 5 * np.sqrt(mean / n)
    variance_of_square = mean + 2 * mean**2
    assert abs(((counts - mean) ** 2).mean() - mean) < 5 * np.sqrt(variance_of_square / n)
    share = stats.poisson.pmf(np.arange(photons), mean)
    measured = np.array([(counts == k).mean() for k in np.arange(photons)])
    assert (abs(measured - share) <= 5 * np.sqrt(share * (1 - share) / n) + 1 / n).all()


def test_shot_noise_of_many_photons_is_hardly_any():
    x = random_images(*SHAPE)
    y = corrupt("shot_noise", KEY, x, photons=1e6, valid_range=UNIT)
    np.testing.assert_allclose(y, x, atol=6e-3)


def test_shot_noise_cuts_at_the_ends_of_the_range():
    x = np.resize([-np.inf, -3.0, 0.0, 1.0, 7.0, np.inf], SHAPE)
    y = corrupt("shot_noise", KEY, x, photons=20.0, valid_range=UNIT)
    assert (y[x <= 0] == 0).all()
    bright = y[x >= 1]
    assert bright.max() == 1
    assert bright.min() < 1


def test_shot_noise_keeps_entries_without_a_range():
    low, high = np.zeros(SHAPE[1:]), np.ones(SHAPE[1:])
    low[:, 0] = high[:, 0] = 0.3
    x = np.full(SHAPE, 0.3)
    y = corrupt("shot_noise", KEY, x, photons=5.0, valid_range=(low, high))
    assert (y[:, :, 0] == 0.3).all()
    assert (y[:, :, 1:] != 0.3).any()


def test_impulse_noise_is_half_salt_half_pepper(dtype):
    x = random_images(*SHAPE, dtype=dtype, low=-0.5, high=1.5)
    previous = np.zeros(x.shape, bool)
    for fraction in (*SEVERITIES["impulse_noise"].values, 1.0):
        y = corrupt("impulse_noise", KEY, x, fraction=fraction, valid_range=(-1.0, 2.0))
        standard_error = np.sqrt(fraction / 2 * (1 - fraction / 2) / x.size)
        for end in (-1, 2):
            assert abs((y == end).mean() - fraction / 2) < 5 * standard_error
        hit = (y == -1) | (y == 2)
        np.testing.assert_array_equal(y[~hit], x[~hit])
        assert (hit | ~previous).all()
        previous = hit
    assert previous.all()


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (2, 9, 31, 3)])  # one lower than the radius
def test_blur_is_that_of_scipy(shape, dtype):
    x = random_images(*shape, dtype=dtype, low=-1, high=2)
    for stddev in (0.0, *SEVERITIES["gaussian_blur"].values):
        expected = ndimage.gaussian_filter(
            x.astype(np.float64), (0, stddev, stddev, 0), mode="reflect", radius=(0, 12, 12, 0)
        )
        # Two sums of 25 products of entries of at most 2.
        actual = corrupt("gaussian_blur", x, stddev=stddev)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=8 * np.finfo(dtype).eps)


def test_the_default_radius_is_four_standard_deviations_at_the_highest_severity():
    x = random_images(1, 20, 20, 1)
    expected = ndimage.gaussian_filter(x, (0, 3, 3, 0), mode="reflect", truncate=4.0)
    np.testing.assert_allclose(corrupt("gaussian_blur", x, stddev=3.0), expected, atol=1e-14)


def test_blur_of_a_wider_kernel():
    x = random_images(1, 40, 30, 1)
    expected = ndimage.gaussian_filter(x, (0, 5, 5, 0), mode="reflect", truncate=4.0)
    actual = corrupt("gaussian_blur", x, stddev=5.0, radius=20)
    np.testing.assert_allclose(actual, expected, atol=1e-14)
    with pytest.raises(ValueError, match="radius must be at least 1, got 0"):
        corruptions.gaussian_blur(x, stddev=1.0, radius=0)


def test_blur_and_contrast_stay_within_the_range_of_the_image(dtype):
    x = (random_images(*SHAPE) > 0.5).astype(dtype)
    x[0] = 1
    for y in (corrupt("gaussian_blur", x, stddev=2.0), corrupt("contrast", x, factor=0.9)):
        slack = 8 * np.finfo(dtype).eps
        assert y.min() >= -slack
        assert y.max() <= 1 + slack


@pytest.mark.parametrize(
    ("fraction", "side"), [(0.0, 0), (0.05, 6), (0.1, 9), (0.35, 17), (0.5, 20), (1.0, 28)]
)
def test_occlusion_covers_a_square_of_the_stated_area(fraction, side):
    x = random_images(20, 28, 28, 2, low=1, high=2)
    y = corrupt("occlusion", KEY, x, fraction=fraction, fill_value=-1.0)
    covered = y == -1
    np.testing.assert_array_equal(y[~covered], x[~covered])
    np.testing.assert_array_equal(covered[..., 0], covered[..., 1])
    np.testing.assert_array_equal(covered.sum(axis=(1, 2, 3)), 2 * side**2)
    for square in covered[..., 0] if side else []:
        rows, columns = (np.flatnonzero(square.any(axis=axis)) for axis in (1, 0))
        assert np.ptp(rows) == np.ptp(columns) == side - 1


def test_occlusions_are_nested_and_at_most_the_shorter_side():
    x = np.ones((20, 8, 30, 1))
    previous = np.zeros(x.shape, bool)
    for fraction in (*SEVERITIES["occlusion"].values, 1.0):
        covered = corrupt("occlusion", KEY, x, fraction=fraction) == 0
        assert (covered | ~previous).all()
        previous = covered
    assert (previous.sum(axis=(1, 2, 3)) == 64).all()


def test_every_place_of_an_occlusion_is_equally_likely():
    num_samples = 6000
    y = corrupt("occlusion", KEY, np.ones((num_samples, 4, 6, 1)), fraction=4 / 24)
    first = y.reshape(num_samples, 24).argmin(axis=1)  # upper left corner
    corners = [6 * row + column for row in range(3) for column in range(5)]
    shares = np.array([(first == corner).mean() for corner in corners])
    assert shares.sum() == pytest.approx(1)
    assert (abs(shares - 1 / 15) < 5 * np.sqrt(1 / 15 * 14 / 15 / num_samples)).all()


def test_contrast_shrinks_the_deviation_from_the_mean_of_each_sample(dtype):
    x = random_images(3, 10, 9, 3, dtype=dtype)
    x[1] += 4
    for factor in (0.0, *SEVERITIES["contrast"].values, 1.0):
        mean = x.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64)
        np.testing.assert_allclose(
            corrupt("contrast", x, factor=factor),
            mean + factor * (x - mean),
            rtol=0,
            atol=16 * np.finfo(dtype).eps,  # entries up to 5
        )


def test_brightness_is_an_offset_with_a_ceiling(dtype):
    x = random_images(3, 10, 9, 3, dtype=dtype)
    y = corrupt("brightness", x, offset=0.4, valid_range=UNIT)
    expected = np.minimum(x.astype(np.float64) + 0.4, 1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=np.finfo(dtype).eps)


# As an image, a video is a row of frames, or its frames are channels.
def test_frames_of_a_video_are_corrupted_alike(dtype):
    video = random_images(8, 3 * 4, 6, 2, dtype=dtype).reshape(8, 3, 4, 6, 2)
    frames = video.reshape(24, 4, 6, 2)
    blurred = corrupt("gaussian_blur", video, stddev=1.5)
    expected = corrupt("gaussian_blur", frames, stddev=1.5)
    np.testing.assert_array_equal(blurred, np.reshape(expected, video.shape))
    as_channels = np.moveaxis(video, 1, 3).reshape(8, 4, 6, 6)

    def of_channels(y):
        return np.moveaxis(np.reshape(y, (8, 4, 6, 3, 2)), 3, 1)

    covered = corrupt("occlusion", KEY, video, fraction=0.3, fill_value=-1.0)
    expected = corrupt("occlusion", KEY, as_channels, fraction=0.3, fill_value=-1.0)
    np.testing.assert_array_equal(covered, of_channels(expected))
    flat = corrupt("contrast", video, factor=0.3)
    expected = corrupt("contrast", as_channels, factor=0.3)
    np.testing.assert_allclose(flat, of_channels(expected), atol=4 * np.finfo(dtype).eps)


def test_noise_differs_between_the_frames_of_a_video():
    still = np.full((4, 3, 20, 24, 1), 0.5)
    for noisy in (
        corrupt("shot_noise", KEY, still, photons=10.0, valid_range=UNIT),
        corrupt("impulse_noise", KEY, still, fraction=0.4, valid_range=UNIT),
    ):
        first, second, third = np.moveaxis(noisy, 1, 0)
        assert min((first != second).mean(), (second != third).mean()) > 0.3
