"""Are weights that a rule gives every sample worth anything, or would those of another sample do?

What rules with weights per sample (recalibrations, gates of cascades, energies) make of corrupted
rows, with the weights of other rows, drawn by permutations, in the place of their own. Where that
changes nothing, the weights are decoration.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import fusion
from jacfuse_jax.evaluation.baselines import EnergyWeighted, energy_weights
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.intervals import paired_bootstrap_interval
from jacfuse_jax.evaluation.outcomes import is_correct, merge
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.fusion import Rule
from jacfuse_jax.fusion._gate import compare
from jacfuse_jax.linalg import GramSpectrum, recalibrate

WEIGHTED = (
    *(fusion.Robust, fusion.ContaminatedRobust, fusion.Cascade, fusion.LearnedCascade),
    EnergyWeighted,
)
"""Rules with weights per sample."""


class Shuffled(NamedTuple):
    """A rule with its own weights and with those of other samples, on corrupted rows.

    Attributes:
      perturbed: the modality that is corrupted, which the rule believes perturbed.
      accuracy: mean over corruptions and severities.
      shuffled: the same with weights of other samples, mean over permutations.
      difference: accuracy - shuffled, with its paired 95% interval over groups of rows. Where that
        contains zero, the weights are not told from decoration.
    """

    seed: int
    perturbed: str
    rule: Rule
    accuracy: float
    shuffled: float
    difference: float
    low: float
    high: float


def measure(
    seed: int,
    perturbed: str,
    rules: Sequence[Rule],
    observations: Sequence[Observed],
    rows: Rows,
    evidence: Evidence,
    *,
    num_permutations: int,
) -> list[Shuffled]:
    """Tests the weights of rules.

    Args:
      seed: of the run, and of the permutations.
      perturbed: modality that is corrupted and believed to be.
      rules: those of `WEIGHTED` are tested; recalibrated ones if the Jacobian is that in features,
        and they iterate once.
      observations: of corrupted rows, at least one.
      rows: clean.
      evidence: what fusion knows.
      num_permutations: of the rows, at least one.

    Returns:
      A line for every rule with weights.
    """
    rng = np.random.default_rng(seed)
    num_rows = len(rows.labels)
    orders = np.stack(
        [np.arange(num_rows), *(rng.permutation(num_rows) for _ in range(num_permutations))]
    )

    whole = [merge(observed, rows) for observed in observations]

    def is_right(rule: Rule) -> NDArray[np.float64]:
        """How often rows are right under each order, (1 + permutations, N)."""
        predict = functools.partial(_predict_all, evidence=evidence, believed=perturbed)
        found = [predict(rule, observed, orders) for observed in whole]
        return np.mean([is_correct(np.asarray(x), rows.labels) for x in found], axis=0)

    lines: list[Shuffled] = []
    for rule in rules:
        if isinstance(rule, WEIGHTED) and not _needs_more(rule, rows):
            own, *others = is_right(rule)
            shuffled = np.mean(others, axis=0)
            interval = paired_bootstrap_interval(own, shuffled, rows.groups)
            difference = (float(x) for x in interval)
            means = float(own.mean()), float(shuffled.mean())
            lines.append(Shuffled(seed, perturbed, rule, *means, *difference))
    return lines


def _needs_more(rule: Rule, rows: Rows) -> bool:
    """Whether Gram matrices, or every iteration's recalibration, would have to be shuffled."""
    if not isinstance(rule, fusion.Robust | fusion.ContaminatedRobust):
        return False
    return bool(rows.grams) or rule.num_iterations != 1


def predict_shuffled(
    rule: Rule, observed: Observed, order: jax.Array, *, evidence: Evidence, believed: str
) -> jax.Array:
    """Log-probabilities (B, K) of a rule whose weights are those of other rows.

    Args:
      rule: of `WEIGHTED`.
      observed: what the classifiers say.
      order: (B,), the row whose weights each row is given.
      evidence: what is known of the classifiers.
      believed: the modality that the rule believes perturbed; static.
    """
    logits = {name: jnp.asarray(z) for name, z in observed.logits["standard"].items()}
    prior = evidence.class_prior
    if isinstance(rule, EnergyWeighted):
        weights = energy_weights(logits)
        return jax.nn.log_softmax(
            sum((weights[m][order] * z for m, z in logits.items()), start=jnp.zeros(()))
        )
    if isinstance(rule, fusion.Cascade | fusion.LearnedCascade):
        trusted = {name: z for name, z in logits.items() if name != believed}
        log_trusted = fusion.statistical_fusion(trusted, prior)
        if isinstance(rule, fusion.Cascade):
            is_sure = jnp.exp(log_trusted.max(axis=-1)) > rule.confidence
            contamination, tempering = rule.contamination, rule.tempering
        else:
            is_sure = compare(rule.gate, jnp.asarray(rule.share), log_trusted)[0] > 0
            contamination, tempering = 0.0, 1.0
        fused = fusion.contaminated_fusion(
            logits,
            prior,
            contamination=contamination,
            tempering=tempering,
            perturbed=believed,
        )
        return jnp.where(is_sure[order, None], log_trusted, fused)
    assert isinstance(rule, fusion.Robust | fusion.ContaminatedRobust)
    if isinstance(rule, fusion.ContaminatedRobust):
        logits = fusion.contaminate_modalities(
            logits, prior, contamination=rule.contamination, perturbed=believed
        )
    probs = jnp.exp(fusion.statistical_fusion(logits, prior))[order]
    gram = evidence.grams[believed]
    assert isinstance(gram, GramSpectrum)
    strength = (1 - rule.gamma) / rule.gamma
    changed = recalibrate(logits[believed], probs, gram, strength)
    return fusion.statistical_fusion({**logits, believed: changed}, prior)


@functools.partial(jax.jit, static_argnames="believed")
def _predict_all(
    rule: Rule, observed: Observed, orders: jax.Array, *, evidence: Evidence, believed: str
) -> jax.Array:
    """`predict_shuffled` for every order, (P, B, K)."""

    def predict_one(order: jax.Array) -> jax.Array:
        return predict_shuffled(rule, observed, order, evidence=evidence, believed=believed)

    return jax.lax.map(predict_one, orders)
