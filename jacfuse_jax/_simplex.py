"""Probabilities of classes where floating point is at its limits: saturated, excluded, unknown."""

import math

import jax
import jax.numpy as jnp


def complement(probs: jax.Array) -> jax.Array:
    """1 - p of every class as the sum over the other classes, (..., K).

    The difference has no digits left where p rounds to one. At most one class exceeds 1/2: only of
    the likeliest one the others are added up.
    """
    is_top = mark_likeliest(probs)
    others = jnp.where(is_top, 0, probs).sum(axis=-1, keepdims=True)
    return jnp.where(is_top, others, 1 - probs)


def log_complement(log_probs: jax.Array) -> jax.Array:
    """log(1 - p) of every class, (..., K), from normalised log-probabilities, as `complement`."""
    is_top = mark_likeliest(log_probs)
    others = jax.nn.logsumexp(jnp.where(is_top, -jnp.inf, log_probs), axis=-1, keepdims=True)
    # The likeliest is exchanged before log1p, too, whose derivative is infinite at a p of one.
    return jnp.where(is_top, others, jnp.log1p(-jnp.exp(jnp.where(is_top, -1, log_probs))))


def log_jacobian_norm(log_probs: jax.Array) -> jax.Array:
    """The logarithm of max_i 2 p_i (1 - p_i), (...), which bounds ||diag(p) - p p^T||_2.

    By Gershgorin's theorem; -inf where p is one-hot.
    """
    return math.log(2) + (log_probs + log_complement(log_probs)).max(axis=-1)


def says_nothing(logits: jax.Array) -> jax.Array:
    """Whether rows are no logits, (..., 1): one with NaN or +inf, or with nothing finite."""
    is_unusable = jnp.isnan(logits) | (logits == jnp.inf)
    return is_unusable.any(axis=-1, keepdims=True) | ~jnp.isfinite(logits).any(
        axis=-1, keepdims=True
    )


def fill_excluded(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits (..., K) in which a class that is excluded reads as the least likely of the others.

    Also returned is which classes those are: of logit -inf, in a row that has a finite one.
    """
    is_excluded = (logits == -jnp.inf) & jnp.isfinite(logits).any(axis=-1, keepdims=True)
    least = jnp.where(is_excluded, jnp.inf, logits).min(axis=-1, keepdims=True)
    return jnp.where(is_excluded, least, logits), is_excluded


def log_add(x: jax.Array, y: jax.Array) -> jax.Array:
    """log(exp(x) + exp(y)), with a gradient of zero where both are -inf."""
    is_zero = (x == -jnp.inf) & (y == -jnp.inf)
    return jnp.where(is_zero, -jnp.inf, jnp.logaddexp(jnp.where(is_zero, 0, x), y))


def rounding_of_sum(*terms: jax.Array) -> jax.Array:
    """By how much a sum of logarithms (B, K) may be wrong, entry by entry; infinite ones are exact.

    Eight eps of the size of all of them for each.
    """
    sizes = [jnp.asarray(jnp.where(jnp.isfinite(term), jnp.abs(term), 0)) for term in terms]
    eps = float(jnp.finfo(terms[0].dtype).eps)
    return 8 * len(terms) * eps * (1 + sum(sizes[1:], start=sizes[0]))


def mark_class(classes: jax.Array, rows: jax.Array) -> jax.Array:
    """Where a class (...) stands in rows (..., K)."""
    own = jax.lax.broadcasted_iota(classes.dtype, rows.shape, rows.ndim - 1)
    return own == classes[..., None]


def mark_likeliest(rows: jax.Array) -> jax.Array:
    """Marks one largest entry of rows (..., K)."""
    return mark_class(rows.argmax(axis=-1), rows)
