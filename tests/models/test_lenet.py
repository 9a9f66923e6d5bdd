import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jacfuse_jax.models import LeNet


@pytest.mark.parametrize(
    ("input_shape", "kwargs"),
    [
        ((28, 28, 1), {}),
        ((4, 8, 1), {"channels": (16, 32), "kernel_size": 3, "hidden_sizes": (64, 32)}),
        ((112, 112, 1), {"channels": (8, 16, 32), "stem_stride": 4}),
        ((27, 5, 3), {"channels": (4, 4, 4, 4)}),
    ],
)
def test_shapes(input_shape, kwargs):
    model = LeNet(input_shape, 7, rngs=nnx.Rngs(0), **kwargs)
    output = model(jnp.ones((2, *input_shape), jnp.float32))
    assert output.logits.shape == (2, 7)
    assert output.features.shape == (2, kwargs.get("hidden_sizes", (120, 84))[-1])
    assert output.logits.dtype == jnp.float32


def test_logits_are_the_head_of_the_features():
    model = LeNet((9, 7, 1), 4, rngs=nnx.Rngs(0))
    output = model(jnp.asarray(np.random.default_rng(0).normal(size=(5, 9, 7, 1)), jnp.float32))
    assert model.head.bias is not None
    kernel, bias = model.head.kernel[...], model.head.bias[...]
    np.testing.assert_allclose(output.logits, output.features @ kernel + bias, atol=1e-5)


def test_pooling_takes_the_maximum_of_every_two_by_two_block():
    model = LeNet((6, 6, 1), 2, channels=(1,), kernel_size=1, hidden_sizes=(9,), rngs=nnx.Rngs(0))
    model.convolutions[0].kernel[...] = jnp.ones((1, 1, 1, 1), jnp.float32)
    model.hidden[0].kernel[...] = jnp.eye(9, dtype=jnp.float32)
    x = np.random.default_rng(0).uniform(size=(3, 6, 6, 1)).astype(np.float32)
    expected = x.reshape(3, 3, 2, 3, 2).max(axis=(2, 4)).reshape(3, 9)
    np.testing.assert_allclose(model(jnp.asarray(x)).features, expected, rtol=1e-6)


def test_samples_do_not_depend_on_their_batch():
    model = LeNet((8, 8, 1), 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1), jnp.float32)
    alone = jnp.concatenate([model(x[b : b + 1]).logits for b in range(4)])
    np.testing.assert_allclose(model(x).logits, alone, atol=1e-5)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="all sizes must be positive"):
        LeNet((0, 8, 1), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="all sizes must be positive"):
        LeNet((8, 8, 1), 3, hidden_sizes=(), rngs=nnx.Rngs(0))
