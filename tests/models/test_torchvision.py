import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from jacfuse_jax.models import ResNet, load_torchvision, resnet18, small_resnet

IMAGE = np.random.default_rng(0).uniform(size=(2, 33, 21, 3)).astype(np.float32)


def of_ones(make_model):
    """A network of ones: initial distributions take seconds to compile, for every shape."""
    graph, state = nnx.split(nnx.eval_shape(make_model))
    ones = jax.tree.map(lambda array: jnp.asarray(np.ones(array.shape, array.dtype)), state)
    return nnx.merge(graph, ones)


def make_resnet18_of_torch(num_classes, torch, torchvision):
    """With random weights, scales, biases and running statistics, in evaluation mode."""
    torch.manual_seed(num_classes)
    model = torchvision.models.resnet18(weights=None, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 3)
    return model.eval()


@pytest.mark.parametrize(("num_classes", "size"), [(309, (64, 64)), (2, (47, 67))])
def test_is_the_function_that_torchvision_computes(num_classes, size, tmp_path, torch, torchvision):
    from safetensors.torch import save_file as save_torch_file

    theirs = make_resnet18_of_torch(num_classes, torch, torchvision)
    save_torch_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    ours = of_ones(lambda: resnet18(3, num_classes, rngs=nnx.Rngs(0)))
    load_torchvision(ours, tmp_path / "resnet18.safetensors")

    x = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        x_of_torch = torch.tensor(x.transpose(0, 3, 1, 2))
        pooled = torch.nn.Sequential(*list(theirs.children())[:-1])(x_of_torch)[:, :, 0, 0]
        logits = theirs(x_of_torch).numpy()
    output = jax.jit(ours.__call__)(x)
    for mine, expected in ((output.logits, logits), (output.features, pooled.numpy())):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-4)


# Two stages of one block, which is enough to tell names and layouts apart.
def make_small(in_channels=3, num_classes=5):
    return of_ones(
        lambda: ResNet(
            in_channels,
            num_classes,
            channels=(4, 6),
            num_blocks=(1, 1),
            stem="imagenet",
            normalization="batch",
            rngs=nnx.Rngs(0),
        )
    )


def make_tensors(in_channels=3, num_classes=5):
    """A state dict of that network, as torchvision names and shapes it."""
    rng = np.random.default_rng(3)
    kernels = {
        ("conv1", "bn1"): (4, in_channels, 7, 7),
        ("layer1.0.conv1", "layer1.0.bn1"): (4, 4, 3, 3),
        ("layer1.0.conv2", "layer1.0.bn2"): (4, 4, 3, 3),
        ("layer2.0.conv1", "layer2.0.bn1"): (6, 4, 3, 3),
        ("layer2.0.conv2", "layer2.0.bn2"): (6, 6, 3, 3),
        ("layer2.0.downsample.0", "layer2.0.downsample.1"): (6, 4, 1, 1),
    }
    tensors = {}
    for (conv, norm), shape in kernels.items():
        tensors[f"{conv}.weight"] = rng.normal(size=shape)
        for name in ("weight", "bias", "running_mean"):
            tensors[f"{norm}.{name}"] = rng.normal(size=shape[0])
        tensors[f"{norm}.running_var"] = rng.uniform(1, 2, size=shape[0])
        tensors[f"{norm}.num_batches_tracked"] = np.array(7)
    tensors["fc.weight"] = rng.normal(size=(num_classes, 6))
    tensors["fc.bias"] = rng.normal(size=num_classes)
    return {
        name: array if array.dtype == int else array.astype(np.float32)
        for name, array in tensors.items()
    }


def save(folder, tensors):
    path = folder / "weights.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return path


def statistics(layer):
    assert isinstance(layer.norm, nnx.BatchNorm)
    return layer.norm.mean[...], layer.norm.var[...]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_floats_of_any_width_are_cast(dtype, tmp_path):
    tensors = {
        name: array if array.dtype == int else array.astype(dtype)
        for name, array in make_tensors().items()
    }
    model = make_small()
    load_torchvision(model, save(tmp_path, tensors))
    block, shortcut = model.stages[1][0], model.stages[1][0].shortcut
    assert shortcut is not None
    loaded = {
        "layer2.0.conv1.weight": block.first.conv.kernel[...].transpose(3, 2, 0, 1),
        "layer2.0.downsample.1.running_var": statistics(shortcut)[1],
        "layer1.0.bn2.running_mean": statistics(model.stages[0][0].second)[0],
        "fc.weight": model.head.kernel[...].T,
    }
    for name, array in loaded.items():
        assert array.dtype == jnp.float32
        np.testing.assert_array_equal(array, tensors[name].astype(np.float32))


def test_head_stays_for_other_classes(tmp_path):
    path = save(tmp_path, make_tensors(num_classes=1000))
    model, untouched = make_small(), make_small()
    load_torchvision(model, path, load_head=False)
    np.testing.assert_array_equal(model.head.kernel[...], untouched.head.kernel[...])
    assert model.head.bias is not None
    assert untouched.head.bias is not None
    np.testing.assert_array_equal(model.head.bias[...], untouched.head.bias[...])
    np.testing.assert_array_equal(statistics(model.stem)[0], make_tensors()["bn1.running_mean"])

    without = {k: v for k, v in make_tensors().items() if not k.startswith("fc.")}
    load_torchvision(model, save(tmp_path, without), load_head=False)


def test_one_channel_is_seen_as_copies_of_it(tmp_path):
    path = save(tmp_path, make_tensors())
    grey, coloured = make_small(in_channels=1), make_small()
    load_torchvision(grey, path)
    load_torchvision(coloured, path)
    logits = jax.jit(coloured.__call__)(np.repeat(IMAGE[..., :1], 3, axis=-1)).logits
    np.testing.assert_allclose(
        jax.jit(grey.__call__)(IMAGE[..., :1]).logits, logits, atol=1e-4 * np.abs(logits).max()
    )


def without(name):
    return lambda tensors: tensors.pop(name)


def replace(name, array):
    return lambda tensors: tensors.update({name: np.asarray(array, np.float32)})


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (
            without("layer2.0.downsample.1.running_var"),
            "no tensor 'layer2.0.downsample.1.running_var'; save the state dict of a network with",
        ),
        (
            replace("layer3.0.conv1.weight", np.ones((6, 6, 3, 3))),
            "unexpected tensor 'layer3.0.conv1.weight', 1 in all; save the state dict of a network",
        ),
        (
            replace("layer2.0.conv2.weight", np.ones((6, 5, 3, 3))),
            r"'layer2.0.conv2.weight' has shape \(6, 5, 3, 3\), but .* \(6, 6, 3, 3\); build the",
        ),
        (
            replace("conv1.weight", np.ones((4, 2, 7, 7))),
            r"'conv1.weight' has shape \(4, 2, 7, 7\), but the model's is \(4, 3, 7, 7\); build",
        ),
        (
            replace("fc.weight", np.ones((1000, 6))),
            r"'fc.weight' has shape \(1000, 6\), but .* is \(5, 6\); load_head=False keeps the",
        ),
        (
            replace("layer1.0.bn1.bias", np.full(4, np.nan)),
            "'layer1.0.bn1.bias' holds numbers that are not finite in float32; save it anew",
        ),
        (
            lambda tensors: tensors.update({"bn1.bias": np.full(4, 1e300)}),
            "'bn1.bias' holds numbers that are not finite in float32; save it anew",
        ),
        (
            replace("layer1.0.bn2.running_var", (1, 0, -0.1, 1)),
            "'layer1.0.bn2.running_var' holds variances below zero; save it anew",
        ),
        (
            lambda tensors: tensors.update({"bn1.bias": np.ones(4, np.int32)}),
            "'bn1.bias' must hold floats, got int32; save it anew",
        ),
    ],
    ids=[
        "missing",
        "unexpected",
        "shape",
        "channels",
        "classes",
        "not finite",
        "too large",
        "variance",
        "integers",
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(spoil, match, tmp_path):
    tensors = make_tensors()
    spoil(tensors)
    path = save(tmp_path, tensors)
    model = make_small()
    with pytest.raises(ValueError, match=f"^{path}: {match}"):
        load_torchvision(model, path)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(make_small()))


def test_files_that_are_no_weights_are_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(ValueError, match=rf"^{path}: cannot be read \(No such file .*; give the"):
        load_torchvision(make_small(), path)
    whole = save(tmp_path, make_tensors()).read_bytes()
    for content in (whole[:-5], whole[:50], b"", b"PK\3\4" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{path}: damaged, or no safetensors .*write it"):
            load_torchvision(make_small(), path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: cannot be read"):
        load_torchvision(make_small(), tmp_path)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_floats_of_eight_bits_are_refused(dtype, tmp_path, torch):
    from safetensors.torch import save_file as save_torch_file

    path = tmp_path / "weights.safetensors"
    save_torch_file({"bn1.bias": torch.ones(4).to(getattr(torch, dtype))}, path)
    with pytest.raises(ValueError, match=f"^{path}: holds a dtype that NumPy .*float8.*float32$"):
        load_torchvision(make_small(), path)


def test_a_model_without_batch_normalisation_is_refused(tmp_path):
    path = save(tmp_path, make_tensors())
    with pytest.raises(ValueError, match='has group normalisation, .* normalization="batch"'):
        load_torchvision(of_ones(lambda: small_resnet(3, 5, rngs=nnx.Rngs(0))), path)
