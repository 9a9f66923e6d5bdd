from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jacfuse_jax.models import MLP, Reduced
from tests.models.drawn import draw

RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(12, 4)))[0].astype(np.float32)
POINT = RNG.normal(size=12).astype(np.float32)
X: Any = RNG.normal(size=(5, 12)).astype(np.float32)


def make_classifier() -> Any:
    return draw(lambda: MLP(12, 3, hidden_sizes=(9, 6), rngs=nnx.Rngs(0)))


def test_classifies_the_closest_point_of_the_subspace() -> None:
    classifier = make_classifier()
    coefficients = np.linalg.lstsq(BASIS.astype(float), (X - POINT).T.astype(float))[0]
    nearest = (POINT + (BASIS @ coefficients).T).astype(np.float32)
    model = Reduced(classifier, POINT, BASIS)
    expected = classifier(nearest)
    for actual in (model(X), model(X.reshape(5, 12))):
        np.testing.assert_allclose(actual.logits, expected.logits, atol=1e-5)
        np.testing.assert_allclose(actual.features, expected.features, atol=1e-5)
    assert model.head is classifier.head


def test_what_lies_across_the_subspace_changes_nothing() -> None:
    model = Reduced(make_classifier(), POINT, BASIS)
    across = X - X @ BASIS @ BASIS.T
    np.testing.assert_allclose(model(X).logits, model(X + 3 * across).logits, atol=1e-4)
    jac = jax.vmap(jax.jacrev(lambda x: model(x[None]).logits[0]))(X)
    norms = np.linalg.norm(jac, 2, axis=(1, 2))
    assert norms.max() <= float(model.lipschitz_bound(jax.random.key(0)))


def test_float64_inputs_are_computed_in_float64() -> None:
    output = Reduced(make_classifier(), POINT, BASIS)(X.astype(np.float64))
    assert output.logits.dtype == output.features.dtype == np.float64


def test_the_subspace_is_not_trained() -> None:
    parameters = nnx.state(Reduced(make_classifier(), POINT, BASIS), nnx.Param)
    assert len(jax.tree.leaves(parameters)) == len(
        jax.tree.leaves(nnx.state(make_classifier(), nnx.Param))
    )


@pytest.mark.parametrize(
    ("point", "basis", "message"),
    [
        (POINT[:5], BASIS, r"point must be \(D,\) and basis \(D, r\), got \(5,\) and \(12, 4\)"),
        (POINT, BASIS[:, 0], r"point must be \(D,\)"),
        (POINT, 2 * BASIS, "orthonormal"),
    ],
)
def test_what_is_no_subspace_is_refused(point: Any, basis: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reduced(make_classifier(), point, basis)
