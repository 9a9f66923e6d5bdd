import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax.evaluation.subspaces import Subspace, project, residual, stay_inside

D, RANK = 12, 4
rng = np.random.default_rng(0)
BASIS = np.linalg.qr(rng.normal(size=(D, RANK)))[0]
POINT = rng.normal(size=D)
SUBSPACE = Subspace(jnp.asarray(POINT), jnp.asarray(BASIS), jnp.asarray(0.7))
INPUTS = jnp.asarray(rng.normal(size=(6, 3, 4, 1)))


def nearest(x):
    """By least squares."""
    coefficients = np.linalg.lstsq(BASIS, (x - POINT).T)[0]
    return POINT + (BASIS @ coefficients).T


def test_projections_are_the_closest_points_and_residuals_their_distances() -> None:
    rows = np.asarray(INPUTS).reshape(6, D)
    expected = nearest(rows)
    np.testing.assert_allclose(project(SUBSPACE, INPUTS).reshape(6, D), expected, rtol=1e-10)
    distances = np.linalg.norm(rows - expected, axis=1)
    np.testing.assert_allclose(residual(SUBSPACE, INPUTS), distances / 0.7, rtol=1e-10)


def test_residuals_have_a_derivative_on_the_subspace() -> None:
    on_it = Subspace(jnp.zeros(D), jnp.eye(D)[:, :RANK], jnp.asarray(1.0))
    x = jnp.zeros((1, D)).at[0, 0].set(2.0)
    assert residual(on_it, x) == 0
    np.testing.assert_array_equal(jax.grad(lambda x: residual(on_it, x).sum())(x), np.zeros((1, D)))


class TestStayInside:
    def test_brings_inputs_inside_of_the_threshold_and_the_bounds(self) -> None:
        clean = project(SUBSPACE, INPUTS)
        low, high = clean - 0.3, clean + 0.3
        x = jnp.where(jnp.asarray(rng.random(INPUTS.shape)) < 0.5, low, high)
        assert residual(SUBSPACE, x).max() > 1.2
        found = stay_inside(SUBSPACE, x, low, high)
        assert (found >= low).all()
        assert (found <= high).all()
        assert residual(SUBSPACE, found).max() < 1 + 1e-6
        assert jnp.abs(found - clean).max() > 0.1  # further in than need be

    def test_what_is_inside_stays_as_it_is(self) -> None:
        clean = project(SUBSPACE, INPUTS)
        x = clean + 0.05
        np.testing.assert_allclose(
            stay_inside(SUBSPACE, x, clean - 0.1, clean + 0.1), x, rtol=1e-10, atol=1e-12
        )

    def test_bounds_come_first(self) -> None:
        low = project(SUBSPACE, INPUTS) + 3.0
        found = stay_inside(SUBSPACE, INPUTS, low, low + 0.1)
        assert ((found >= low) & (found <= low + 0.1)).all()

    def test_at_a_bound_there_is_a_gradient_along_the_subspace(self) -> None:
        clean = project(SUBSPACE, INPUTS)
        towards = jnp.asarray(rng.normal(size=INPUTS.shape))
        gradient = jax.grad(
            lambda x: (stay_inside(SUBSPACE, x, clean - 0.1, clean + 0.1) * towards).sum()
        )(clean + 5.0)
        assert np.isfinite(gradient).all()
        along = np.asarray(gradient).reshape(6, D) @ BASIS
        np.testing.assert_allclose(along, np.asarray(towards).reshape(6, D) @ BASIS, rtol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_all_keep_the_dtype_and_shape(dtype) -> None:
    x = INPUTS.astype(dtype)
    assert project(SUBSPACE, x).dtype == residual(SUBSPACE, x).dtype == dtype
    found = stay_inside(SUBSPACE, x, x - 1, x + 1)
    assert (found.dtype, found.shape) == (dtype, x.shape)
