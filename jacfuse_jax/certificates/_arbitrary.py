"""What no corruption of a modality, however strong, can overturn.

`fusion.contaminated_fusion` adds t_m (log p~_m(k) - log prior_k) for every modality to log prior_k,
p~_m = (1 - e_m) q_m + e_m prior, where an attacker of modality m chooses any q_m in the simplex.
What that modality adds to the log-odds of class k over y,

    t log [((1 - e) q_k / prior_k + e) / ((1 - e) q_y / prior_y + e)],

increases in q_k and decreases in q_y, so that the attacker does best with q_k = 1:

    b_k = t [log((1 - e) / prior_k + e) - log e].

With A the log prior and what all other modalities add, class y is fused whatever the corrupted ones
say if A_y - A_k > (sum of b_k over corrupted modalities) for all k, and can be overturned if the
opposite inequality holds for one k. The bound is thus exact. That of pools is in `_pools`. Derived
here.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray
from jacfuse_jax._checks import check_labelled, check_modalities
from jacfuse_jax._likelihoods import fuse_independent
from jacfuse_jax._presence import Present, any_of, check_available
from jacfuse_jax._simplex import mark_class, rounding_of_sum
from jacfuse_jax._weights import check_weights, weighted_mean
from jacfuse_jax.certificates._bounded import (
    Bounded,
    BoundedRule,
    check_numbers_of,
    check_perturbed,
)
from jacfuse_jax.certificates._pools import Pool, pool_range
from jacfuse_jax.fusion import (
    Cascade,
    Contaminated,
    LearnedCascade,
    MajorityVote,
    Max,
    Mean,
    Median,
    Scaled,
    Statistical,
    TrimmedMean,
    fuse,
)
from jacfuse_jax.fusion._supported import check_supported

CertifiedRule = BoundedRule | Pool
CERTIFIED: tuple[type[CertifiedRule], ...] = (
    *(Statistical, Scaled, Contaminated, Cascade, LearnedCascade),
    *(Mean, Max, MajorityVote, Median, TrimmedMean),
)
"""Rules whose predictions `certify_modality` certifies."""

_Lead = Callable[[jax.Array, jax.Array], jax.Array]
_Certify = Callable[[tuple[str, ...]], tuple[jax.Array, jax.Array]]


class Certificate(NamedTuple):
    """What `certify_modality` returns.

    Attributes:
      label: (B,), int32, the fused class.
      certified: (B,), bool, whether no input of the corrupted modalities changes it.
      margin: (B,), log-odds by which the class leads the closest other one in the worst case, of
        a majority vote those of the votes; in float32 for half precision. Where it is within
        rounding of zero, contaminated fusion certifies nothing. Trusted modalities that decide a
        cascade are certified with their tie, of margin zero, too: their first class it is, whatever
        the others say.
    """

    label: jax.Array
    certified: jax.Array
    margin: jax.Array


class CertifiedAccuracy(NamedTuple):
    """Accuracies that `certified_accuracy` returns, of a rule () or of C rules (C,).

    Attributes:
      clean: share of samples whose fused class is the label.
      certified: share of those that are certified, too: accuracy under any corruption is at least
        this.
    """

    clean: jax.Array
    certified: jax.Array


def certify_modality(
    rule: CertifiedRule,
    logits: Mapping[str, ArrayLike],
    class_prior: ArrayLike,
    *,
    corrupted: str | tuple[str, ...] | int,
    perturbed: str | tuple[str, ...] | None = None,
    present: Present | None = None,
) -> Certificate:
    """Certifies fused classes against arbitrary corruption of modalities.

    Of a cascade the samples that the trusted modalities decide are certified as soon as only
    perturbed ones are corrupted. For the other rules the bound is exact: see the module's text.

    A modality that is corrupted without being believed perturbed has unbounded influence: nothing
    is certified then. The same holds without contamination, and hence for statistical and scaled
    fusion, unless the modality is tempered to nothing. What the corrupted modalities say of the
    sample enters the fused class only, so that the certificate of a sample is the same before and
    after the corruption where the class is certified.

    What corrupted modalities say is any finite logits. NaN, +inf, or a class of -inf that leaves
    none that another modality does not exclude, leaves no prediction, certified or not.

    Which modalities a row has is given, and not the attacker's choice: what it lacks cannot be
    corrupted.

    Args:
      rule: `fusion.Contaminated`, `Cascade`, `LearnedCascade`, `Scaled`, `Statistical`, or a pool,
        which heeds no belief: `Mean`, `Max`, `MajorityVote`, `Median`, `TrimmedMean`. Its numbers
        are scalars, traced or not.
      logits: z, {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      corrupted: name or names of the modalities that may say anything, all at once; or a number s:
        any s of them at once; "any_one" is 1. Static.
      perturbed: name or names of the modalities that the rule bounds; static. None: all of them.
      present: see `fusion.statistical_fusion`.

    Returns:
      `Certificate(label (B,), certified (B,), margin (B,))`. A perturbed modality may be NaN or
      infinite where the rule contaminates or drops it; samples that it leaves NaN, or of which a
      trusted modality is, are not certified.

    Raises:
      TypeError: logits are not floating.
      ValueError: the rule is another one, shapes disagree, a modality is unknown, a number of
        modalities is not in 1 ... M, a prior is not positive or does not sum to one, or a parameter
        lies outside [0, 1].

    References:
      Derived here.
    """
    rule = check_supported(rule, CERTIFIED, "that can be certified")
    arrays, log_prior, checked = check_available(logits, class_prior, present)
    names = check_perturbed(perturbed, arrays)
    cases = _cases(corrupted, arrays)
    rule = check_numbers_of(rule, log_prior.dtype)
    fused = fuse(rule, arrays, class_prior, perturbed=names, present=present)
    label = fused.argmax(axis=-1).astype(jnp.int32)
    is_label = mark_class(label, fused)

    def lead(low: jax.Array, high: jax.Array) -> jax.Array:
        """Least log-odds of the label over another class."""
        of_label = jnp.where(is_label, low, -jnp.inf).max(axis=-1)
        of_others = jnp.where(is_label, -jnp.inf, high).max(axis=-1)
        return jnp.where(of_label == of_others, 0, of_label - of_others)  # also of -inf both

    if isinstance(rule, Pool):
        certify = _make_certify_pool(rule, arrays, log_prior, checked, lead)
    else:
        certify = _make_certify_bounded(rule, names, arrays, log_prior, checked, lead)
    results = [certify(case) for case in cases]
    # What a row lacks cannot be corrupted.
    certified = jnp.stack(
        [
            of_case | ~any_of(case, checked).reshape(-1)
            for case, (of_case, _) in zip(cases, results, strict=True)
        ]
    ).all(axis=0)
    margin = jnp.stack([of_case for _, of_case in results]).min(axis=0)
    is_nan = jnp.isnan(fused).any(axis=-1)
    return Certificate(label, certified & ~is_nan, jnp.where(is_nan, jnp.nan, margin))


def _make_certify_bounded(
    rule: BoundedRule,
    names: tuple[str, ...],
    arrays: Mapping[str, jax.Array],
    log_prior: jax.Array,
    checked: Mapping[str, jax.Array],
    lead_fn: _Lead,
) -> _Certify:
    """Of what bounds the influence of modalities; see the module's text."""
    dtype = log_prior.dtype
    bounded = Bounded.of(rule, names, dtype)
    names, e, t, decides_fn = bounded
    ratios = bounded.log_ratios(arrays, log_prior)
    rows = log_prior[None]
    bound = jnp.where(t > 0, t * (jnp.log((1 - e) * jnp.exp(-rows) + e) - jnp.log(e)), 0)
    trusted = {name: z for name, z in arrays.items() if name not in names}
    # A margin below the rounding errors of both classes may have the wrong sign.
    rounding = rounding_of_sum(rows, bound, *ratios.values())

    def certify(corrupted: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
        rest = sum((r for name, r in ratios.items() if name not in corrupted), start=rows)
        gain = sum(
            jnp.where(any_of([name], checked), bound if name in names else jnp.inf, 0)
            for name in corrupted
        )
        # Where another modality excludes a class, it stays excluded, whatever is gained.
        worst = jnp.where(rest == -jnp.inf, rest, rest + gain)
        certified, margin = lead_fn(rest - rounding, worst + rounding) > 0, lead_fn(rest, worst)
        takes_over = any_of(set(corrupted) - set(names), checked).reshape(-1)
        may_decide = any_of(trusted, checked) & ~takes_over[:, None]
        if isinstance(rule, Cascade | LearnedCascade):
            # Who says what the trusted ones say may have them decide, whatever others exclude.
            certified &= ~takes_over
        if trusted:
            log_trusted = fuse_independent(trusted, log_prior)
            may_decide = may_decide.reshape(-1)
            slack = 8 * (len(arrays) + 1) * float(jnp.finfo(dtype).eps)
            decide = may_decide & decides_fn(log_trusted, 0.0)
            margin = jnp.where(decide, lead_fn(log_trusted, log_trusted), margin)
            certified |= may_decide & decides_fn(log_trusted, slack)
        return certified, margin

    return certify


def _make_certify_pool(
    rule: Pool,
    arrays: Mapping[str, jax.Array],
    log_prior: jax.Array,
    checked: Mapping[str, jax.Array],
    lead_fn: _Lead,
) -> _Certify:
    """Of pools, which heed no belief; see `_pools`."""

    def certify(corrupted: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
        low, high = pool_range(rule, arrays, log_prior, checked, corrupted)
        rounding = rounding_of_sum(low, high)
        return lead_fn(low - rounding, high + rounding) > 0, lead_fn(low, high)

    return certify


def certified_accuracy(
    rule: CertifiedRule,
    logits: Mapping[str, ArrayLike],
    labels: ArrayLike,
    class_prior: ArrayLike,
    *,
    corrupted: str | tuple[str, ...] | int,
    perturbed: str | tuple[str, ...] | None = None,
    present: Present | None = None,
    weights: AnyArray | None = None,
) -> CertifiedAccuracy:
    """Clean and certified accuracy of a rule, or of C rules of one kind in one vectorised call.

    `Contaminated(jnp.linspace(0, 1, 21))` gives them as functions of the contamination.

    Args:
      rule: as for `certify_modality`; numbers may be arrays (C,), each in [0, 1], traced or not.
        Those that are scalars serve all C rules.
      logits: z, {modality: (B, K)}, floating, at least one modality.
      labels: (B,), integer.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      corrupted: as for `certify_modality`.
      perturbed: as there.
      present: as there.
      weights: (B,), at least 0, not all 0: how much each sample counts; None: all alike.

    Returns:
      `CertifiedAccuracy(clean, certified)`, scalars, or (C,) where a number of the rule is.

    Raises:
      TypeError, ValueError: as `certify_modality`, or labels or weights are not (B,), or the
        rule's numbers are neither scalars nor of one shape (C,).
    """
    rule = check_supported(rule, CERTIFIED, "that can be certified")
    arrays, classes, dtype = check_labelled(logits, labels)
    weights = check_weights(weights, len(classes), dtype)
    is_known = classes < next(iter(arrays.values())).shape[1]

    def accuracies(rule: CertifiedRule) -> CertifiedAccuracy:
        label, certified, _ = certify_modality(
            rule,
            arrays,
            class_prior,
            corrupted=corrupted,
            perturbed=perturbed,
            present=present,
        )
        is_correct = jnp.where(is_known, (label == classes).astype(dtype), jnp.nan)
        # Of a parameter that is no number the margins are none either.
        for number in jax.tree.leaves(rule):
            is_correct = jnp.where(jnp.isnan(number), jnp.nan, is_correct)
        is_certified = jnp.where(certified | jnp.isnan(is_correct), is_correct, 0)
        return CertifiedAccuracy(
            weighted_mean(is_correct, weights), weighted_mean(is_certified, weights)
        )

    rules = check_numbers_of(rule, dtype, batched=True)
    axes = jax.tree.map(lambda number: 0 if number.ndim else None, rules)
    is_batch = any(number.ndim for number in jax.tree.leaves(rules))
    return jax.vmap(accuracies, in_axes=(axes,))(rules) if is_batch else accuracies(rules)


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
