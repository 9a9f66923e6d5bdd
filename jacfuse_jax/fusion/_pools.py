"""Pools of what modalities say by their order: votes, medians, trimmed means."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jacfuse_jax._arrays import in_dtype_of
from jacfuse_jax._presence import stack_log_probs
from jacfuse_jax._simplex import log_add, mark_likeliest
from jacfuse_jax.fusion._rule import FusionInputs, Rule

_TIE_BREAK = 0.5  # of a vote: less than one, so that votes decide


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MajorityVote(Rule):
    """The class that is likeliest to most modalities, p(k) ~ v_k + q_k / 2.

    v_k modalities vote for class k. Those of most votes share q = 1 by prod_m softmax(z_m), which
    breaks ties; of the others q is `fusion.Product`.

    Attacks differentiate q, as votes have no gradient: what raises the probability of a class that
    has no vote is what raises it in the product. A class without votes that a modality excludes is
    excluded.

    References:
      Kittler, Hatef, Duin, Matas, "On Combining Classifiers", 1998.
    """

    kind = "majority_vote"
    takes_missing = True

    def apply(self, inputs: FusionInputs) -> jax.Array:
        log_probs, counts, has_any = stack_log_probs(*inputs[:2], inputs.present)
        votes = (mark_likeliest(log_probs) & counts).sum(axis=0)
        total = jnp.where(counts, log_probs, 0).sum(axis=0)
        # All classes may be excluded by one modality or another: then votes alone decide.
        total = jnp.where((total == -jnp.inf).all(axis=-1, keepdims=True), 0, total)
        is_leading = votes == votes.max(axis=-1, keepdims=True)
        leading = jnp.where(is_leading, total, -jnp.inf)
        # Leading classes may all be excluded by others.
        is_excluded = (leading == -jnp.inf).all(axis=-1, keepdims=True)
        leading = jnp.where(is_leading & is_excluded, 0, leading)
        log_q = jnp.where(is_leading, jax.nn.log_softmax(leading), jax.nn.log_softmax(total))
        log_votes = jnp.log(votes.astype(log_q.dtype))
        fused = log_add(log_votes, log_q + math.log(_TIE_BREAK))
        # The first says the prior where there is none, but a vote makes more of it.
        fused = jnp.where(has_any, fused, log_probs[0])
        return in_dtype_of(inputs.logits, jax.nn.log_softmax(fused))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Median(Rule):
    """log p = median_m log softmax(z_m), entry by entry, normalised.

    The mean of the middle two of an even number: of two modalities, the mean of log-probabilities.
    Before it is normalised, less than half of the modalities move no entry beyond what the others
    say: they exclude no class, and save none.

    References:
      Kittler, Hatef, Duin, Matas, "On Combining Classifiers", 1998 (of probabilities).
    """

    kind = "median"
    num_dropped: ClassVar[int | None] = None
    takes_missing = True

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return _fuse_middle(inputs, self.num_dropped)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrimmedMean(Rule):
    """log p = mean_m log softmax(z_m) without the largest and the smallest, normalised.

    Entry by entry. Of three modalities it is the median; of what is left of a row that lacks some,
    of two or one, the mean.

    Raises:
      ValueError: there are fewer than three modalities.

    References:
      Tumer, Ghosh, "Robust Combining of Disparate Classifiers through Order Statistics", 2002.
    """

    kind = "trimmed_mean"
    num_dropped: ClassVar[int | None] = 1
    takes_missing = True

    def apply(self, inputs: FusionInputs) -> jax.Array:
        self.check_modalities(tuple(inputs.logits))
        return _fuse_middle(inputs, self.num_dropped)

    @classmethod
    def check_modalities(cls, modalities: tuple[str, ...]) -> None:
        """Raises ValueError unless there are three modalities or more."""
        if len(modalities) < 3:
            raise ValueError(
                f"{cls.kind} needs three modalities or more, got {len(modalities)}: "
                f"{', '.join(modalities)}"
            )


def _fuse_middle(inputs: FusionInputs, num_dropped: int | None) -> jax.Array:
    """`mean_of_middle` of what modalities say, normalised."""
    log_probs, counts, _ = stack_log_probs(*inputs[:2], inputs.present)
    return in_dtype_of(
        inputs.logits, jax.nn.log_softmax(mean_of_middle(log_probs, counts, num_dropped))
    )


def mean_of_middle(log_probs: jax.Array, counts: jax.Array, num_dropped: int | None) -> jax.Array:
    """The mean (B, K) without so many of the largest and of the smallest, entry by entry.

    Of log-probabilities (M, B, K) that count, (M, B, 1). None leaves one or two, and one at least
    is left.
    """
    total = counts.sum(axis=0, keepdims=True)  # what is missing comes last
    ordered = jnp.sort(jnp.where(counts, log_probs, jnp.inf), axis=0)
    most = (total - 1) // 2
    first = most if num_dropped is None else jnp.minimum(num_dropped, most)
    rank = jnp.arange(len(log_probs))[:, None, None]
    is_kept = (rank >= first) & (rank < total - first)
    mean = jnp.mean(ordered, axis=0, where=is_kept)
    # Sorted, NaN is the largest, and would be dropped.
    is_nan = (jnp.isnan(log_probs) & counts).any(axis=0)
    return jnp.where(is_nan, jnp.nan, mean)
