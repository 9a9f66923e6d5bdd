"""Linear classifiers of two modalities, fused, and gradient attacks on them, compiled once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from jacfuse_jax import attacks, fusion

BATCH = 6
SOUND = {"factor": np.ones(BATCH), "radicand": np.ones(BATCH)}
"""Per sample a factor of the log-probabilities, and what a root that counts for nothing is of."""
TRACES = []
"""Grows whenever an attack is traced."""


class Classifiers:
    """Linear classifiers of two modalities, so that optimal attacks are known; answers in NumPy."""

    def __init__(self, dtype="float64", num_classes=3):
        rng = np.random.default_rng(0)
        self.kernels = {
            "image": rng.normal(size=(8, num_classes)).astype(dtype),
            "audio": rng.normal(size=(5, num_classes)).astype(dtype),
        }
        self.inputs = {
            "image": rng.uniform(size=(BATCH, 2, 4)).astype(dtype),
            "audio": rng.uniform(size=(BATCH, 5)).astype(dtype),
            "text": np.arange(BATCH),  # not even floating
        }
        self.labels = rng.integers(num_classes, size=BATCH)

    def log_probs(self, inputs):
        logits = _logits(self.kernels, {m: np.asarray(inputs[m], np.float64) for m in self.kernels})
        return log_softmax(sum(logits.values()), axis=1)  # the prior is uniform

    def loss(self, inputs):
        return -self.log_probs(inputs)[np.arange(BATCH), self.labels]

    def is_misclassified(self, inputs):
        return self.log_probs(inputs).argmax(axis=1) != self.labels


def _logits(kernels, inputs):
    return {m: inputs[m].reshape(len(inputs[m]), -1) @ kernel for m, kernel in kernels.items()}


def fused_log_probs(kernels, inputs):
    """The same as an attack sees it: through the fusion rule, differentiable."""
    kernel = kernels["image"]
    prior = np.full(kernel.shape[1], 1 / kernel.shape[1], kernel.dtype)
    return fusion.statistical_fusion(_logits(kernels, inputs), prior)


def perturbation_norms(clean, adversarial, norm):
    delta = np.asarray(adversarial - clean, np.float64).reshape(len(clean), -1)
    return np.linalg.norm(delta, ord={"linf": np.inf, "l2": 2}[norm], axis=1)


def vertices(audio, radius):
    """All corners of the cube around the audio."""
    signs = np.array(np.meshgrid(*[(-1, 1)] * audio.shape[1])).reshape(audio.shape[1], -1).T
    return [audio + radius * sign for sign in signs]


def attack_classifiers(attack, kernels, inputs, labels, seed, spoil, numbers, static):
    """What `run` compiles: all but the attack and its static options is traced."""
    TRACES.append(attack)

    def log_prob_fn(inputs):
        radicand = spoil["radicand"] + 0 * inputs["image"].astype(float).sum(axis=(1, 2))
        nothing = jnp.sqrt(radicand) - jnp.sqrt(spoil["radicand"])
        log_probs = fused_log_probs(kernels, inputs)
        spoilt = log_probs.astype(float) * spoil["factor"][:, None] + nothing[:, None]
        return spoilt.astype(log_probs.dtype)

    key = () if attack is attacks.fgm else (jax.random.key(seed),)
    return attack(log_prob_fn, inputs, labels, *key, **numbers, **dict(static))


_compiled = jax.jit(attack_classifiers, static_argnames=("attack", "static"))


def run(attack, model, epsilon, valid_range=None, seed=0, spoil=None, **static: Any) -> Any:
    """The attack under jit, one program for all budgets, ranges, keys, labels and classifiers.

    A modality without a budget has the budget zero, and without a range an infinite one.
    """
    numbers = {
        "epsilon": {"image": 0.0, "audio": 0.0, **epsilon},
        "valid_range": {"image": (np.full((2, 4), -np.inf), np.inf), **(valid_range or {})},
    }
    arguments = (model.kernels, model.inputs, model.labels, seed, spoil or SOUND, numbers)
    options = tuple(sorted(static.items()))
    return jax.tree.map(np.asarray, _compiled(attack, *arguments, options))
