from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines import datasets
from experiments import classifiers, training_regimes
from jacfuse_jax.models import LeNet


@pytest.fixture(scope="module")
def dataset():
    return datasets.load("digits", data_dir=Path("unused"), num_train=100, num_eval=50)


def make_classifier():
    model = LeNet((6, 5, 1), 3, channels=(4,), kernel_size=3, hidden_sizes=(7,), rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(model)
    return classifiers.Classifier(
        lambda p, x: nnx.merge(graph, p)(x), parameters, model.head.kernel[...]
    )


def train(dataset, workdir, regime="standard"):
    return classifiers.train_classifiers(
        dataset, num_epochs=3, batch_size=40, seed=0, workdir=workdir, regime=regime
    )


def test_input_grams_are_those_of_forward_mode_jacobians():
    classifier = make_classifier()
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 5, 1)), jnp.float32)
    grams = classifiers.input_grams(classifier, classifier.parameters, inputs)
    assert grams.shape == (4, 3, 3)
    for x, gram in zip(inputs, grams, strict=True):
        jac = jax.jacfwd(lambda x: classifier.logits_fn(classifier.parameters, x[None])[0])(x)
        flat = np.asarray(jac, np.float64).reshape(3, -1)
        np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-4, atol=1e-6)


def test_predictions_in_batches_are_those_of_all_rows():
    classifier = make_classifier()
    inputs = np.random.default_rng(0).normal(size=(10, 6, 5, 1)).astype(np.float32)
    output = classifiers.predict(classifier, inputs, batch_size=4)
    assert isinstance(output.logits, np.ndarray)
    assert isinstance(output.features, np.ndarray)
    expected = classifier.output_fn(classifier.parameters, jnp.asarray(inputs))
    chex.assert_trees_all_close(output, expected, rtol=1e-5, atol=1e-6)
    # The kernel is that of the layer between the two.
    bias = output.logits - output.features @ np.asarray(classifier.kernel)
    np.testing.assert_allclose(bias, np.zeros((10, 3)), atol=1e-5)


def test_an_unknown_regime_is_named(dataset, tmp_path):
    with pytest.raises(ValueError, match="regime must be one of standard, .*, got 'adversarial'"):
        train(dataset, tmp_path, "adversarial")


def test_regimes_share_initial_parameters_and_batches_but_no_folder(dataset, tmp_path, monkeypatch):
    calls = {}

    def record(model, optimizer, make_batches, *, num_epochs, checkpoint_dir, loss_fn):
        del optimizer
        batches = [batch for epoch in range(num_epochs) for batch in make_batches(epoch)]
        calls[Path(checkpoint_dir)] = nnx.state(model), batches, loss_fn
        # What resumed training depends on: an epoch repeats, whatever came before it.
        last = list(make_batches(num_epochs - 1))
        chex.assert_trees_all_equal(last, batches[-len(last) :])

    monkeypatch.setattr(classifiers.training, "fit", record)
    for regime in training_regimes.REGIMES:
        train(dataset._replace(modalities=("upper",)), tmp_path, regime)
    assert len(calls) == len(training_regimes.REGIMES)
    state, batches, _ = calls[tmp_path / "checkpoints" / "upper"]
    assert len(batches) == 9
    assert len({tuple(jax.random.key_data(batch["key"]).tolist()) for batch in batches}) == 9
    for regime in training_regimes.REGIMES[1:]:
        other_state, other_batches, loss_fn = calls[tmp_path / f"checkpoints_{regime}" / "upper"]
        chex.assert_trees_all_equal(state, other_state)
        chex.assert_trees_all_equal(batches, other_batches)
        assert loss_fn is training_regimes.choose_loss_fn(regime)
