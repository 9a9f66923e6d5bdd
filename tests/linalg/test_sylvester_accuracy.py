import jax
import numpy as np
import pytest
import scipy.special

from tests import reference
from tests.linalg.equations import (
    hermitian,
    kronecker_matrices,
    relative_norm,
    solve_fully,
    well_separated,
)
from tests.linalg.matrices import (
    all_finite,
    equation_errors,
    norms,
    power_of_two_scale,
    random_entries,
    stacked,
)


def kinds_of(size, dtype, rng):
    """The collection, without the one kind whose products with anything overflow."""
    names, matrices = stacked(size, dtype, rng)
    kept = [k for k, name in enumerate(names) if name != "almost_overflow"]
    return [names[k] for k in kept], matrices[kept]


def sylvester_pairs(m, n, dtype, rng):
    """{how A and B relate: (A, B)}, both (number of kinds, ...)."""
    real = np.finfo(dtype).dtype
    names, a = kinds_of(m, dtype, rng)
    _, b = kinds_of(n, dtype, rng)
    scale = power_of_two_scale(a).astype(real)
    random = random_entries(b.shape, dtype, rng)
    # Eigenvalues of A are at most `size`, those of B about three times as large.
    size = norms(a / scale)[:, None, None]
    size = np.where(size > 0, size, 1)
    separated = size * (b / power_of_two_scale(b) / n + 3 * np.eye(n))
    pairs = {"another kind": (a, np.roll(b, 7, axis=0))}
    if m == n:
        pairs["shared, transposed"] = (a, -a.swapaxes(-1, -2))
    if max(m, n) < 64 or m != n:
        pairs["separated"] = (a, scale * separated.astype(dtype))
    if max(m, n) < 64:
        # The other extremes of the ratio of A and B come with kinds that are scaled up or down.
        pairs["random"] = (a, random)
        pairs["A much larger"] = (a, scale * random * real.type(1e-12))
        pairs["B much larger"] = (a, scale * random * real.type(1e12))
    if m == n < 64:
        step = scale * np.eye(n, dtype=dtype)
        pairs["shared"] = (a, -a)
        pairs["equal"] = (a, a)
        pairs |= {
            f"almost shared, {gap:.0e}": (a, -a + real.type(gap) * step)
            for gap in (1e-1, 1e-3, 1e-5, 100 * np.finfo(dtype).eps)
        }
    return names, pairs


def generalized_pairs(m, n, dtype, rng):
    """The same for A X B + X = C, where ||A|| ||B|| stays in the range of the dtype."""
    real = np.finfo(dtype).dtype
    names, a = kinds_of(m, dtype, rng)
    _, b = kinds_of(n, dtype, rng)
    unit_a = a / power_of_two_scale(a).astype(real)
    unit_b = b / power_of_two_scale(b).astype(real)
    bound = real.type(0.5) / np.maximum(norms(unit_a) * norms(unit_b), 1)[:, None, None]
    top = 40 if real == np.float32 else 100
    pairs = {
        "separated": (unit_a, unit_b * bound.astype(real)),
        "another kind": (a, np.roll(unit_b, 7, axis=0)),
    }
    if max(m, n) < 64:
        pairs["another kind, reversed"] = (unit_a, np.roll(b, 7, axis=0))
        pairs["random"] = (a, random_entries(b.shape, dtype, rng))
        pairs |= {
            f"A times 2^{power}": (unit_a * real.type(2.0**power), np.roll(unit_b, power, axis=0))
            for power in (-top, -20, 3, 20, top)
        }
    if m == n < 64:
        pairs["opposite"] = (unit_a, -unit_a)
        pairs["equal"] = (unit_a, unit_a)
    return names, pairs


def check_backward_errors(form, m, n, dtype):
    rng = np.random.default_rng([m, n])
    make_pairs = sylvester_pairs if form == "sylvester" else generalized_pairs
    names, pairs = make_pairs(m, n, dtype, rng)
    a, b = (np.concatenate(arrays) for arrays in zip(*pairs.values(), strict=True))
    assert a.dtype == b.dtype == dtype
    scale_a, scale_b = power_of_two_scale(a), power_of_two_scale(b)
    scale = (
        np.maximum(scale_a, scale_b) if form == "sylvester" else np.maximum(scale_a * scale_b, 1)
    )
    c = (scale * random_entries((len(a), m, n), dtype, rng)).astype(dtype)
    x, info = jax.device_get(solve_fully(form)(a, b, c))
    residual, separation, converged = info
    assert x.dtype == dtype
    assert residual.dtype == separation.dtype == np.finfo(dtype).dtype

    # Whatever is not NaN keeps the bound, flagged or not.
    solved = all_finite(x)
    errors = np.zeros(len(x))
    errors[solved] = equation_errors(form, *(array[solved] for array in (a, b, c, x)))
    labels = [f"{pair}: {name}" for pair in pairs for name in names]
    assert errors.max() <= 30, labels[errors.argmax()]
    assert np.isnan(x[~solved]).all()
    assert solved[converged].all()
    unit = max(m, n) * np.finfo(dtype).eps
    difference = np.abs(residual[converged].astype(float) - unit * errors[converged])
    assert difference.max() <= 2 * np.finfo(dtype).eps
    if m * n <= 60:
        check_separation(form, a, b, separation, np.finfo(dtype).eps)
    flags = dict(zip(pairs, converged.reshape(len(pairs), -1), strict=True))
    for pair, flag in flags.items():
        if pair == "separated":
            assert flag.all(), [names[k] for k in np.flatnonzero(~flag)]
        if pair.startswith("shared"):
            assert not flag.any(), [names[k] for k in np.flatnonzero(flag)]
    assert separation.min() >= 0
    assert separation.max() <= 1 + 4 * np.finfo(dtype).eps


def check_separation(form, a, b, separation, eps):
    """Holds the estimate against the smallest singular values of the Kronecker matrices."""
    scale_a, scale_b = power_of_two_scale(a), power_of_two_scale(b)
    if form == "sylvester":
        scale_a = scale_b = np.maximum(scale_a, scale_b)
    else:
        scale_b = 1 / scale_a  # a factor moved from A to B changes nothing
    a, b = a / scale_a, b / scale_b
    size = relative_norm(form, a, b)
    smallest = np.linalg.svd(kronecker_matrices(form, a, b), compute_uv=False)[:, -1]
    expected = smallest / (size + (size == 0))
    m, n = a.shape[-1], b.shape[-1]
    assert (expected - separation).max() <= 10 * max(m, n) * eps
    known = expected > 100 * eps
    ratio = separation[known] / expected[known]
    assert ratio.max() <= 50 * (m * n) ** 0.5
    assert np.median(ratio) <= 4


def extended(*case):
    return pytest.param(*case, marks=pytest.mark.extended)


class TestBackwardErrorOfSylvester:
    @pytest.mark.parametrize(
        ("m", "n", "dtype"),
        [
            (10, 10, "float32"),
            (1, 1, "float32"),
            (2, 2, "float64"),
            (10, 10, "float64"),
            (10, 10, "complex64"),
            extended(1, 1, "float64"),
            extended(2, 2, "float32"),
            extended(6, 10, "float32"),
            extended(33, 32, "float64"),
            extended(64, 64, "float64"),
            extended(100, 10, "float64"),
            extended(100, 100, "float32"),
        ],
    )
    def test_every_kind_of_matrix(self, m, n, dtype):
        check_backward_errors("sylvester", m, n, dtype)


class TestBackwardErrorOfGeneralized:
    @pytest.mark.parametrize(
        ("m", "n", "dtype"),
        [
            (10, 10, "float32"),
            (1, 1, "float64"),
            (10, 6, "float64"),
            (32, 33, "float32"),
            (6, 3, "complex128"),
            extended(2, 2, "float32"),
            extended(1, 1, "float32"),
            extended(2, 2, "float64"),
            extended(100, 64, "float32"),
        ],
    )
    def test_every_kind_of_matrix(self, m, n, dtype):
        check_backward_errors("generalized", m, n, dtype)

    @pytest.mark.parametrize(
        ("form", "m", "n", "dtype"),
        [
            ("sylvester", 10, 10, "float32"),
            ("generalized", 6, 33, "float32"),
            ("sylvester", 33, 10, "float64"),
            ("generalized", 3, 7, "complex128"),
        ],
    )
    def test_hermitian_kinds_by_eigendecompositions(self, form, m, n, dtype):
        rng = np.random.default_rng([m, n])
        make_pairs = sylvester_pairs if form == "sylvester" else generalized_pairs
        names, pairs = make_pairs(m, n, dtype, rng)
        for pair in ("separated", "another kind"):
            a, b = (hermitian(array) for array in pairs[pair])
            scale = power_of_two_scale(a), power_of_two_scale(b)
            scale = np.maximum(*scale) if form == "sylvester" else 1
            c = (scale * random_entries((len(a), m, n), dtype, rng)).astype(dtype)
            x, info = solve_fully(form, "eigh")(a, b, c)
            x, converged = np.asarray(x), np.asarray(info.converged)
            assert x.dtype == dtype
            solved = all_finite(x)
            errors = equation_errors(form, *(array[solved] for array in (a, b, c, x)))
            assert errors.max() <= 30, np.array(names)[solved][errors.argmax()]
            assert solved[converged].all()
            if pair == "separated":
                assert converged.all()


class TestLargeEquations:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("form", "dtype"), [("sylvester", "float32"), extended("generalized", "float64")]
    )
    def test_one_of_309_rows(self, form, dtype):
        a, b, _, c = well_separated(form, 309, 309, dtype, (1,), np.random.default_rng(0))
        a, b, c = (array.astype(dtype) for array in (a, b, c))
        x, info = solve_fully(form)(a, b, c)
        assert info.converged.all()
        assert equation_errors(form, a, b, c, x).max() <= 30


class TestRecalibrations:
    """The generalized equation with A = c J^2 and a Gram matrix for every sample."""

    NUM_CLASSES = 5
    CASES = (
        ("eigh", "float64"),
        ("eigh", "float32"),
        ("bartels_stewart", "float32"),
        extended("bartels_stewart", "float64"),
    )

    def systems(self):
        """Probabilities (7, K) and Gram matrices (7, K, K), among them J = 0, low rank and zero."""
        rng = np.random.default_rng(0)
        probs = scipy.special.softmax(2 * rng.normal(size=(7, self.NUM_CLASSES)), axis=-1)
        probs[0] = np.eye(self.NUM_CLASSES)[2]
        jac = rng.normal(size=(7, self.NUM_CLASSES, 8)) / self.NUM_CLASSES**0.5
        jac[1:3, :, 2:] = 0
        jac[3] = 0
        return probs, hermitian(jac @ jac.swapaxes(-1, -2))

    @pytest.mark.parametrize(("method", "dtype"), CASES)
    def test_are_those_of_the_definition(self, method, dtype):
        probs, grams = self.systems()
        softmax_jacobians = np.stack([reference.softmax_jacobian(p) for p in probs])
        eye = np.broadcast_to(np.eye(self.NUM_CLASSES, dtype=dtype), grams.shape)
        for gamma in (0.9, 0.1, 1e-2):
            strength = (1 - gamma) / gamma
            expected = np.stack(
                [
                    reference.recalibration_matrix(p, gram, strength)
                    for p, gram in zip(probs, grams, strict=True)
                ]
            )
            a = hermitian(strength * softmax_jacobians @ softmax_jacobians)
            arrays = (a.astype(dtype), grams.astype(dtype), eye)
            out, info = jax.device_get(solve_fully("generalized", method)(*arrays))
            assert out.dtype == dtype
            assert info.converged.all()
            tolerance = 10 * self.NUM_CLASSES * np.finfo(dtype).eps * (1 + norms(a) * norms(grams))
            np.testing.assert_array_less(norms(out - expected), tolerance)
            np.testing.assert_allclose(out[0], eye[0], atol=1e-6)
            np.testing.assert_allclose(out[3], eye[3], atol=1e-6)

    @pytest.mark.parametrize(("method", "dtype"), CASES)
    def test_are_solved_whatever_the_strength(self, method, dtype):
        # 1 + a_i g_k >= 1 for positive semi-definite A and G: no such equation is singular.
        probs, grams = self.systems()
        softmax_jacobians = np.stack([reference.softmax_jacobian(p) for p in probs])
        grams = grams.astype(dtype)
        eye = np.broadcast_to(np.eye(self.NUM_CLASSES, dtype=dtype), grams.shape)
        for relative_strength in (1e-2, 1, 1e2):
            strength = relative_strength / np.finfo(dtype).eps
            a = hermitian(strength * softmax_jacobians @ softmax_jacobians).astype(dtype)
            out, _ = jax.device_get(solve_fully("generalized", method)(a, grams, eye))
            assert np.isfinite(out).all(), relative_strength
            assert equation_errors("generalized", a, grams, eye, out).max() <= 30
