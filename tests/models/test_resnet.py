import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from jacfuse_jax.models import IMAGENET_MEAN, IMAGENET_STDDEV, ResNet, resnet18, small_resnet
from jacfuse_jax.models._convolution import convolve
from tests.models.drawn import draw

VIDEO = np.random.default_rng(0).uniform(size=(3, 4, 11, 14, 3)).astype(np.float32)
IMAGES = VIDEO[:, 0]


def make_resnet(**kwargs):
    """Two stages, the second with a shortcut that changes shapes and one that does not."""
    options: dict[str, Any] = {
        "channels": (8, 16),
        "num_blocks": (1, 2),
        "stem": "small",
        "normalization": "group",
    }
    return draw(lambda: ResNet(3, 5, rngs=nnx.Rngs(1), **options | kwargs))


def randomize(model):
    """Replaces scales, biases and running statistics, which are made as 0 and 1."""
    rng = np.random.default_rng(2)
    drawn = {
        "scale": lambda shape: rng.uniform(0.5, 2, shape),
        "var": lambda shape: rng.uniform(0.5, 2, shape),
        "bias": lambda shape: rng.normal(size=shape),
        "mean": lambda shape: rng.normal(size=shape),
    }
    for _, module in nnx.iter_modules(model):
        for name in drawn.keys() & vars(module).keys():
            variable = getattr(module, name)
            if isinstance(variable, nnx.Variable):
                variable[...] = jnp.asarray(drawn[name](variable.shape), jnp.float32)
    return model


def as_float64(model):
    nnx.update(model, jax.tree.map(lambda a: a.astype(jnp.float64), nnx.state(model)))
    return model


@functools.cache
def group_model():
    return randomize(make_resnet(mean=IMAGENET_MEAN, stddev=IMAGENET_STDDEV))


@functools.cache
def classify(model):
    return jax.jit(model.__call__)


class TestConvolution:
    """Against JAX's own, which `convolve` only lays out anew."""

    X = np.random.default_rng(0).normal(size=(2, 7, 6, 3))
    KERNEL = np.random.default_rng(1).normal(size=(3, 3, 3, 4))

    @staticmethod
    def theirs(x, kernel, strides=(1, 2)):
        layouts = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, strides, [(1, 1), (1, 1)], dimension_numbers=layouts
        )

    @staticmethod
    def ours(x, kernel, strides=(1, 2)):
        return convolve(x, kernel, strides, [(1, 1), (1, 1)])

    def test_equals_jaxs_with_its_derivatives(self):
        def derivatives(convolution, *args):
            def loss(x, kernel):
                return jnp.sin(convolution(x, kernel)).sum()

            gradients = jax.grad(loss, argnums=(0, 1))
            return (
                convolution(*args),
                gradients(*args),
                jax.jvp(loss, args, jax.tree.map(jnp.cos, args)),
                jax.grad(lambda *args: sum((g**2).sum() for g in gradients(*args)), (0, 1))(*args),
                jax.vmap(jax.grad(lambda x: loss(x[None], args[1])))(args[0]),
            )

        args = jnp.asarray(self.X), jnp.asarray(self.KERNEL)
        ours = jax.jit(functools.partial(derivatives, self.ours))(*args)
        theirs = jax.jit(functools.partial(derivatives, self.theirs))(*args)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), ours, theirs
        )

    def test_derivative_in_the_input_has_the_layout_that_is_fast_inside_loops(self):
        def layouts(convolution):
            def ascend(x, kernel):
                def iterate(x, _):
                    return x + jax.grad(lambda x: (convolution(x, kernel) ** 2).sum())(x), None

                return jax.lax.scan(iterate, x, length=3)[0]

            program = jax.jit(ascend).lower(self.X, self.KERNEL).compile().as_text()
            assert program is not None
            lines = [line for line in program.splitlines() if " convolution(" in line]
            return sorted(line.split("dim_labels=")[1].split(",")[0] for line in lines)

        assert layouts(self.ours) == ["b01f_01io->b01f"] * 2
        # Should this fail, JAX's own has become as fast, and `convolve` can go.
        assert layouts(self.theirs) == ["b01f_01io->b01f", "b01f_01oi->b01f"]


def group_normalized_by_torch(model, images, torch):
    """Logits and features of a small network with group normalisation, written in torch."""
    f = torch.nn.functional

    def to_torch(variable, *axes):
        return torch.tensor(np.asarray(variable[...], np.float64).transpose(axes))

    def layer(x, module, stride):
        kernel = to_torch(module.conv.kernel, 3, 2, 0, 1)
        x = f.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        scale, bias = to_torch(module.norm.scale, 0), to_torch(module.norm.bias, 0)
        return f.group_norm(x, len(scale) // 8, scale, bias, 1e-5)

    x = torch.tensor(images.astype(np.float64).transpose(0, 3, 1, 2))
    mean, stddev = (torch.tensor(v)[:, None, None] for v in (model.mean, model.stddev))
    x = f.relu(layer((x - mean) / stddev, model.stem, 2))
    for stage, blocks in enumerate(model.stages):
        for index, block in enumerate(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            y = layer(f.relu(layer(x, block.first, stride)), block.second, 1)
            x = f.relu(y + (x if block.shortcut is None else layer(x, block.shortcut, stride)))
    features = x.mean(dim=(2, 3))
    logits = features @ to_torch(model.head.kernel, 0, 1) + to_torch(model.head.bias, 0)
    return logits.numpy(), features.numpy()


def test_group_normalised_network_is_that_of_torch(torch):
    logits, features = group_normalized_by_torch(group_model(), IMAGES, torch)
    output = classify(group_model())(IMAGES)
    assert output.logits.dtype == jnp.float32
    np.testing.assert_allclose(output.logits, logits, atol=1e-5 * np.abs(logits).max())
    np.testing.assert_allclose(output.features, features, atol=1e-5 * features.max())


def test_features_of_a_video_are_the_mean_of_those_of_its_frames():
    model = group_model()
    output = classify(model)(VIDEO)
    frames = [classify(model)(VIDEO[:, t]).features for t in range(4)]
    np.testing.assert_allclose(output.features, np.mean(frames, axis=0), atol=1e-5)
    assert model.head.bias is not None
    expected = output.features @ model.head.kernel[...] + model.head.bias[...][None]
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)
    assert output.logits.shape == (3, 5)


@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_samples_do_not_depend_on_their_batch(normalization):
    model = (
        group_model() if normalization == "group" else randomize(make_resnet(normalization="batch"))
    )
    together = classify(model)(IMAGES).logits
    others = np.concatenate([IMAGES[:1], np.ones_like(IMAGES[1:])])
    np.testing.assert_allclose(classify(model)(others).logits[0], together[0], atol=1e-5)
    alone = jax.jit(jax.vmap(lambda x: model(x[None]).logits[0]))(IMAGES)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_batch_statistics_are_used_and_remembered_in_training_mode_alone():
    model = make_resnet(normalization="batch")
    norm = model.stem.norm
    assert isinstance(norm, nnx.BatchNorm)
    classify_in_place = nnx.jit(lambda model, x: model(x).logits)
    evaluated = classify_in_place(model, IMAGES)
    assert not norm.mean[...].any()

    model.train()
    convolved = np.asarray(model.stem.conv(jnp.asarray(IMAGES)), np.float64)
    assert not np.allclose(classify_in_place(model, IMAGES), evaluated, atol=1e-2)
    mean, variance = convolved.mean(axis=(0, 1, 2)), convolved.var(axis=(0, 1, 2))
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * variance, rtol=1e-5)


@pytest.mark.parametrize(("normalization", "stem"), [("batch", "imagenet"), ("group", "small")])
def test_gradients_match_finite_differences(normalization, stem):
    model = make_resnet(normalization=normalization, stem=stem, num_blocks=(1, 1))
    model = as_float64(randomize(model))
    graph, parameters, statistics = nnx.split(model, nnx.Param, ...)

    # One array: check_grads compiles its own operations for every shape.
    flat, unravel = ravel_pytree(parameters)

    @jax.jit
    def loss(flat, x):
        logits = nnx.merge(graph, unravel(flat), statistics)(x).logits
        return jax.nn.log_softmax(logits)[jnp.arange(3), jnp.arange(3)].sum()

    # At random parameters no ReLU is within the step of its kink.
    args = flat, jnp.asarray(IMAGES, jnp.float64)
    check_grads(loss, args, order=1, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-7)


def test_inputs_are_normalised_inside():
    model = make_resnet()
    shifted = make_resnet(mean=(0.1, 0.2, 0.3), stddev=2.0)
    x = (IMAGES - np.array([0.1, 0.2, 0.3], np.float32)) / 2
    np.testing.assert_allclose(
        classify(shifted)(IMAGES).logits, classify(model)(x).logits, atol=1e-5
    )


def test_a_constant_input_keeps_its_digits():
    # Far from zero, as silence is in decibels: E x^2 - (E x)^2 would be all rounding.
    model = make_resnet()
    x = np.full((1, 9, 9, 3), -80.0) + 1e-3 * VIDEO[:1, 0, :9, :9]
    logits = classify(model)(x.astype(np.float32)).logits
    expected = classify(model)(x.astype(np.float32).astype(np.float64)).logits
    assert expected.dtype == jnp.float64
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_resnet18_has_its_number_of_parameters_and_initial_distribution():
    def make() -> Any:
        return nnx.state(resnet18(3, 1000, rngs=nnx.Rngs(0)), nnx.Param)

    parameters = jax.tree.leaves(jax.eval_shape(make))
    assert sum(array.size for array in parameters) == 11_689_512
    second = jax.jit(lambda: make()["stages"][3][1]["second"])()  # compiles no other layer
    assert second["conv"]["kernel"][...].std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    np.testing.assert_array_equal(second["norm"]["scale"][...], 1)


@pytest.mark.parametrize(
    ("make", "options", "shape", "num_features"),
    [
        (small_resnet, {}, (2, 64, 400, 1), 64),
        (small_resnet, {"channels": (8, 24)}, (2, 3, 64, 48, 3), 24),
        (resnet18, {}, (2, 128, 251, 1), 512),
        (resnet18, {}, (2, 5, 112, 112, 3), 512),
    ],
    ids=["spectrogram", "video", "resnet18 of a spectrogram", "resnet18 of a video"],
)
def test_shapes(make, options, shape, num_features):
    def classify(x):
        return make(shape[-1], 7, **options, rngs=nnx.Rngs(0))(x)

    output = jax.eval_shape(classify, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert output.logits.shape == (2, 7)
    assert output.features.shape == (2, num_features)
    assert output.logits.dtype == jnp.float32


class TestMisuse:
    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"channels": (8, 0)}, r"sizes must be positive, got \(3, 5, 8, 0, 1, 2\)"),
            ({"num_blocks": (1,)}, r"one number a stage, got \(8, 16\) and \(1,\)"),
            ({"channels": (), "num_blocks": ()}, r"one number a stage, got \(\) and \(\)"),
            ({"channels": (8, 12)}, r"multiples of 8 for group normalisation, got \(8, 12\)"),
            ({"stem": "large"}, "stem must be one of imagenet, small, got 'large'"),
            ({"normalization": "layer"}, "normalization must be one of batch, group, got 'layer'"),
            (
                {"mean": (0.5, 0.5)},
                r"mean must be one finite number, .* 3 channels, got \(0.5, 0.5",
            ),
            ({"mean": float("nan")}, "mean must be one finite number, .* got nan"),
            ({"stddev": (1.0, 0.0, 1.0)}, r"stddev must be positive, got \(1.0, 0.0, 1.0\)"),
        ],
    )
    def test_of_the_constructor(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            make_resnet(**kwargs)

    @pytest.mark.parametrize("shape", [(8, 8, 3), (2, 8, 8, 1), (2, 0, 8, 8, 3)])
    def test_of_shapes(self, shape):
        with pytest.raises(ValueError, match=rf"or \(B, T, H, W, 3\), got \({shape[0]}, "):
            jax.eval_shape(make_resnet(), jax.ShapeDtypeStruct(shape, jnp.float32))

    def test_of_dtypes(self):
        with pytest.raises(TypeError, match="x must be float32 or float64, got uint8"):
            make_resnet()(jnp.asarray(np.zeros((2, 8, 8, 3), np.uint8)))
