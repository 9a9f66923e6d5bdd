"""Peers of the library in the benchmark: routines of SciPy and JAX for the same inputs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import scipy.linalg
import scipy.special

from experiments.measuring.operation_inputs import STRENGTH, Inputs


def jax_schur(inputs: Inputs) -> Any:
    """Complex Schur forms of A, which JAX has on CPUs alone."""
    return jax.vmap(partial(jax.scipy.linalg.schur, output="complex"))(inputs.samples["a"])


def scipy_schur(inputs: Inputs) -> Any:
    """Complex Schur forms of A, one matrix after the other."""
    forms = [scipy.linalg.schur(a, output="complex") for a in inputs.samples["a"]]
    return tuple(map(np.stack, zip(*forms, strict=True)))


def eigh(inputs: Inputs) -> Any:
    """Other matrices than the rest: the symmetric parts, whose Schur form is diagonal."""
    a = inputs.samples["a"]
    return jax.vmap(jnp.linalg.eigh)((a + jnp.swapaxes(a, -1, -2)) / 2)


def eig(inputs: Inputs) -> Any:
    """Eigenvectors instead of a Schur form, which defective matrices do not have."""
    return jax.vmap(jnp.linalg.eig)(inputs.samples["a"])


def jax_sylvester(method: str, inputs: Inputs) -> Any:
    """X of A X + X B = C by one of the methods that JAX has."""
    solve_fn = partial(jax.scipy.linalg.solve_sylvester, method=method)
    return jax.vmap(solve_fn)(*(inputs.samples[name] for name in "abc"))


def scipy_sylvester(inputs: Inputs) -> Any:
    """X of A X + X B = C, one system after the other."""
    systems = zip(*(inputs.samples[name] for name in "abc"), strict=True)
    return np.stack([scipy.linalg.solve_sylvester(a, b, c) for a, b, c in systems])


def scipy_recalibrate(inputs: Inputs) -> Any:
    """R z from the Sylvester equation A R + R G^-1 = G^-1, A = c J^2."""
    inverse = np.linalg.inv(inputs.shared["gram"])
    results: list[Any] = []
    for p, z in zip(inputs.samples["probs"], inputs.samples["logits"], strict=True):
        J = np.diag(p) - np.outer(p, p)
        results.append(scipy.linalg.solve_sylvester(STRENGTH * J @ J, inverse, inverse) @ z)
    return np.stack(results)


def scipy_statistical_fusion(inputs: Inputs) -> Any:
    """Log-probabilities of two modalities, one sample after the other."""
    log_prior = np.log(inputs.shared["class_prior"])
    return np.stack(
        [
            scipy.special.log_softmax(
                scipy.special.log_softmax(image) + scipy.special.log_softmax(audio) - log_prior
            )
            for image, audio in zip(*(inputs.samples[m] for m in ("image", "audio")), strict=True)
        ]
    )
