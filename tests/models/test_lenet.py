import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jacfuse_jax.models import LeNet, lenet


@pytest.mark.parametrize(
    ("input_shape", "kwargs"),
    [
        ((28, 28, 1), {}),
        ((4, 8, 1), {"channels": (16, 32), "kernel_size": 3, "hidden_sizes": (64, 32)}),
        ((112, 112, 1), {"channels": (8, 16, 32), "kernel_size": 3, "patch_size": 4}),
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


@pytest.mark.parametrize(("shape", "kernel_size"), [((8, 6, 2), 3), ((5, 9, 1), 5)])
def test_convolution_is_flaxs_own_with_padding(shape, kernel_size):
    model = LeNet(shape, 2, channels=(4,), kernel_size=kernel_size, rngs=nnx.Rngs(0))
    ours = model.convolutions[0]
    theirs = nnx.Conv(shape[2], 4, (kernel_size, kernel_size), padding="SAME", rngs=nnx.Rngs(0))
    theirs.kernel, theirs.bias = ours.kernel, ours.bias
    x = jax.random.normal(jax.random.key(0), (3, *shape), jnp.float32)
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)


def test_patches_are_cut_in_order():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    patches = lenet._cut_into_patches(jnp.asarray(x), 2)
    assert patches.shape == (2, 2, 3, 12)
    for i, j in np.ndindex(2, 3):
        expected = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, -1)
        np.testing.assert_array_equal(patches[:, i, j], expected)


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
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        LeNet((8, 8, 1), 3, kernel_size=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="patch_size must divide 8 and 9, got 4"):
        LeNet((8, 9, 1), 3, patch_size=4, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("input_shape", "kwargs"),
    [
        ((7, 6, 2), {"channels": (4, 3), "kernel_size": 3, "hidden_sizes": (8,)}),
        ((8, 12, 1), {"channels": (5, 6), "kernel_size": 3, "patch_size": 4, "hidden_sizes": (9,)}),
    ],
)
def test_lipschitz_bound(input_shape, kwargs):
    model = LeNet(input_shape, 4, rngs=nnx.Rngs(3), **kwargs)
    bound = float(jax.jit(model.lipschitz_bound)(jax.random.key(1)))
    # Each convolution written out as a matrix, by Flax's own code.
    norms = [np.linalg.norm(layer.kernel[...], 2) for layer in (*model.hidden, model.head)]
    shape = input_shape
    for layer in model.patches:
        norms.append(np.linalg.norm(layer.kernel[...], 2))
        size = kwargs["patch_size"]
        shape = (shape[0] // size, shape[1] // size, layer.kernel.shape[1])
    for layer in model.convolutions:
        kernel = np.asarray(layer.kernel[...])
        theirs = nnx.Conv(
            kernel.shape[2], kernel.shape[3], kernel.shape[:2], use_bias=False, rngs=nnx.Rngs(0)
        )
        theirs.kernel = layer.kernel
        eye = jnp.eye(int(np.prod(shape)), dtype=jnp.float32).reshape(-1, *shape)
        norms.append(np.linalg.norm(np.asarray(theirs(eye)).reshape(len(eye), -1), 2))
        shape = (-(-shape[0] // 2), -(-shape[1] // 2), kernel.shape[-1])
    product = np.prod(norms)
    assert product * (1 - 1e-5) <= bound <= 1.1 ** len(model.convolutions) * product

    x = jax.random.normal(jax.random.key(2), (20, *input_shape), jnp.float32)
    jac = jax.jit(jax.vmap(jax.jacrev(lambda x: model(x[None]).logits[0])))(x).reshape(20, 4, -1)
    sharpest = float(jnp.linalg.norm(jac, ord=2, axis=(1, 2)).max())
    assert 0.02 * bound < sharpest <= bound
