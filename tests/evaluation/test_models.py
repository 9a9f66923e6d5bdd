import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jacfuse_jax.evaluation.models import Classifier, classify, input_grams
from jacfuse_jax.models import LeNet


def make_classifier():
    model = LeNet((6, 5, 1), 3, channels=(4,), kernel_size=3, hidden_sizes=(7,), rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(model)
    return Classifier(lambda p, x: nnx.merge(graph, p)(x), parameters, model.head.kernel[...])


def test_input_grams_are_those_of_forward_mode_jacobians():
    classifier = make_classifier()
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 5, 1)), jnp.float32)
    grams = input_grams(classifier, classifier.parameters, inputs)
    assert grams.shape == (4, 3, 3)
    for x, gram in zip(inputs, grams, strict=True):
        jac = jax.jacfwd(lambda x: classifier.logits_fn(classifier.parameters, x[None])[0])(x)
        flat = np.asarray(jac, np.float64).reshape(3, -1)
        np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-4, atol=1e-6)


def test_predictions_in_batches_are_those_of_all_rows():
    classifier = make_classifier()
    inputs = np.random.default_rng(0).normal(size=(10, 6, 5, 1)).astype(np.float32)
    output = classify(classifier, inputs, batch_size=4)
    assert isinstance(output.logits, np.ndarray)
    assert isinstance(output.features, np.ndarray)
    expected = classifier.output_fn(classifier.parameters, jnp.asarray(inputs))
    chex.assert_trees_all_close(output, expected, rtol=1e-5, atol=1e-6)
    # The kernel is that of the layer between the two.
    bias = output.logits - output.features @ np.asarray(classifier.kernel)
    np.testing.assert_allclose(bias, np.zeros((10, 3)), atol=1e-5)
