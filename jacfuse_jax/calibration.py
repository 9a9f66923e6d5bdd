"""Calibration of classifiers, and the parameters of fusion rules, on clean validation data."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray, as_array
from jacfuse_jax._checks import (
    check_labelled,
    check_labels,
    check_modalities,
    check_numbers,
    check_scalar,
    in_full_precision,
    pick,
)
from jacfuse_jax._simplex import fill_excluded, says_nothing
from jacfuse_jax._weights import check_weights, rows_by_weight, weighted_mean
from jacfuse_jax.certificates import certified_accuracy
from jacfuse_jax.fusion import (
    Cascade,
    Contaminated,
    ContaminatedRobust,
    Robust,
    fuse,
)
from jacfuse_jax.fusion._supported import check_supported
from jacfuse_jax.linalg import GramSpectrum

_MAX_LOG = 10.0  # of the temperature over the spread of the logits: from 5e-5 to 2e4
_NUM_HALVINGS = 60
_GAMMAS = (1.0, 0.5, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3)
_CONTAMINATIONS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


WITH_GAMMA = (Robust, ContaminatedRobust)
"""Rules whose gamma `choose_gamma` chooses."""
WITH_CONTAMINATION = (Contaminated, Cascade, ContaminatedRobust)
"""Rules whose contamination `choose_contamination` chooses."""

G = TypeVar("G", Robust, ContaminatedRobust)
C = TypeVar("C", Contaminated, Cascade, ContaminatedRobust)


class GammaChoice(NamedTuple, Generic[G]):
    """What `choose_gamma` returns.

    Attributes:
      rule: the rule, with the chosen gamma.
      gamma: the chosen one, a scalar.
      gammas: (C,), all of them.
      nll: (C,), the expected negative log-likelihood of each, in nats.
    """

    rule: G
    gamma: jax.Array
    gammas: jax.Array
    nll: jax.Array


class ContaminationChoice(NamedTuple, Generic[C]):
    """What `choose_contamination` returns.

    Attributes:
      rule: the rule, with the chosen contamination.
      contamination: the chosen one, a scalar.
      contaminations: (C,), all of them.
      clean: (C,), accuracy of each.
      certified: (C,), share of samples that are right and certified.
    """

    rule: C
    contamination: jax.Array
    contaminations: jax.Array
    clean: jax.Array
    certified: jax.Array


def fit_temperature(
    logits: AnyArray, labels: AnyArray, *, weights: AnyArray | None = None
) -> jax.Array:
    """The temperature T that minimises the negative log-likelihood of softmax(z / T).

    The likelihood is convex in b = 1 / T, with the increasing derivative

        mean_n [ sum_k softmax(b z_n)_k z_nk - z_n(label) ],

    whose zero is found by bisection in log b. T lies in [5e-5, 2e4] times the largest difference of
    logits in a row, and is an end of that interval where the derivative has no zero in it: the
    lower one for labels that the logits never miss, the upper one for logits that know less than
    nothing. Divide logits by T before fusing; classes keep their order.

    Args:
      logits: z, (N, K), of data that the classifier was not trained on.
      labels: (N,), integer; anything where the weight is zero.
      weights: (N,), of the mean over samples, at least 0, not all 0; None: all alike. What has
        weight zero is not looked at.

    Returns:
      T, a scalar in the dtype of the logits, float32 for half precision. NaN where a row has NaN or
      +inf or nothing finite, or -inf at its label.

    Raises:
      TypeError: logits are not floating, or labels not integer.
      ValueError: shapes disagree, there is no sample, a label lies outside 0 ... K - 1, or weights
        are negative or all zero.

    References:
      Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017.
    """
    z = in_full_precision("logits", as_array(logits))
    if z.ndim != 2 or not z.size:
        raise ValueError(f"logits must have shape (N, K), N >= 1, got {z.shape}")
    weights = check_weights(weights, len(z), z.dtype)
    labels = check_labels("labels", labels, *z.shape, mask=weights)
    return _fit_temperature(z, labels, weights)


# Compiled once for all calls outside of `jax.jit`, too, which would compile the loop every time.
@jax.jit
def _fit_temperature(logits: jax.Array, labels: jax.Array, weights: jax.Array | None) -> jax.Array:
    """`fit_temperature` of arguments that are checked."""
    if weights is not None:
        logits = jnp.where(weights[:, None] == 0, 0, logits)  # as likely at any temperature
    label_is_possible = (pick(logits, labels) > -jnp.inf).all()
    is_usable = label_is_possible & ~says_nothing(logits).any()
    if weights is not None:
        is_usable &= weights.sum() > 0
    filled, is_excluded = fill_excluded(logits)
    filled -= filled.max(axis=1, keepdims=True)
    spread = -filled.min()
    spread = jnp.where(spread > 0, spread, 1)
    z = filled / spread
    z_label = pick(z, labels)

    def slope(log_b: jax.Array) -> jax.Array:
        probs = jax.nn.softmax(jnp.where(is_excluded, -jnp.inf, jnp.exp(log_b) * z))
        return weighted_mean((probs * z).sum(axis=1) - z_label, weights)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        too_low = slope(middle) <= 0  # zero, too, where all labels are certain to rounding
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    high = jnp.full_like(spread, _MAX_LOG)
    low, high = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, (-high, high))
    return jnp.where(is_usable, spread * jnp.exp(-(low + high) / 2), jnp.nan)


def choose_gamma(
    rule: G,
    logits: Mapping[str, AnyArray],
    labels: AnyArray,
    class_prior: AnyArray,
    key: jax.Array,
    *,
    perturbed: str | tuple[str, ...],
    grams: Mapping[str, GramSpectrum],
    corrupted_share: ArrayLike = 0.2,
    gammas: Sequence[float] | jax.Array = _GAMMAS,
    weights: AnyArray | None = None,
) -> GammaChoice[G]:
    """The gamma of robust fusion that is best if a share of the samples is corrupted.

    Nothing need be known of the corruption: a corrupted sample is one whose perturbed modalities
    say what they say of another sample, drawn at random, and hence nothing of its class. With
    beta = corrupted_share, the smallest

        (1 - beta) mean_n NLL_n(clean) + beta mean_n NLL_n(exchanged)

    wins. With weights both means are weighted, and another sample is drawn as often as it weighs.
    That is a model of failures, not of attacks: against an attacker who knows the defence a smaller
    gamma is better, at a price in clean accuracy.

    Args:
      rule: `fusion.Robust` or `ContaminatedRobust`; its gamma is not looked at.
      logits: z, {modality: (N, K)}, of clean validation data; floating.
      labels: (N,), integer.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      key: of the exchange.
      perturbed: name or names of the modalities believed perturbed; static.
      grams: {modality: spectrum shared by all samples} of every perturbed modality.
      corrupted_share: beta in [0, 1].
      gammas: (C,), each in (0, 1]; all are tried in one vectorised call.
      weights: (N,), at least 0, not all 0: how much each sample counts; None: all alike.

    Returns:
      `GammaChoice(rule, gamma, gammas (C,), nll (C,))`. A NaN never wins; where all are, gamma is.

    Raises:
      TypeError: an array is not float32 or float64.
      ValueError: the rule is another one, shapes disagree, a modality is unknown,
        corrupted_share lies outside [0, 1], or weights are negative or all zero.

    References:
      Derived here.
    """
    check_supported(rule, WITH_GAMMA, "that have a gamma")
    arrays, labels, dtype = check_labelled(logits, labels)
    names = check_modalities("perturbed", perturbed, arrays)
    beta = check_scalar("corrupted_share", corrupted_share, dtype, high=1)
    candidates = _check_candidates("gammas", gammas, dtype, positive=True)
    weights = check_weights(weights, len(labels), dtype)
    order = jax.random.permutation(key, len(labels))
    if weights is not None:
        order = rows_by_weight(weights)[order]
    exchanged = {name: z[order] if name in names else z for name, z in arrays.items()}

    def expected_nll(gamma: jax.Array) -> jax.Array:
        tried = dataclasses.replace(rule, gamma=gamma)

        def nll(z: dict[str, jax.Array]) -> jax.Array:
            log_probs = fuse(tried, z, class_prior, perturbed=names, grams=grams)
            return weighted_mean(-pick(log_probs, labels), weights)

        # 0 * inf is no objection to a share of zero.
        of_clean, of_exchanged = nll(arrays), nll(exchanged)
        return jnp.where(beta < 1, (1 - beta) * of_clean, 0) + jnp.where(
            beta > 0, beta * of_exchanged, 0
        )

    nll = jax.vmap(expected_nll)(candidates)
    best = candidates[jnp.where(jnp.isnan(nll), jnp.inf, nll).argmin()]
    gamma = jnp.where(jnp.isnan(nll).all(), jnp.nan, best)
    return GammaChoice(dataclasses.replace(rule, gamma=gamma), gamma, candidates, nll)


def choose_contamination(
    rule: C,
    logits: Mapping[str, AnyArray],
    labels: AnyArray,
    class_prior: ArrayLike,
    *,
    perturbed: str | tuple[str, ...],
    attack_share: ArrayLike = 0.1,
    contaminations: Sequence[float] | jax.Array = _CONTAMINATIONS,
    weights: AnyArray | None = None,
) -> ContaminationChoice[C]:
    """The contamination that is worth most if a share of the samples is attacked.

    With s = attack_share, the one of the highest

        (1 - s) clean accuracy + s certified accuracy,

    whatever is done to the perturbed modalities, all at once; the first of equal ones.
    `jacfuse_jax.selection` chooses among all rules, with intervals.

    Args:
      rule: `fusion.Contaminated`, `Cascade` or `ContaminatedRobust`; its contamination is not
        looked at. Nothing certifies the last one: contaminated fusion stands for it, whatever
        gamma.
      logits: z, {modality: (N, K)}, of clean validation data; floating.
      labels: (N,), integer.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed; static.
      attack_share: s in [0, 1].
      contaminations: (C,), ascending, each in [0, 1]; all are tried in one vectorised call.
      weights: (N,), at least 0, not all 0: how much each sample counts; None: all alike.

    Returns:
      `ContaminationChoice(rule, contamination, contaminations (C,), clean (C,), certified (C,))`.

    Raises:
      TypeError: an array is not float32 or float64.
      ValueError: the rule is another one, shapes disagree, a modality is unknown, a parameter lies
        outside its interval, or weights are negative or all zero.

    References:
      Derived here.
    """
    check_supported(rule, WITH_CONTAMINATION, "that have a contamination")
    arrays, labels, dtype = check_labelled(logits, labels)
    names = check_modalities("perturbed", perturbed, arrays)
    share = check_scalar("attack_share", attack_share, dtype, high=1)
    candidates = _check_candidates("contaminations", contaminations, dtype)
    if isinstance(rule, ContaminatedRobust):
        tried = Contaminated(candidates)
    else:
        tried = dataclasses.replace(rule, contamination=candidates)
    weights = check_weights(weights, len(labels), dtype)
    clean, certified = certified_accuracy(
        tried, arrays, labels, class_prior, corrupted=names, perturbed=names, weights=weights
    )
    worth = (1 - share) * clean + share * certified
    # Equal ones may be rounded differently.
    is_best = worth >= worth.max() - 8 * jnp.finfo(dtype).eps
    best = jnp.where(jnp.isnan(worth).any(), jnp.nan, candidates[is_best.argmax()])
    chosen = dataclasses.replace(rule, contamination=best)
    return ContaminationChoice(chosen, best, candidates, clean, certified)


def _check_candidates(
    name: str, candidates: Sequence[float] | jax.Array, dtype: jnp.dtype, *, positive: bool = False
) -> jax.Array:
    """Returns them as (C,) in `dtype`; raises unless there is one, and all lie in [0, 1]."""
    array = check_numbers(name, candidates, dtype, high=1, positive=positive)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must have shape (C,), C >= 1, got {array.shape}")
    return array
