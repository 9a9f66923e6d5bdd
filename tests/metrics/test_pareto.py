import numpy as np
import pytest

from jacfuse_jax import metrics


def random_points(count, seed):
    """Multiples of 1/20, so that ties occur and areas are counted exactly."""
    return np.random.default_rng(seed).integers(21, size=(2, count)) / 20


@pytest.mark.parametrize("count", [1, 2, 7, 60])
@pytest.mark.parametrize("seed", range(5))
def test_front_holds_the_points_that_none_dominates(count, seed):
    clean, robust = random_points(count, seed)
    points = list(zip(clean, robust, strict=True))
    expected = {
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    }
    front = metrics.pareto_front(clean, robust)
    assert set(front.tolist()) == expected
    assert len(front) == len(expected)
    assert (np.diff(clean[front]) >= 0).all()
    assert (np.diff(robust[front]) <= 0).all()


@pytest.mark.parametrize("reference", [(0.0, 0.0), (0.25, 0.1), (1.0, 1.0)])
@pytest.mark.parametrize("count", [1, 2, 7, 60])
@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_counts_the_dominated_cells(count, seed, reference):
    clean, robust = random_points(count, seed)
    centres = (np.arange(20) + 0.5) / 20
    x, y = (axis[..., None] for axis in np.meshgrid(centres, centres))
    dominated = ((x < clean) & (y < robust)).any(axis=-1)
    inside = dominated & (x[..., 0] > reference[0]) & (y[..., 0] > reference[1])
    area = metrics.hypervolume(clean, robust, reference)
    assert area == pytest.approx(inside.sum() / 400, abs=1e-12)


def test_hypervolume_is_that_of_the_front():
    clean, robust = random_points(60, 0)
    front = metrics.pareto_front(clean, robust)
    whole = metrics.hypervolume(clean, robust)
    assert metrics.hypervolume(clean[front], robust[front]) == pytest.approx(whole)
    assert metrics.hypervolume([1.0], [1.0]) == 1


def test_misuse():
    for fn in (metrics.pareto_front, metrics.hypervolume):
        with pytest.raises(ValueError, match=r"'clean': \(1,\), 'robust': \(2,\)"):
            fn([0.5], [0.5, 0.6])
        with pytest.raises(ValueError, match=r"robust must be shares in \[0, 1\], not percent"):
            fn([0.5], [50])
        with pytest.raises(ValueError, match=r"must have shape \(N,\), got \(1, 1\)"):
            fn([[0.5]], [[0.5]])
        with pytest.raises(ValueError, match="not empty"):
            fn([], [])
    with pytest.raises(ValueError, match="clean_reference must be shares"):
        metrics.hypervolume([0.5], [0.5], (-0.1, 0.0))
