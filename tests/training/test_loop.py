import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jacfuse_jax import training
from jacfuse_jax.models import LeNet, UnimodalOutput
from tests.models.drawn import draw

rng = np.random.default_rng(0)
INPUTS = rng.normal(size=(96, 6, 6, 1)).astype(np.float32)
LABELS = (INPUTS.mean(axis=(1, 2, 3)) > 0).astype(np.int32)
OPTIMIZER = optax.adam(1e-2)


def make_model(num_classes=2):
    def make():
        rngs = nnx.Rngs(0)
        return LeNet((6, 6, 1), num_classes, channels=(4,), hidden_sizes=(8,), rngs=rngs)

    return draw(make)


class Normalized(nnx.Module):
    """Batch normalisation of the inputs, and a linear head."""

    def __init__(self):
        self.norm = nnx.BatchNorm(36, momentum=0.9, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(36, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        with jax.numpy_dtype_promotion("standard"):  # flax normalises in the dtype of either
            features = self.norm(x.reshape(len(x), -1))
        return UnimodalOutput(self.head(features), features)


def make_batches(epoch):
    order = np.random.default_rng(epoch).permutation(96)
    for rows in order.reshape(3, 32):
        yield {"inputs": INPUTS[rows], "label": LABELS[rows], "mask": np.ones(32, np.float32)}


def squared_error(model, batch):
    logits = model(batch["inputs"]).logits[:, 0]
    return (logits - batch["label"].astype(logits.dtype)) ** 2 * batch["weight"]


def make_weighted_batches(epoch):
    for index, batch in enumerate(make_batches(epoch)):
        yield {**batch, "weight": np.float32(epoch + index)}


def fit(folder, num_epochs, batches=make_batches, model=None, loss_fn=None):
    model = model or make_model()
    training.fit(
        model,
        OPTIMIZER,
        batches,
        num_epochs=num_epochs,
        checkpoint_dir=folder,
        loss_fn=loss_fn,
    )
    return model


def assert_same_parameters(model, other):
    chex.assert_trees_all_equal(nnx.state(model), nnx.state(other))


def test_learns(tmp_path):
    model = fit(tmp_path, 20)
    logits = np.asarray(model(jnp.asarray(INPUTS)).logits)
    assert np.mean(logits.argmax(axis=1) == LABELS) > 0.9


@pytest.mark.parametrize(
    ("batches", "loss_fn", "make"),
    [
        (make_batches, None, make_model),
        (make_weighted_batches, squared_error, make_model),
        (make_batches, None, Normalized),
    ],
)
def test_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path, batches, loss_fn, make):
    whole = fit(tmp_path / "whole", 5, batches, model=make(), loss_fn=loss_fn)

    def killed(epoch):
        for index, batch in enumerate(batches(epoch)):
            if epoch == 3 and index == 1:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "killed", 5, killed, model=make(), loss_fn=loss_fn)
    epochs = []

    def recorded(epoch):
        epochs.append(epoch)
        return batches(epoch)

    resumed = fit(tmp_path / "killed", 5, recorded, model=make(), loss_fn=loss_fn)
    assert epochs == [3, 4]
    assert_same_parameters(resumed, whole)


def test_finished_training_is_restored_without_a_step(tmp_path):
    trained = fit(tmp_path, 2)

    def must_not_be_called(epoch):
        raise AssertionError(epoch)

    restored = fit(tmp_path, 2, must_not_be_called)
    assert_same_parameters(restored, trained)


def test_running_statistics_are_of_all_rows_and_restored(tmp_path):
    def masked(epoch):
        for batch in make_batches(epoch):
            yield {**batch, "mask": np.arange(32) < 20}

    mean, variance = np.zeros(36), np.ones(36)
    for batch in (*make_batches(0), *make_batches(1)):
        x = batch["inputs"].reshape(32, 36).astype(np.float64)
        mean = 0.9 * mean + 0.1 * x.mean(axis=0)
        variance = 0.9 * variance + 0.1 * x.var(axis=0)
    for batches in (masked, None):  # trained, then restored
        model = fit(tmp_path, 2, batches, model=Normalized())
        assert model.norm.use_running_average
        np.testing.assert_allclose(model.norm.mean[...], mean, atol=1e-6)
        np.testing.assert_allclose(model.norm.var[...], variance, rtol=1e-5)


def test_no_epochs_train_and_write_nothing(tmp_path):
    def must_not_be_called(epoch):
        raise AssertionError(epoch)

    model = fit(tmp_path, 0, must_not_be_called, model=Normalized())
    assert_same_parameters(model, Normalized())
    assert model.norm.use_running_average
    assert not list(tmp_path.iterdir())


def test_half_written_checkpoint_is_not_taken_for_whole(tmp_path):
    expected = fit(tmp_path / "whole", 3)
    fit(tmp_path / "other", 2)
    # What a kill in the middle of a save leaves: a folder that was never renamed into place.
    (tmp_path / "other" / "2").rename(tmp_path / "other" / "3.orbax-checkpoint-tmp")
    resumed = fit(tmp_path / "other", 3)
    assert_same_parameters(resumed, expected)


def test_masked_rows_have_no_influence(tmp_path):
    def padded(epoch):
        for batch in make_batches(epoch):
            mask = np.ones(32, np.float32)
            mask[-4:] = 0
            yield {**batch, "mask": mask}

    def garbage(epoch):
        for batch in padded(epoch):
            inputs = batch["inputs"].copy()
            inputs[-4:] = 1e3
            yield {**batch, "inputs": inputs}

    a, b = fit(tmp_path / "a", 1, padded), fit(tmp_path / "b", 1, garbage)
    chex.assert_trees_all_close(nnx.state(a), nnx.state(b), atol=1e-6)


def test_cross_entropy_is_the_default(tmp_path):
    by_default = fit(tmp_path / "a", 1)
    assert_same_parameters(fit(tmp_path / "b", 1, loss_fn=training.cross_entropy), by_default)
    batch = {"inputs": INPUTS, "label": LABELS}
    logits = np.asarray(by_default(jnp.asarray(INPUTS)).logits, np.float64)
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(96), LABELS]
    np.testing.assert_allclose(training.cross_entropy(by_default, batch), expected, rtol=1e-5)


class Linear(nnx.Module):
    """A linear model of a pytree of inputs."""

    def __init__(self):
        self.weights = nnx.Param(jnp.zeros(2))

    def __call__(self, inputs):
        a, (b,) = inputs["a"], inputs["b"]
        return UnimodalOutput(a * self.weights[0] + b * self.weights[1], features=a)


def test_a_step_follows_the_masked_mean_of_the_loss(tmp_path):
    inputs = {"a": rng.normal(size=(8, 1)), "b": (rng.normal(size=(8, 1)),)}
    label, mask = rng.integers(2, size=8), np.array([1, 1, 0, 1, 1, 1, 0, 1])
    batch = {"inputs": inputs, "label": label, "mask": mask, "weight": 3.0}
    model = Linear()
    training.fit(
        model,
        optax.sgd(0.1),
        lambda _: [batch],
        num_epochs=1,
        checkpoint_dir=tmp_path,
        loss_fn=squared_error,
    )
    # At weights of zero the loss of a sample is 3 (w x - y)^2, with derivative -6 x y.
    x = np.concatenate([inputs["a"], inputs["b"][0]], axis=1)
    gradient = (mask[:, None] * -6 * x * label[:, None]).sum(axis=0) / mask.sum()
    np.testing.assert_allclose(model.weights[...], -0.1 * gradient, rtol=1e-12)


def test_one_compiled_step_serves_all_calls_with_the_same_loss(tmp_path):
    num_traces = 0

    def counted(model, batch):
        nonlocal num_traces
        num_traces += 1
        return training.cross_entropy(model, batch)

    for name in ("a", "b"):
        fit(tmp_path / name, 2, loss_fn=counted)
    assert num_traces == 1


def test_foreign_checkpoint_is_named(tmp_path):
    fit(tmp_path, 1)
    with pytest.raises(training.CheckpointError, match=rf"{tmp_path}/1 is of another"):
        fit(tmp_path, 2, model=make_model(num_classes=3))


def test_checkpoint_of_a_longer_training_is_refused(tmp_path):
    fit(tmp_path, 3)
    with pytest.raises(training.CheckpointError, match="is of 3 epochs, more than the 2 asked for"):
        fit(tmp_path, 2)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(training.CheckpointError, match=rf"{tmp_path}/file is a file; use a folder"):
        fit(tmp_path / "file", 1)
