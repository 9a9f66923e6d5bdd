"""What no corruption of a modality, however strong, can overturn.

`fusion.contaminated_fusion` adds t_m (log p~_m(k) - log prior_k) for every modality to log prior_k,
p~_m = (1 - e_m) q_m + e_m prior, where an attacker of modality m chooses any q_m in the simplex.
What that modality adds to the log-odds of class k over y,

    t log [((1 - e) q_k / prior_k + e) / ((1 - e) q_y / prior_y + e)],

increases in q_k and decreases in q_y, so that the attacker does best with q_k = 1:

    b_k = t [log((1 - e) / prior_k + e) - log e].

With A the log prior and what all other modalities add, class y is fused whatever the corrupted ones
say if A_y - A_k > (sum of b_k over corrupted modalities) for all k, and can be overturned if the
opposite inequality holds for one k. The bound is thus exact. Derived here.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import (
    check_inputs,
    check_labelled,
    check_modalities,
    check_numbers,
    check_scalar,
)
from jacfuse_jax._likelihoods import fuse_independent
from jacfuse_jax._simplex import mark_class, rounding_of_sum
from jacfuse_jax.fusion import cascade_fusion
from jacfuse_jax.fusion._contaminated import tempered_log_ratios


class Certificate(NamedTuple):
    """What `certify_modality` returns.

    Attributes:
      label: (B,), int32, the fused class.
      certified: (B,), bool, whether no input of the corrupted modalities changes it.
      margin: (B,), log-odds by which the class leads the closest other one in the worst case; in
        float32 for half precision. Where it is within rounding of zero, contaminated fusion
        certifies nothing. Trusted modalities that decide a cascade are certified with their tie, of
        margin zero, too: their first class it is, whatever the others say.
    """

    label: jax.Array
    certified: jax.Array
    margin: jax.Array


class CertifiedAccuracy(NamedTuple):
    """Accuracies of `certified_accuracy` for C contaminations.

    Attributes:
      clean: (C,), share of samples whose fused class is the label.
      certified: (C,), share of those that are certified, too: accuracy under any corruption is at
        least this.
    """

    clean: jax.Array
    certified: jax.Array


def certify_modality(
    logits: Mapping[str, ArrayLike],
    class_prior: ArrayLike,
    *,
    contamination: ArrayLike,
    corrupted: str | tuple[str, ...] | int,
    tempering: ArrayLike = 1.0,
    perturbed: str | tuple[str, ...] | None = None,
    confidence: ArrayLike = 1.0,
) -> Certificate:
    """Certifies fused classes against arbitrary corruption of modalities.

    The rule is `fusion.contaminated_fusion` or, with a confidence below 1, `fusion.cascade_fusion`,
    of which samples that the trusted modalities decide are certified as soon as only perturbed ones
    are corrupted. For contaminated fusion the bound is exact: see the module's text.

    A modality that is corrupted without being believed perturbed has unbounded influence: nothing
    is certified then. The same holds for contamination = 0, unless tempering = 0. What the
    corrupted modalities say of the sample enters the fused class only, so that the certificate of a
    sample is the same before and after the corruption where the class is certified.

    Args:
      logits: z, {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      contamination: e in [0, 1], a scalar, traced or not.
      corrupted: name or names of the modalities that may say anything, all at once; or a number s:
        any s of them at once; "any_one" is 1. Static.
      tempering: t in [0, 1], a scalar, traced or not.
      perturbed: name or names of the modalities that the rule bounds; static. None: all of them.
      confidence: of cascades, in [0, 1], a scalar; 1 is contaminated fusion.

    Returns:
      `Certificate(label (B,), certified (B,), margin (B,))`. A perturbed modality may be NaN or
      infinite; samples of which a trusted one is are not certified.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree, a modality is unknown, a number of modalities is not in 1 ... M,
        a prior is not positive or does not sum to one, or a parameter lies outside [0, 1].

    References:
      Derived here.
    """
    arrays, log_prior = check_inputs(logits, class_prior)
    dtype = log_prior.dtype
    names = tuple(arrays) if perturbed is None else check_modalities("perturbed", perturbed, arrays)
    cases = _cases(corrupted, arrays)
    e = check_scalar("contamination", contamination, dtype, high=1)
    t = check_scalar("tempering", tempering, dtype, high=1)
    c = check_scalar("confidence", confidence, dtype, high=1)
    fused = cascade_fusion(
        arrays, class_prior, perturbed=names, confidence=c, contamination=e, tempering=t
    )
    label = fused.argmax(axis=-1).astype(jnp.int32)
    is_label = mark_class(label, fused)
    ratios = tempered_log_ratios(arrays, log_prior, names, e, t)
    log_prior = log_prior[None]
    bound = jnp.where(t > 0, t * (jnp.log((1 - e) * jnp.exp(-log_prior) + e) - jnp.log(e)), 0)
    trusted = {name: z for name, z in arrays.items() if name not in names}
    # A margin below the rounding errors of both classes may have the wrong sign.
    rounding = rounding_of_sum(log_prior, bound, *ratios.values())

    def certify(corrupted: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
        rest = sum((r for name, r in ratios.items() if name not in corrupted), start=log_prior)
        gain = sum(bound if name in names else jnp.inf for name in corrupted)
        # Where another modality excludes a class, it stays excluded, whatever is gained.
        worst = jnp.where(rest == -jnp.inf, rest, rest + gain)

        def lead(rounding: jax.Array | float) -> jax.Array:
            of_label = jnp.where(is_label, rest - rounding, -jnp.inf).max(axis=-1)
            return of_label - jnp.where(is_label, -jnp.inf, worst + rounding).max(axis=-1)

        certified, margin = lead(rounding) > 0, lead(0.0)
        if trusted and set(corrupted) <= set(names):
            log_trusted = fuse_independent(trusted, log_prior[0])
            confidence = jnp.exp(log_trusted.max(axis=-1))
            top = jnp.where(is_label, -jnp.inf, log_trusted).max(axis=-1)
            margin = jnp.where(confidence > c, log_trusted.max(axis=-1) - top, margin)
            certified |= confidence > c + 8 * (len(arrays) + 1) * jnp.finfo(dtype).eps
        return certified, margin

    results = [certify(case) for case in cases]
    certified = jnp.stack([of_case for of_case, _ in results]).all(axis=0)
    margin = jnp.stack([of_case for _, of_case in results]).min(axis=0)
    return Certificate(label, certified & ~jnp.isnan(fused).any(axis=-1), margin)


def certified_accuracy(
    logits: Mapping[str, ArrayLike],
    labels: ArrayLike,
    class_prior: ArrayLike,
    *,
    contaminations: ArrayLike,
    corrupted: str | tuple[str, ...] | int,
    tempering: ArrayLike = 1.0,
    perturbed: str | tuple[str, ...] | None = None,
    confidence: ArrayLike = 1.0,
) -> CertifiedAccuracy:
    """Clean and certified accuracy as functions of the contamination, in one vectorised call.

    Args:
      logits: z, {modality: (B, K)}, floating, at least one modality.
      labels: (B,), integer.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      contaminations: (C,), each in [0, 1], traced or not.
      corrupted: as for `certify_modality`, like all that follows.
      tempering: as there.
      perturbed: as there.
      confidence: as there.

    Returns:
      `CertifiedAccuracy(clean (C,), certified (C,))`.

    Raises:
      TypeError, ValueError: as `certify_modality`, or labels are not (B,).
    """
    arrays, classes, dtype = check_labelled(logits, labels)
    is_known = classes < next(iter(arrays.values())).shape[1]

    def accuracies(contamination: jax.Array) -> CertifiedAccuracy:
        label, certified, _ = certify_modality(
            arrays,
            class_prior,
            contamination=contamination,
            corrupted=corrupted,
            tempering=tempering,
            perturbed=perturbed,
            confidence=confidence,
        )
        is_correct = jnp.where(is_known, (label == classes).astype(dtype), jnp.nan)
        # Of a contamination that is no number the margins are none either.
        is_correct = jnp.where(jnp.isnan(contamination), jnp.nan, is_correct)
        return CertifiedAccuracy(is_correct.mean(), jnp.where(certified, is_correct, 0).mean())

    return jax.vmap(accuracies)(check_numbers("contaminations", contaminations, dtype, high=1))


def _cases(
    corrupted: str | tuple[str, ...] | int, logits: Mapping[str, jax.Array]
) -> list[tuple[str, ...]]:
    """The sets of modalities that may be corrupted."""
    number = 1 if corrupted == "any_one" else corrupted
    if isinstance(number, int):
        if not 1 <= number <= len(logits):
            raise ValueError(f"corrupted must lie in 1 ... {len(logits)}, got {number}")
        return list(itertools.combinations(logits, number))
    return [check_modalities("corrupted", number, logits)]
