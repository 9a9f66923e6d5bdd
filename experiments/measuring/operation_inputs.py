"""Random inputs of the operations that the benchmark measures."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax import jacobians, linalg

GAMMA = 0.1
STRENGTH = (1 - GAMMA) / GAMMA
NUM_INPUTS = NUM_HIDDEN = 64  # of classifiers


class Inputs(NamedTuple):
    """Arrays by name: per sample, with a leading axis of B, and shared by all samples."""

    samples: dict[str, Any]
    shared: dict[str, Any]

    def take(self, num_samples: int, *, as_numpy: bool = False) -> "Inputs":
        """The first samples; the arrays themselves where that is all of them."""
        taken = {
            name: x if len(x) == num_samples else x[:num_samples]
            for name, x in self.samples.items()
        }
        inputs = Inputs(taken, self.shared)
        return jax.tree.map(np.asarray, inputs) if as_numpy else inputs


def matrix_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Real A and B, eigenvalues in a disk of radius about 1 around 3: X is well defined."""
    shape = (batch_size, num_classes, num_classes)
    shift = 3 * jnp.eye(num_classes, dtype=dtype)[None]
    a, b, c = (jax.random.normal(k, shape, dtype) for k in jax.random.split(key, 3))
    return Inputs(
        {"a": a / num_classes**0.5 + shift, "b": b / num_classes**0.5 + shift, "c": c}, {}
    )


def recalibration_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Logits, their probabilities, and the Gram matrix of a linear head."""
    # One array at a time and no temporaries of its size: a million samples fill gigabytes.
    kernel_key, logits_key = jax.random.split(key)
    kernel = _kernel(kernel_key, num_classes, dtype)
    logits = 3 * jax.random.normal(logits_key, (batch_size, num_classes), dtype)
    return Inputs(
        {"logits": logits, "probs": jax.nn.softmax(logits)},
        {
            "gram": jacobians.gram_from_head(kernel),
            "spectrum": linalg.spectrum_from_kernel(kernel),
        },
    )


def fusion_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Logits of two modalities, the spectrum of one, and a class prior."""
    image_key, audio_key, prior_key = jax.random.split(key, 3)
    audio = recalibration_inputs(audio_key, batch_size, num_classes, dtype)
    image = 3 * jax.random.normal(image_key, (batch_size, num_classes), dtype)
    prior = jax.nn.softmax(jax.random.normal(prior_key, (num_classes,), dtype))
    return Inputs(
        {"image": image, "audio": audio.samples["logits"]},
        {"spectrum": audio.shared["spectrum"], "class_prior": prior},
    )


def feature_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Features h, recalibration matrices R and the kernel W of p = softmax(R W^T h)."""
    sample_key, kernel_key = jax.random.split(key)
    kernel = _kernel(kernel_key, num_classes, dtype)
    features = jax.random.normal(sample_key, (batch_size, len(kernel)), dtype)
    probs = jax.nn.softmax(features @ kernel)
    recalibration = linalg.recalibration_matrix(
        probs, linalg.spectrum_from_kernel(kernel), STRENGTH
    )
    return Inputs({"features": features, "recalibration": recalibration}, {"kernel": kernel})


def classifier_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Inputs and labels of two classifiers with one hidden layer, their kernels, and a prior."""
    keys = iter(jax.random.split(key, 7))
    shape = (batch_size, NUM_INPUTS)
    samples = {m: jax.random.normal(next(keys), shape, dtype) for m in ("image", "audio")}
    kernels = {
        m: (
            jax.random.normal(next(keys), (NUM_INPUTS, NUM_HIDDEN), dtype) / NUM_INPUTS**0.5,
            jax.random.normal(next(keys), (NUM_HIDDEN, num_classes), dtype) / NUM_HIDDEN**0.5,
        )
        for m in samples
    }
    labels = jax.random.randint(next(keys), (batch_size,), 0, num_classes, "int32")
    spectrum = linalg.spectrum_from_kernel(kernels["audio"][1])
    prior = jnp.full(num_classes, 1 / num_classes, dtype)
    return Inputs(
        {**samples, "labels": labels},
        {"kernels": kernels, "spectrum": spectrum, "class_prior": prior},
    )


def _kernel(key: jax.Array, num_classes: int, dtype: str) -> jax.Array:
    """W, (2 K, K), of a linear head; its Gram matrix is invertible, as SciPy's solver needs."""
    shape = (2 * num_classes, num_classes)
    return jax.random.normal(key, shape, dtype) / shape[0] ** 0.5
