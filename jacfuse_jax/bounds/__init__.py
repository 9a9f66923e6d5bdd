"""Sensitivity of fused predictions: what can be said beforehand, and what is true of a sample."""

from jacfuse_jax.bounds._bounds import a_priori_bound, bias_bound
from jacfuse_jax.bounds._jacobians import frozen_jacobian, total_jacobian
from jacfuse_jax.bounds._norms import JacobianNorms, jacobian_norms, spectral_norm

__all__ = [
    "JacobianNorms",
    "a_priori_bound",
    "bias_bound",
    "frozen_jacobian",
    "jacobian_norms",
    "spectral_norm",
    "total_jacobian",
]
