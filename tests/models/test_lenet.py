import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jacfuse_jax.models import LeNet
from jacfuse_jax.models._lenet import _cut_into_patches
from tests.models.drawn import draw


def make_lenet(input_shape, num_classes, **kwargs):
    return draw(lambda: LeNet(input_shape, num_classes, rngs=nnx.Rngs(0), **kwargs))


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def flax_convolution(kernel, use_bias):
    """Flax's own, with that kernel."""
    *size, in_features, out_features = kernel.shape

    def make():
        return nnx.Conv(in_features, out_features, size, use_bias=use_bias, rngs=nnx.Rngs(0))

    theirs = draw(make)
    theirs.kernel = kernel
    return theirs


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
    def classify(x):
        return LeNet(input_shape, 7, rngs=nnx.Rngs(0), **kwargs)(x)

    output = jax.eval_shape(classify, jax.ShapeDtypeStruct((2, *input_shape), jnp.float32))
    assert output.logits.shape == (2, 7)
    assert output.features.shape == (2, kwargs.get("hidden_sizes", (120, 84))[-1])
    assert output.logits.dtype == jnp.float32


def test_logits_are_the_head_of_the_features():
    model = make_lenet((9, 7, 1), 4)
    output = jax.jit(model.__call__)(normal(5, 9, 7, 1))
    assert model.head.bias is not None
    kernel, bias = model.head.kernel[...], model.head.bias[...]
    expected = np.asarray(output.features) @ np.asarray(kernel) + np.asarray(bias)
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "kernel_size"), [((8, 6, 2), 3), ((5, 9, 1), 5)])
def test_convolution_is_flaxs_own_with_padding(shape, kernel_size):
    model = make_lenet(shape, 2, channels=(4,), kernel_size=kernel_size)
    ours = model.convolutions[0]
    theirs = flax_convolution(ours.kernel, use_bias=True)
    theirs.bias = ours.bias
    x = normal(3, *shape)
    np.testing.assert_allclose(jax.jit(ours.__call__)(x), jax.jit(theirs.__call__)(x), atol=1e-5)


def test_patches_are_cut_in_order():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    patches = np.asarray(jax.jit(_cut_into_patches, static_argnums=1)(x, 2))
    assert patches.shape == (2, 2, 3, 12)
    for i, j in np.ndindex(2, 3):
        expected = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, -1)
        np.testing.assert_array_equal(patches[:, i, j], expected)


def test_pooling_takes_the_maximum_of_every_two_by_two_block():
    model = make_lenet((6, 6, 1), 2, channels=(1,), kernel_size=1, hidden_sizes=(9,))
    model.convolutions[0].kernel[...] = np.ones((1, 1, 1, 1), np.float32)
    model.hidden[0].kernel[...] = np.eye(9, dtype=np.float32)
    x = np.random.default_rng(0).uniform(size=(3, 6, 6, 1)).astype(np.float32)
    expected = x.reshape(3, 3, 2, 3, 2).max(axis=(2, 4)).reshape(3, 9)
    np.testing.assert_allclose(jax.jit(model.__call__)(x).features, expected, rtol=1e-6)


def test_samples_do_not_depend_on_their_batch():
    model = make_lenet((8, 8, 1), 3)
    classify = jax.jit(lambda x: model(x).logits)
    x = normal(4, 8, 8, 1)
    alone = np.concatenate([classify(x[b : b + 1]) for b in range(4)])
    np.testing.assert_allclose(classify(x), alone, atol=1e-5)


def test_inputs_are_shifted_and_scaled_before_the_first_layer():
    plain = make_lenet((8, 8, 1), 3)
    shifted = make_lenet((8, 8, 1), 3, mean=0.5, stddev=0.25)
    x = normal(4, 8, 8, 1)
    expected = jax.jit(plain.__call__)((x - 0.5) / 0.25)
    np.testing.assert_allclose(jax.jit(shifted.__call__)(x).logits, expected.logits, atol=1e-5)
    key = jax.random.key(0)
    bounds = [float(model.lipschitz_bound(key)) for model in (plain, shifted)]
    np.testing.assert_allclose(bounds[1], 4 * bounds[0], rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"stddev": 0.0}, {"stddev": -1.0}, {"mean": float("nan")}])
def test_bad_means_and_deviations_are_refused(wrong):
    with pytest.raises(ValueError, match="mean must be finite and stddev finite and positive"):
        LeNet((8, 8, 1), 3, **wrong, rngs=nnx.Rngs(0))


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
    model = make_lenet(input_shape, 4, **kwargs)
    bound = float(jax.jit(model.lipschitz_bound)(jax.random.key(1)))
    # Each convolution written out as a matrix, by Flax's own code.
    norms = [np.linalg.norm(layer.kernel[...], 2) for layer in (*model.hidden, model.head)]
    shape = input_shape
    for layer in model.patches:
        norms.append(np.linalg.norm(layer.kernel[...], 2))
        size = kwargs["patch_size"]
        shape = (shape[0] // size, shape[1] // size, layer.kernel.shape[1])
    for layer in model.convolutions:
        theirs = flax_convolution(layer.kernel, use_bias=False)
        eye = np.eye(int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape)
        matrix = np.asarray(jax.jit(theirs.__call__)(eye)).reshape(len(eye), -1)
        norms.append(np.linalg.norm(matrix, 2))
        shape = (-(-shape[0] // 2), -(-shape[1] // 2), layer.kernel.shape[-1])
    product = np.prod(norms)
    assert product * (1 - 1e-5) <= bound <= 1.1 ** len(model.convolutions) * product

    x = normal(20, *input_shape)
    jac = jax.jit(jax.vmap(jax.jacrev(lambda x: model(x[None]).logits[0])))(x)
    sharpest = np.linalg.norm(np.reshape(jac, (20, 4, -1)), ord=2, axis=(1, 2)).max()
    assert 0.02 * bound < sharpest <= bound
