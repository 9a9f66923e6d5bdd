"""A model whose optimal perturbations are known, and attacks on it under jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

BATCH = 6
DUAL = {"linf": 1, "l2": 2}  # order of the dual norm


class LinearModel:
    """A linear classifier of two modalities, which it gets right, so that optima are known."""

    def __init__(self, dtype="float64", num_classes=2, image_shape=(4, 5, 1)):
        rng = np.random.default_rng(0)
        self.num_classes = num_classes
        shapes = {"image": image_shape, "audio": (6,)}
        self.inputs = {m: rng.uniform(size=(BATCH, *s)).astype(dtype) for m, s in shapes.items()}
        self.kernels = {
            m: rng.normal(size=(int(np.prod(s)), num_classes)).astype(dtype)
            for m, s in shapes.items()
        }
        self.labels = np.zeros(BATCH, int)
        self.labels = self.log_probs_in_numpy(self.inputs).argmax(axis=1)

    def logits(self, inputs):
        image, audio = (inputs[m].reshape(BATCH, -1) @ k for m, k in self.kernels.items())
        return image + audio

    def log_probs(self, inputs):
        return jax.nn.log_softmax(self.logits(inputs))

    def log_probs_in_numpy(self, inputs):
        arrays = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
        return log_softmax(self.logits(arrays), axis=1)

    def margin(self, inputs):
        """The margin, (B,), in NumPy."""
        log_probs = self.log_probs_in_numpy(inputs)
        of_label = log_probs[np.arange(BATCH), self.labels]
        log_probs[np.arange(BATCH), self.labels] = -np.inf
        return log_probs.max(axis=1) - of_label

    def ascent(self, name):
        """The gradient of the margin of two classes, (B, D)."""
        difference = self.kernels[name][:, 1] - self.kernels[name][:, 0]
        return np.where(self.labels[:, None] == 0, difference, -difference)

    def spoiled(self, inputs, spoil=True):
        """Log-probabilities that turn NaN in sample 0 and constant in sample 1, if `spoil`."""
        sample = jnp.arange(BATCH)[:, None]
        constant = jnp.where(jnp.arange(self.num_classes) == self.labels[1], -1.0, -2.0)
        log_probs = jnp.where(spoil & (sample == 1), constant, self.log_probs(inputs))
        return log_probs * jnp.where(spoil & (sample == 0), jnp.nan, 1).astype(log_probs.dtype)


def perturbation_norms(clean, adversarial, norm):
    delta = np.asarray(adversarial - clean, np.float64).reshape(len(clean), -1)
    return np.linalg.norm(delta, ord={"linf": np.inf, "l2": 2}[norm], axis=1)


@functools.cache
def compiled(attack, dtype, num_classes, image_shape, static):
    """The attack on a LinearModel under jit, and a list that grows with every trace."""
    model = LinearModel(dtype, num_classes, image_shape)
    traces = []

    def perturb(seed, spoil, labels, numbers):
        traces.append(seed)
        log_prob_fn = functools.partial(model.spoiled, spoil=spoil)
        kwargs = {**numbers, **dict(static)}
        return attack(log_prob_fn, model.inputs, labels, jax.random.key(seed), **kwargs)

    # Compiling takes most of the time of these tests, and running it next to none.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(perturb, compiler_options=options), perturb, traces


def run(
    attack,
    numbers,
    *,
    seed=0,
    spoil=False,
    labels=None,
    dtype="float64",
    num_classes=2,
    image_shape=(4, 5, 1),
    jit=True,
    **static,
):
    """The attack, compiled once for all tests that differ in seed, labels and `numbers` only."""
    case = (attack, dtype, num_classes, image_shape, tuple(sorted(static.items())))
    if labels is None:
        labels = LinearModel(dtype, num_classes, image_shape).labels
    jitted, eager, _ = compiled(*case)
    return (jitted if jit else eager)(seed, np.array(spoil), labels, numbers)


def assert_compiles_once(attack, first, second, **static):
    """Two budgets under one trace, of which the second agrees with the attack without jit."""
    traces = compiled(attack, "float64", 2, (4, 5, 1), tuple(sorted(static.items())))[2]
    outputs = [run(attack, first, **static)]
    num_traces = len(traces)
    outputs.append(run(attack, second, **static))
    assert len(traces) == num_traces
    eager = run(attack, second, jit=False, **static)
    for name in ("audio", "image"):
        np.testing.assert_allclose(outputs[1][name], eager[name], atol=1e-12)
    assert any(not np.array_equal(outputs[0][m], outputs[1][m]) for m in ("audio", "image"))
