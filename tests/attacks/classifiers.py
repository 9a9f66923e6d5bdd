"""Linear classifiers of two modalities, fused, and attacks on them."""

import jax
import numpy as np

from jacfuse_jax import attacks, fusion

BATCH = 6


class Classifiers:
    """Linear classifiers of two modalities, so that optimal attacks are known."""

    def __init__(self, dtype="float64", num_classes=3):
        rng = np.random.default_rng(0)
        self.kernels = {
            "image": rng.normal(size=(8, num_classes)).astype(dtype),
            "audio": rng.normal(size=(5, num_classes)).astype(dtype),
        }
        self.inputs = {
            "image": rng.uniform(size=(BATCH, 2, 4)).astype(dtype),
            "audio": rng.uniform(size=(BATCH, 5)).astype(dtype),
        }
        self.labels = rng.integers(num_classes, size=BATCH)
        self.prior = np.full(num_classes, 1 / num_classes, dtype)

    def logits(self, inputs):
        return {m: x.reshape(len(x), -1) @ self.kernels[m] for m, x in inputs.items()}

    def log_probs(self, inputs):
        return fusion.statistical_fusion(self.logits(inputs), self.prior)

    def loss(self, inputs):
        return -np.take_along_axis(np.asarray(self.log_probs(inputs)), self.labels[:, None], 1)[
            :, 0
        ]


def perturbation_norms(clean, adversarial, norm):
    delta = np.asarray(adversarial - clean, np.float64).reshape(len(clean), -1)
    return np.linalg.norm(delta, ord={"linf": np.inf, "l2": 2}[norm], axis=1)


def run(attack, model, **kwargs):
    if attack is attacks.pgd:
        kwargs = {"key": jax.random.key(0), **kwargs}
    return attack(model.log_probs, model.inputs, model.labels, **kwargs)
