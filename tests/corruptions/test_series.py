import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jacfuse_jax import corruptions
from jacfuse_jax.corruptions import SEVERITIES
from tests.corruptions.inputs import KEY, SERIES, corrupt

MANY = (6000, 8, 3)
MEAN = np.array([-1.0, 0.0, 9.81])
STDDEV = np.array([0.5, 2.0, 4.0])


def random_series(*shape, dtype="float64"):
    """Sensors with units of their own: mean and standard deviation of every channel."""
    x = np.random.default_rng(0).normal(size=shape)
    return (x * np.resize(STDDEV, shape[-1]) + np.resize(MEAN, shape[-1])).astype(dtype)


def turned_by(x, y):
    """SciPy's rotation of each sample that maps its vectors x, (T, 3), best to y."""
    return [Rotation.align_vectors(b, a)[0] for a, b in zip(x, y, strict=True)]


def test_rotation_turns_every_sample_by_the_angle(dtype):
    x = random_series(20, 8, 3, dtype=dtype)
    tolerance = float(32 * np.finfo(dtype).eps)
    for angle in (0.0, *SEVERITIES["rotation"].values):
        y = corrupt("rotation", KEY, x, angle_degrees=angle)
        lengths = np.linalg.norm(x, axis=-1)
        np.testing.assert_allclose(np.linalg.norm(y, axis=-1), lengths, rtol=tolerance)
        for before, after, found in zip(x, y, turned_by(x, y), strict=True):
            atol = tolerance * lengths.max()
            np.testing.assert_allclose(found.apply(before), after, rtol=0, atol=atol)
            # Near 0 and 180 degrees the cosine is flat: an error eps is an angle of sqrt(eps).
            cosine = np.cos(found.magnitude())
            assert cosine == pytest.approx(np.cos(np.deg2rad(angle)), abs=4 * tolerance)


def test_directions_of_rotations_are_uniform_and_of_samples_alone():
    x = random_series(600, 4, 3)
    y = corrupt("rotation", KEY, x, angle_degrees=60.0)
    vectors = np.array([found.as_rotvec() for found in turned_by(x, y)]) / (np.pi / 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-9)
    covariance = vectors.T @ vectors / len(vectors)  # of a uniform direction a third, 4/45 a square
    assert (abs(vectors.mean(axis=0)) < 5 * np.sqrt(1 / 3 / 600)).all()
    assert (abs(covariance - np.eye(3) / 3) < 5 * np.sqrt(4 / 45 / 600)).all()
    # With the same key a smaller angle is about the same axis.
    smaller = turned_by(x, corrupt("rotation", KEY, x, angle_degrees=30.0))
    actual = [found.as_rotvec() / (np.pi / 6) for found in smaller]
    np.testing.assert_allclose(actual, vectors, atol=1e-9)


def test_all_triples_of_channels_turn_alike(dtype):
    x = random_series(5, 6, 3, dtype=dtype)
    both = corrupt("rotation", KEY, np.concatenate([x, 2 * x], axis=-1), angle_degrees=70.0)
    np.testing.assert_array_equal(both[..., 3:], 2 * both[..., :3])
    expected = corrupt("rotation", KEY, x, angle_degrees=70.0)
    np.testing.assert_allclose(both[..., :3], expected, rtol=0, atol=200 * np.finfo(dtype).eps)


@pytest.mark.parametrize("num_channels", [1, 2, 4])
def test_channels_that_are_no_triples_do_not_turn(num_channels):
    x = random_series(2, 4, num_channels)
    with pytest.raises(ValueError, match=f"needs channels in triples, got {num_channels} of them"):
        corruptions.rotation(KEY, x, angle_degrees=10.0)
    with pytest.raises(ValueError, match=r"angle_degrees must lie in \[0, 180\], got 181"):
        corruptions.rotation(KEY, random_series(2, 4, 3), angle_degrees=181.0)


def test_dead_axes_are_dead_and_others_untouched(dtype):
    x, fill = random_series(*MANY, dtype=dtype), np.array([100.0, 200.0, 300.0], dtype)
    previous = np.zeros((MANY[0], 3), bool)
    for fraction in (0.0, 1 / 3, *SEVERITIES["dead_axis"].values[1:], 1.0):
        y = corrupt("dead_axis", KEY, x, fraction=fraction, fill_value=fill)
        assert y.dtype == dtype
        dead = (y == fill).all(axis=1)
        np.testing.assert_array_equal(y, np.where(dead[:, None], fill, x))
        number = dead.sum(axis=1)
        assert set(number) <= {np.floor(3 * fraction), np.ceil(3 * fraction)}
        assert abs(number.mean() - 3 * fraction) <= 5 * 0.5 / np.sqrt(len(x))
        standard_error = np.sqrt(fraction * (1 - fraction) / len(x))
        assert (abs(dead.mean(axis=0) - fraction) <= 5 * standard_error).all()
        if fraction != 1 / 3:
            assert (dead | ~previous).all()
            previous = dead


def test_one_channel_is_stuck_to_the_end(dtype):
    x = random_series(*MANY, dtype=dtype)
    num_samples, num_steps, num_channels = MANY
    for fraction in SEVERITIES["stuck_value"].values:
        y = corrupt("stuck_value", KEY, x, fraction=fraction)
        assert y.dtype == dtype
        changed = y != x
        assert (changed.any(axis=1).sum(axis=1) <= 1).all()
        channel = changed.any(axis=1).argmax(axis=1)
        line, original = y[np.arange(len(x)), :, channel], x[np.arange(len(x)), :, channel]
        length = changed.sum(axis=(1, 2))  # steps after the last value that is true
        step = np.arange(num_steps)
        start = num_steps - 1 - length[:, None]
        np.testing.assert_array_equal(
            line, np.take_along_axis(original, np.minimum(step, start), axis=1)
        )
        share = length / (num_steps - 1)
        # At the ends, where steps are coarse, rounding costs some of the tail of u^a.
        assert abs(share.mean() - fraction) < 5 * 0.5 / np.sqrt(num_samples) + 0.02
        assert share.std() > 0.1  # at random
        stuck = channel[length > 0]
        shares = np.bincount(stuck, minlength=num_channels) / len(stuck)
        assert (abs(shares - 1 / 3) < 5 * np.sqrt(2 / 9 / len(stuck))).all()


def test_nothing_or_all_of_the_time_stuck():
    x = random_series(7, 8, 3)
    np.testing.assert_array_equal(corrupt("stuck_value", KEY, x, fraction=0.0), x)
    y = corrupt("stuck_value", KEY, x, fraction=1.0)
    constant = (y == x[:, :1]).all(axis=1)
    assert (constant.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(np.where(constant[:, None], x, y), x)


def test_saturation_clips_at_the_stated_deviations(dtype):
    x = random_series(*MANY, dtype=dtype)
    for limit in (0.0, *SEVERITIES["saturation"].values):
        y = corrupt("saturation", x, limit=limit, mean=MEAN, stddev=STDDEV)
        assert y.dtype == dtype
        expected = np.clip(x.astype(np.float64), MEAN - limit * STDDEV, MEAN + limit * STDDEV)
        # Of the channel around 9.81.
        np.testing.assert_allclose(y, expected, rtol=0, atol=32 * np.finfo(dtype).eps)
        outside = (abs(x - MEAN) > limit * STDDEV).mean(axis=(0, 1))
        np.testing.assert_allclose((y != x).mean(axis=(0, 1)), outside, atol=1e-4)


def test_drift_ends_at_the_stated_deviation(dtype):
    x = random_series(*MANY, dtype=dtype)
    tolerance = 64 * np.finfo(dtype).eps  # of entries up to 30
    for offset in SEVERITIES["drift"].values:
        y = corrupt("drift", KEY, x, offset=offset, stddev=STDDEV)
        assert y.dtype == dtype
        error = (y.astype(np.float64) - x) / STDDEV
        np.testing.assert_allclose(abs(error[:, -1]), offset, rtol=0, atol=tolerance)
        ramp = np.arange(1, 9)[:, None] / 8
        np.testing.assert_allclose(error, ramp * error[:, -1:], rtol=0, atol=2 * tolerance)
        rises = (error[:, -1] > 0).mean(axis=0)
        assert (abs(rises - 0.5) < 5 * 0.5 / np.sqrt(len(x))).all()


@pytest.mark.parametrize("num_steps", [1, 3, 8, 50])
def test_dropouts_take_the_stated_share_in_nested_gaps(num_steps, dtype):
    x = random_series(3000, num_steps, 3, dtype=dtype)
    previous = np.zeros(x.shape[:2], bool)
    for fraction in (0.0, *SEVERITIES["dropouts"].values, 1.0):
        y = corrupt("dropouts", KEY, x, fraction=fraction, fill_value=100.0)
        assert y.dtype == dtype
        lost = (y == 100).all(axis=-1)
        np.testing.assert_array_equal(y, np.where(lost[..., None], 100, x))
        num_gaps = (np.diff(lost.astype(int), axis=1, prepend=0) == 1).sum(axis=1)
        assert num_gaps.max() <= 4
        assert abs(lost.mean() - fraction) <= 5 * 0.5 / np.sqrt(len(x))
        assert (lost | ~previous).all()
        previous = lost
    assert previous.all()


def test_gaps_hold_the_last_value_or_the_first_one(dtype):
    x = random_series(200, 50, 3, dtype=dtype)
    for fraction in (0.0, 0.5, 1.0):
        lost = corrupt("dropouts", KEY, x, fraction=fraction, fill_value=100.0) == 100
        expected = x.copy()
        for step in range(1, 50):
            expected[:, step] = np.where(lost[:, step], expected[:, step - 1], x[:, step])
        actual = corrupt("dropouts", KEY, x, fraction=fraction)
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ["rotation", "dead_axis", "stuck_value", "drift", "dropouts"])
def test_a_batch_of_one_and_of_one_step(name):
    parameter, _, values = SEVERITIES[name]
    options = {"stddev": STDDEV} if name == "drift" else {}
    for num_steps in (1, 8):
        x = random_series(1, num_steps, 3)
        y = corrupt(name, KEY, x, **{parameter: values[-1]}, **options)
        assert y.shape == x.shape
        assert np.isfinite(y).all()


def test_traced_strengths_out_of_range_give_nan():
    x = random_series(*SERIES)
    stddev, mean = np.resize(STDDEV, 6), np.resize(MEAN, 6)

    @jax.jit
    def corrupted(number, stddev):
        return [
            corruptions.rotation(KEY, x, angle_degrees=number),
            corruptions.dead_axis(KEY, x, fraction=number),
            corruptions.stuck_value(KEY, x, fraction=number),
            corruptions.dropouts(KEY, x, fraction=number),
            corruptions.dropouts(KEY, x, fraction=number, fill_value=0.0),
            corruptions.drift(KEY, x, offset=number, stddev=stddev),
            corruptions.saturation(x, limit=number, mean=mean, stddev=stddev),
        ]

    assert all(np.isnan(y).all() for y in corrupted(-0.1, stddev))
    assert not any(np.isnan(y).any() for y in corrupted(0.5, stddev))
    assert all(np.isnan(y).all() for y in corrupted(0.5, -stddev)[-2:])


def test_what_is_known_of_channels_must_be_a_number_each():
    x = random_series(2, 4, 3)
    for stddev in (1.0, np.ones(2), np.ones((1, 3))):
        with pytest.raises(ValueError, match=r"stddev must have shape \(3,\), one number a chan"):
            corruptions.drift(KEY, x, offset=1.0, stddev=stddev)
    with pytest.raises(ValueError, match=r"stddev must lie in \[0, inf\), got \[ 1. -1.  1.\]"):
        corruptions.drift(KEY, x, offset=1.0, stddev=np.array([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match=r"mean must have shape \(3,\), .*, got \(4, 3\)"):
        corruptions.saturation(x, limit=1.0, mean=np.ones((4, 3)), stddev=STDDEV)
