import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import classifiers
from jacfuse_jax.models import LeNet


def test_input_grams_are_those_of_forward_mode_jacobians():
    model = LeNet((6, 5, 1), 3, channels=(4,), kernel_size=3, hidden_sizes=(7,), rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(model)
    classifier = classifiers.Classifier(
        lambda p, x: nnx.merge(graph, p)(x).logits, parameters, model.head.kernel[...]
    )
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 5, 1)), jnp.float32)
    grams = classifiers.input_grams(classifier, parameters, inputs)
    assert grams.shape == (4, 3, 3)
    for x, gram in zip(inputs, grams, strict=True):
        jac = jax.jacfwd(lambda x: classifier.logits_fn(parameters, x[None])[0])(x)
        flat = np.asarray(jac, np.float64).reshape(3, -1)
        np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-4, atol=1e-6)
