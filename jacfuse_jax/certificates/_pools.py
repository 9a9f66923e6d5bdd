"""What pools make of modalities that may say anything: nothing they can say moves a class further.

Let S be the corrupted modalities of a row, a of them, and q_m what modality m says. A pool is, but
for what all classes share, a function u_k of what all say of class k alone, which rises with every
q_m(k). Of all that S can say, class k is best off against y where q_m = e_k for m in S: then
q_m(k) = 1 and q_m(y) = 0, the largest and the least there are. So y is fused whatever S say if the
least u_y exceeds the largest u_k for every other k, and can be overturned where one is below:

    mean            u_k = sum_m q_m(k)          from A_k to A_k + a,  A_k = sum over m not in S
    max             u_k = max_m q_m(k)          from max over m not in S to 1
    majority vote   u_k = votes for k           from v_k to v_k + a,  v_k of those not in S
    median, and     u_k = mean of the middle    with -inf, and with 0, for log q_m(k), m in S
    trimmed mean        of log q_m(k)

A vote that may be tied is not certified: S breaks ties, by what they say of y, unless another
modality excludes all other classes. Derived here.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jacfuse_jax._presence import any_of
from jacfuse_jax._simplex import log_add, mark_likeliest
from jacfuse_jax.fusion import MajorityVote, Max, Mean, Median, TrimmedMean
from jacfuse_jax.fusion._pools import mean_of_middle

Pool = Mean | Max | MajorityVote | Median | TrimmedMean


def pool_range(
    rule: Pool,
    logits: Mapping[str, jax.Array],
    log_prior: jax.Array,
    present: Mapping[str, jax.Array],
    corrupted: tuple[str, ...],
) -> tuple[jax.Array, jax.Array]:
    """The least and the largest log u_k, or u_k of a median, that corrupted modalities allow.

    Args:
      rule: a pool.
      logits: {modality: (B, K)}.
      log_prior: (K,).
      present: {modality: (B, 1)}, of those that rows may lack.
      corrupted: names.

    Returns:
      Two arrays (B, K).
    """
    shape = (*next(iter(logits.values())).shape[:1], 1)
    log_probs = jnp.stack([jax.nn.log_softmax(z) for z in logits.values()])
    counts = jnp.stack([jnp.broadcast_to(any_of([name], present), shape) for name in logits])
    is_corrupted = counts & jnp.array([name in corrupted for name in logits])[:, None, None]
    num_corrupted = is_corrupted.sum(axis=0).astype(log_prior.dtype)
    of_others = jnp.where(counts & ~is_corrupted, log_probs, -jnp.inf)
    match rule:
        case Mean():
            low = jax.nn.logsumexp(of_others, axis=0)
            high = log_add(low, jnp.log(num_corrupted))
        case Max():
            low = of_others.max(axis=0)
            high = jnp.where(num_corrupted > 0, 0, low)
        case MajorityVote():
            is_vote = mark_likeliest(log_probs) & counts & ~is_corrupted
            votes = is_vote.sum(axis=0).astype(log_prior.dtype)
            low, high = jnp.log(votes), jnp.log(votes + num_corrupted)
        case Median() | TrimmedMean():
            low, high = (
                mean_of_middle(jnp.where(is_corrupted, said, log_probs), counts, rule.num_dropped)
                for said in (-jnp.inf, 0.0)
            )
    has_any = counts.any(axis=0)
    return jnp.where(has_any, low, log_prior[None]), jnp.where(has_any, high, log_prior[None])
