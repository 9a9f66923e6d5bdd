"""Cascades: modalities that are trusted decide alone where they are sure."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray, in_dtype_of
from jacfuse_jax._checks import check_modalities, check_scalar
from jacfuse_jax._likelihoods import fuse_independent
from jacfuse_jax._presence import Present, any_of, check_available
from jacfuse_jax.fusion._contaminated import contaminated_fusion
from jacfuse_jax.fusion._gate import Gate, check_gate, compare


def cascade_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    perturbed: str | tuple[str, ...],
    confidence: ArrayLike,
    contamination: ArrayLike = 0.0,
    tempering: ArrayLike = 1.0,
    present: Present | None = None,
) -> jax.Array:
    """Asks perturbed modalities only where the trusted ones are not sure.

    With p_T the statistical fusion of the trusted modalities,

        p = p_T where max_k p_T(k) > confidence, `contaminated_fusion` of all modalities elsewhere.

    Where p_T decides, nothing that is done to a perturbed modality changes the prediction: these
    samples are certified. Conversely, whatever the rule, trusted modalities alone determine the
    class of a sample that is certified against arbitrary corruption. If the posteriors are right,
    no rule that certifies the same samples is more accurate on clean data than letting p_T decide
    on these and fusing everything elsewhere.

    confidence = 0 drops the perturbed modalities, confidence = 1 is contaminated fusion; so is any
    confidence where no modality is trusted, or a row has none that is.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      confidence: in [0, 1], a scalar, traced or not.
      contamination: of the perturbed modalities where they are asked, in [0, 1].
      tempering: of the perturbed modalities where they are asked, in [0, 1].
      present: see `statistical_fusion`.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive or does not sum to
        one, or confidence, contamination or tempering lies outside [0, 1].

    References:
      Derived here. Cascades: Viola and Jones, "Rapid Object Detection using a Boosted Cascade of
      Simple Features", 2001; confidence thresholds: Chow, "On Optimum Recognition Error and Reject
      Tradeoff", 1970.
    """
    arrays, log_prior, checked = check_available(logits, class_prior, present)
    names = check_modalities("perturbed", perturbed, arrays)
    confidence = check_scalar("confidence", confidence, log_prior.dtype, high=1)
    fused = contaminated_fusion(
        arrays,
        class_prior,
        contamination=contamination,
        tempering=tempering,
        perturbed=names,
    )

    def is_sure(log_trusted: jax.Array) -> jax.Array:
        return jnp.exp(log_trusted.max(axis=-1)) > confidence

    return in_dtype_of(logits, _decide(arrays, log_prior, checked, names, fused, is_sure))


def learned_cascade_fusion(
    logits: Mapping[str, AnyArray],
    class_prior: AnyArray,
    *,
    perturbed: str | tuple[str, ...],
    share: ArrayLike,
    gate: Gate,
    present: Present | None = None,
) -> jax.Array:
    """Asks perturbed modalities only where that is worth it for a share of attacked inputs.

    With p_T the statistical fusion of the trusted modalities, and all probabilities functions of
    p_T alone, whose weights are fitted on validation rows,

        p = p_T where P(trusted right) > (1 - s) P(fused right) + s P(fused right if attacked),
        statistical fusion of all modalities elsewhere.

    The best of all cascades if the probabilities are right: see the text of `fusion._gate`. Samples
    that p_T decides are certified, as in `cascade_fusion`; what is said there of rows and rules
    without a trusted modality, and of NaN, holds here, too.

    Args:
      logits: {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      share: s, in [0, 1], a scalar, traced or not.
      gate: fitted by `selection.fit_gate` for the same classes and modalities.
      present: see `statistical_fusion`.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError: logits are not floating, or presence is not bool.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive or does not sum to
        one, the share lies outside [0, 1], or the gate is for another number of classes.

    References:
      Derived here. Deferring to another expert where that pays: Madras, Pitassi, Zemel, "Predict
      Responsibly: Improving Fairness and Accuracy by Learning to Defer", 2018.
    """
    arrays, log_prior, checked = check_available(logits, class_prior, present)
    names = check_modalities("perturbed", perturbed, arrays)
    share = check_scalar("share", share, log_prior.dtype, high=1)
    check_gate(gate, len(log_prior))
    # Where nothing is contaminated, perturbed modalities that say nothing count as the prior.
    fused = contaminated_fusion(arrays, class_prior, contamination=0.0, perturbed=names)

    def is_sure(log_trusted: jax.Array) -> jax.Array:
        return compare(gate, share, log_trusted)[0] > 0

    return in_dtype_of(logits, _decide(arrays, log_prior, checked, names, fused, is_sure))


def _decide(
    arrays: Mapping[str, jax.Array],
    log_prior: jax.Array,
    present: Mapping[str, jax.Array],
    perturbed: tuple[str, ...],
    fused: jax.Array,
    is_sure_fn: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Trusted modalities where a function (B,) of their log-probabilities says so, else `fused`."""
    trusted = {name: z for name, z in arrays.items() if name not in perturbed}
    if not trusted:
        return fused
    log_trusted = fuse_independent(trusted, log_prior)
    is_sure = is_sure_fn(log_trusted)[:, None] & any_of(trusted, present)
    return jnp.where(is_sure, log_trusted, fused)
