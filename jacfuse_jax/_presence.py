"""Rows that lack modalities: independence given the class marginalises what is missing exactly.

A modality that says the prior adds nothing to any class: log softmax(log prior) - log prior = 0. So
the prior stands in for what is missing, whatever is in the array there, and its gradient is zero.
"""

import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from jacfuse_jax._arrays import AnyArray, known_array
from jacfuse_jax._checks import check_inputs, check_logits, check_mapping, check_modalities
from jacfuse_jax._likelihoods import like_rows

Present = Mapping[str, AnyArray]


def check_present(present: Present | None, logits: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns which rows have a modality as (B, 1), of those that rows may lack.

    Raises unless all are boolean, (B,), and of known modalities.
    """
    if present is None:
        return {}
    check_mapping("present", present, "(B,) bool")
    check_modalities("present", tuple(present), logits)
    shape = next(iter(logits.values())).shape[:1]
    checked: dict[str, jax.Array] = {}
    for name, array in present.items():
        mask = known_array(array)
        if mask.dtype != jnp.bool_:
            raise TypeError(f"present[{name!r}] must be bool, got {mask.dtype}")
        if mask.shape != shape:
            raise ValueError(f"present[{name!r}] must have shape {shape}, got {mask.shape}")
        checked[name] = mask[:, None]
    return checked


def silence(
    logits: Mapping[str, jax.Array], log_prior: jax.Array, present: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Logits (..., K) with the log-prior in the place of what is missing."""
    return {
        name: jnp.where(present[name], z, like_rows(log_prior, z)) if name in present else z
        for name, z in logits.items()
    }


def check_available(
    logits: Mapping[str, AnyArray], class_prior: AnyArray, present: Present | None
) -> tuple[dict[str, jax.Array], jax.Array, dict[str, jax.Array]]:
    """Returns logits as `silence`, the logarithm of the prior, and `check_present`."""
    arrays, log_prior = check_inputs(logits, class_prior)
    checked = check_present(present, arrays)
    return silence(arrays, log_prior, checked), log_prior, checked


def any_of(names: Iterable[str], present: Mapping[str, jax.Array]) -> jax.Array:
    """Which rows have one of these modalities, (B, 1), or () where no row lacks all of them."""
    masks = [present.get(name, jnp.asarray(True)) for name in names]
    return functools.reduce(jnp.logical_or, masks, jnp.asarray(False))


def stack_log_probs(
    logits: Mapping[str, AnyArray], class_prior: AnyArray | None, present: Present | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities (M, B, K), which count, (M, B, 1) or (M, 1, 1), and `any_of` all.

    Where a row has no modality, the first one counts, and says the prior. Raises ValueError where
    rows may lack modalities and there is no prior.
    """
    if present is None:
        arrays, checked = check_logits(logits), {}
    elif class_prior is None:
        raise ValueError("present needs class_prior, which rows without any modality give")
    else:
        arrays, _, checked = check_available(logits, class_prior, present)
    log_probs = jnp.stack([jax.nn.log_softmax(z) for z in arrays.values()])
    # Made of a mask, so that it lies where that does.
    everywhere = next(iter(checked.values()), jnp.ones((1, 1), bool)) | True
    first, *others = (checked.get(name, everywhere) for name in arrays)
    has_any = any_of(arrays, checked)
    return log_probs, jnp.stack([first | ~has_any, *others]), has_any
