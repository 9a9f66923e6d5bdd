"""Robust fusion by every solver, with Gram matrices shared or of each sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jacfuse_jax import fusion, jacobians
from jacfuse_jax.linalg import GramSpectrum, gram_spectrum
from tests import reference
from tests.fusion import rules

SOLVERS = ("closed_form", "eigh", "bartels_stewart")
GENERAL = SOLVERS[1:]


class Problem:
    """Random logits of two modalities, and Gram matrices of "image" for every sample."""

    def __init__(self, num_classes=5, batch_size=4, dtype="float64", rank=None):
        rng = np.random.default_rng(num_classes)
        shape = (batch_size, num_classes)
        self.logits = {m: (2 * rng.normal(size=shape)).astype(dtype) for m in ("image", "audio")}
        self.prior = rng.dirichlet(np.full(num_classes, 5.0)).astype(dtype)
        jac = rng.normal(size=(*shape, rank or num_classes + 2)) / num_classes**0.5
        self.grams = np.einsum("bih,bjh->bij", jac, jac).astype(dtype)

    def robust(self, gram, gamma=0.1, **kwargs):
        """As NumPy arrays."""
        out = rules.robust_fusion(
            self.logits, {"image": gram}, self.prior, perturbed="image", gamma=gamma, **kwargs
        )
        return jax.device_get(out)

    def expected(self, grams, gamma, num_iterations=1):
        """Probabilities and norms, each sample by dense solves with its own Gram matrix."""
        samples = [
            reference.robust_fusion(
                {m: z[b : b + 1] for m, z in self.logits.items()},
                {"image": gram},
                self.prior,
                ("image",),
                gamma,
                num_iterations,
            )
            for b, gram in enumerate(grams)
        ]
        return tuple(np.concatenate(parts) for parts in zip(*samples, strict=True))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("form", "num_iterations"), [("matrices", 1), ("spectra", 3)])
def test_matches_dense_solves_with_a_gram_matrix_for_every_sample(solver, form, num_iterations):
    for rank in (2, 7):
        problem = Problem(rank=rank)
        gram = problem.grams if form == "matrices" else jax.jit(gram_spectrum)(problem.grams)
        for gamma in (0.9, 0.1, 1e-3):
            probs, norms = problem.expected(problem.grams, gamma, num_iterations)
            out = problem.robust(gram, gamma, num_iterations=num_iterations, solver=solver)
            np.testing.assert_allclose(np.exp(out.log_probs), probs, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(out.jacobian_norm, norms, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("solver", "num_classes", "batch_size"),
    [
        *((solver, 2, 3) for solver in SOLVERS),
        ("closed_form", 10, 2),
        ("eigh", 309, 1),
        ("bartels_stewart", 20, 2),
        pytest.param("closed_form", 309, 1, marks=pytest.mark.extended),
        pytest.param("bartels_stewart", 309, 1, marks=pytest.mark.extended),
    ],
)
def test_one_gram_matrix_may_serve_all_samples(solver, num_classes, batch_size):
    problem = Problem(num_classes, batch_size)
    gram = problem.grams[0]
    repeated = np.stack([gram] * batch_size)
    shared = problem.robust(gram, 0.1, solver=solver)
    own = problem.robust(repeated, 0.1, solver=solver)
    closed = problem.robust(jax.jit(gram_spectrum)(gram), 0.1)
    for out in (shared, own):
        np.testing.assert_allclose(out.log_probs, closed.log_probs, atol=1e-11)
        np.testing.assert_allclose(out.jacobian_norm, closed.jacobian_norm, rtol=1e-9)


@pytest.mark.parametrize("solver", GENERAL)
def test_float32_differs_by_the_documented_error(solver):
    high, low = Problem(10, 50), Problem(10, 50, dtype="float32")
    size = np.linalg.norm(high.grams, axis=(1, 2)).max()
    for gamma in (0.5, 0.1, 1e-2):
        expected = high.robust(high.grams, gamma)
        out = low.robust(low.grams, gamma, solver=solver)
        assert out.log_probs.dtype == np.float32
        # ||J||^2 <= 1/2; the logits, about 2 in size, are sums of K entries.
        bound = np.finfo(np.float32).eps * ((1 - gamma) / gamma * size / 2 + 10) * 10
        assert np.abs(out.log_probs - expected.log_probs).max() <= bound


@pytest.mark.parametrize("solver", GENERAL)
def test_differentiable_in_logits_and_gram_matrices(solver):
    problem = Problem(4, 2)

    @jax.jit
    def fn(image, root):
        logits = {**problem.logits, "image": image}
        # Symmetric, as finite differences of a Gram matrix must stay.
        symmetric = (root + jnp.swapaxes(root, -1, -2)) / 2
        return fusion.robust_fusion(
            logits,
            {"image": symmetric},
            problem.prior,
            perturbed="image",
            gamma=0.1,
            solver=solver,
        )[:2]

    repeated = np.stack([np.eye(4), np.diag([2.0, 2, 0, 0])])  # eigenvalues
    for grams in (problem.grams, repeated):
        args = (problem.logits["image"], grams)
        check_grads(fn, args, order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)


def test_derivatives_agree_between_solvers():
    problem = Problem(4, 2)

    def nll(image, solver):
        logits = {**problem.logits, "image": image}
        out = fusion.robust_fusion(
            logits,
            {"image": problem.grams},
            problem.prior,
            perturbed="image",
            gamma=0.05,
            solver=solver,
        )
        return -out.log_probs[:, 0].sum()

    grad_fn = jax.jit(jax.grad(nll), static_argnums=1)
    expected = grad_fn(problem.logits["image"], "closed_form")
    for solver in GENERAL:
        np.testing.assert_allclose(grad_fn(problem.logits["image"], solver), expected, rtol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_nan_stays_in_its_sample(solver):
    problem = Problem()
    clean = problem.robust(problem.grams, num_iterations=1, solver=solver)
    problem.logits["image"][1, 2] = np.nan
    problem.grams[2, 0, 0] = np.inf
    broken = problem.robust(problem.grams, num_iterations=1, solver=solver)
    assert np.isnan(broken.log_probs[1:3]).all()
    # Rounding may differ: a chunk with a broken element takes other steps.
    np.testing.assert_allclose(broken.log_probs[::3], clean.log_probs[::3], atol=1e-13)


@pytest.mark.parametrize("solver", SOLVERS)
def test_vmap_and_chunks_change_nothing(solver):
    problem = Problem()
    gammas = np.array([0.9, 0.1, 0.01])

    def fuse(gamma, **kwargs):
        return problem.robust(
            problem.grams, float(gamma), num_iterations=1, solver=solver, **kwargs
        ).log_probs

    expected = np.stack([fuse(gamma) for gamma in gammas])
    mapped = jax.jit(
        jax.vmap(
            lambda gamma: (
                fusion.robust_fusion(
                    problem.logits,
                    {"image": problem.grams},
                    problem.prior,
                    perturbed="image",
                    gamma=gamma,
                    solver=solver,
                ).log_probs
            )
        )
    )(gammas)
    np.testing.assert_allclose(mapped, expected, atol=1e-12)
    for batch_size in (1, 3) if solver == "closed_form" else (3,):
        np.testing.assert_allclose(fuse(0.1, batch_size=batch_size), expected[1], atol=1e-12)


def test_regularises_the_jacobian_of_a_nonlinear_head():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(6, 8)), rng.normal(size=(8, 4))
    features, audio = rng.normal(size=(3, 6)), rng.normal(size=(3, 4))
    prior = np.full(4, 0.25)

    def head(h):
        return jnp.tanh(h @ first) @ second

    jac, grams = jax.device_get(
        jax.jit(
            lambda h: (
                jac := jacobians.per_sample_jacobian(head, h),
                jacobians.gram_from_jacobian(jac),
            )
        )(features)
    )
    logits = {"image": np.tanh(features @ first) @ second, "audio": audio}
    p = reference.statistical_fusion(logits, prior)
    R = np.stack(
        [reference.recalibration_matrix(p[b], jac[b] @ jac[b].T, 0.95 / 0.05) for b in range(3)]
    )

    def predict(h, R, audio):
        fused = {"image": (R @ head(h))[None], "audio": audio[None]}
        return jnp.exp(fusion.statistical_fusion(fused, prior))[0]

    probs = jax.jit(jax.vmap(predict))(features, R, audio)
    norms = np.linalg.norm(jax.jit(jax.vmap(jax.jacfwd(predict)))(features, R, audio), axis=(1, 2))
    for solver in GENERAL:
        out = rules.robust_fusion(
            logits, {"image": grams}, prior, perturbed="image", gamma=0.05, solver=solver
        )
        np.testing.assert_allclose(probs, np.exp(out.log_probs), rtol=1e-9)
        np.testing.assert_allclose(out.jacobian_norm, norms, rtol=1e-9)


class TestMisuse:
    @staticmethod
    def robust(problem, gram, solver):
        return fusion.robust_fusion(
            problem.logits,
            {"image": gram},
            problem.prior,
            perturbed="image",
            gamma=0.1,
            solver=solver,
        )

    def test_solver(self):
        problem = Problem()
        message = "solver must be one of closed_form, eigh, bartels_stewart, got 'lu'"
        with pytest.raises(ValueError, match=message):
            self.robust(problem, problem.grams, solver="lu")

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_gram_matrices(self, solver):
        problem = Problem()
        message = r"grams\['image'\] must have shape \(5, 5\), or \(4, 5, 5\) per sample, got"
        with pytest.raises(ValueError, match=message):
            self.robust(problem, problem.grams[:3], solver=solver)
        with pytest.raises(TypeError, match=r"grams\['image'\] must be float32 or float64"):
            self.robust(problem, np.eye(5, dtype=int), solver=solver)
        with pytest.raises(ValueError, match=r"grams\['image'\] must have shapes \(5,\)"):
            self.robust(problem, GramSpectrum(jnp.ones(4), jnp.eye(5)), solver=solver)
