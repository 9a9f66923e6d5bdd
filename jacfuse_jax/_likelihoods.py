"""Likelihood ratios of modalities that are independent given the class, and what they add up to."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jacfuse_jax._simplex import rounding_of_sum


def fuse_independent(logits: Mapping[str, jax.Array], log_prior: jax.Array) -> jax.Array:
    """Log softmax(sum_m z_m - (M - 1) log prior) over the last axis."""
    # Normalising each modality first keeps the sum of large logits from losing digits.
    terms = [jax.nn.log_softmax(z) for z in logits.values()]
    log_probs = sum(terms[1:], start=terms[0])
    return jax.nn.log_softmax(log_probs - (len(logits) - 1) * like_rows(log_prior, log_probs))


def log_ratio(z: jax.Array, log_prior: jax.Array) -> jax.Array:
    """The log-likelihood ratios log softmax(z) - log prior of rows (..., K)."""
    return jax.nn.log_softmax(z) - like_rows(log_prior, z)


def rounding_of_probs(logits: Mapping[str, jax.Array], log_prior: jax.Array) -> jax.Array:
    """By how much log-probabilities of statistical fusion may be wrong, (B,)."""
    ratios = (log_ratio(z, log_prior) for z in logits.values())
    return rounding_of_sum(log_prior[None], *ratios).max(axis=-1)


def temper(log_ratios: jax.Array, t: jax.Array) -> jax.Array:
    """Log-ratios times t; zero where t = 0, whatever they are."""
    return t * jnp.where((t == 0) & ~jnp.isfinite(log_ratios), 0, log_ratios)


def like_rows(vector: jax.Array, rows: jax.Array) -> jax.Array:
    """(K,) with as many axes as rows (..., K)."""
    return vector.reshape((1,) * (rows.ndim - 1) + vector.shape)
