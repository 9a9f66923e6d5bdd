from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jacfuse_jax.models import MLP, SeriesResNet, small_resnet
from tests.models.drawn import draw

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 7)).astype(np.float32)
MEAN, STDDEV = RNG.normal(size=7), RNG.uniform(0.1, 3, size=7)


def make_mlp(**kwargs):
    return draw(lambda: MLP(7, 4, hidden_sizes=(9, 6), rngs=nnx.Rngs(0), **kwargs))


def layers_of(model):
    return [
        (np.asarray(layer.kernel[...], float), np.asarray(layer.bias[...], float))
        for layer in (*model.hidden, model.head)
    ]


class TestMLP:
    def test_is_its_layers_on_standardised_inputs(self):
        model = make_mlp(mean=MEAN.tolist(), stddev=STDDEV.tolist())
        for layer in (*model.hidden, model.head):
            assert layer.bias is not None
            layer.bias[...] = jnp.asarray(RNG.normal(size=layer.bias[...].shape), jnp.float32)
        (w1, b1), (w2, b2), (w3, b3) = layers_of(model)
        hidden = np.maximum((X - MEAN) / STDDEV @ w1 + b1, 0)
        features = np.maximum(hidden @ w2 + b2, 0)
        output = jax.jit(model.__call__)(X)
        np.testing.assert_allclose(output.features, features, rtol=0, atol=1e-4)
        np.testing.assert_allclose(output.logits, features @ w3 + b3, rtol=0, atol=1e-4)

    def test_float64_inputs_are_computed_in_float64(self):
        output = jax.jit(make_mlp().__call__)(X.astype(np.float64))
        assert output.logits.dtype == output.features.dtype == jnp.float64

    def test_lipschitz_bound_is_above_every_jacobian(self):
        model = make_mlp(stddev=STDDEV.tolist())
        bound = float(jax.jit(model.lipschitz_bound)(jax.random.key(0)))
        (w1, _), (w2, _), (w3, _) = layers_of(model)
        norms = [np.linalg.norm(w, 2) for w in (w1 / STDDEV[:, None], w2, w3)]
        np.testing.assert_allclose(bound, np.prod(norms), rtol=1e-5)
        jac = jax.jit(jax.vmap(jax.jacrev(lambda x: model(x[None]).logits[0])))(X)
        assert 0.02 * bound < np.linalg.norm(jac, 2, axis=(1, 2)).max() <= bound

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hidden_sizes": ()}, "all sizes must be positive"),
            ({"hidden_sizes": (3, 0)}, "all sizes must be positive"),
            ({"mean": [0.0, 1.0]}, "mean must be one finite number, or one for each of 7 features"),
            ({"mean": np.nan}, "mean must be one finite number"),
            ({"stddev": np.inf}, "stddev must be one finite number"),
            ({"stddev": 0.0}, "stddev must be positive, got 0"),
        ],
    )
    def test_refuses_bad_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            partial(MLP, 7, 4, rngs=nnx.Rngs(0))(**changes)

    def test_refuses_other_inputs(self):
        with pytest.raises(ValueError, match=r"x must have shape \(B, 7\), got \(5, 6\)"):
            make_mlp()(jnp.asarray(X[:, :6]))
        with pytest.raises(TypeError, match="x"):
            make_mlp()(jnp.asarray(X, np.int32))


class TestSeriesResNet:
    def test_is_the_small_network_on_pictures_of_width_one(self):
        x = RNG.normal(size=(3, 20, 2)).astype(np.float32)
        options: dict[str, Any] = {"mean": [0.5, -1.0], "stddev": 2.0}
        model = draw(lambda: SeriesResNet(2, 5, **options, rngs=nnx.Rngs(0)))
        pictures = draw(lambda: small_resnet(2, 5, **options, rngs=nnx.Rngs(0)))
        nnx.update(pictures, nnx.state(model.network))
        output = jax.jit(model.__call__)(x)
        expected = jax.jit(pictures.__call__)(x[:, :, None])
        np.testing.assert_array_equal(output.logits, expected.logits)
        assert output.features.shape == (3, 64)
        assert model.head is model.network.head

    @pytest.mark.parametrize("shape", [(3, 20), (3, 20, 3), (3, 20, 1, 2)])
    def test_refuses_other_shapes(self, shape):
        model = draw(lambda: SeriesResNet(2, 5, rngs=nnx.Rngs(0)))
        with pytest.raises(ValueError, match=r"x must have shape \(B, T, 2\), got \(3, 20"):
            jax.eval_shape(model, jax.ShapeDtypeStruct(shape, jnp.float32))
