"""Metrics of classification as sums that add over batches and are finalised once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacfuse_jax._arrays import known_array
from jacfuse_jax._checks import check_labels, in_full_precision, pick

NUM_BINS = 15
_Z_95 = 1.959963984540054  # 97.5% quantile of the standard normal distribution


class ClassificationSums(NamedTuple):
    """Sums over samples; those of two batches add entry by entry (`jax.tree.map`).

    Attributes:
      num_examples: (), number of samples.
      correct: (), number of samples whose most probable class is the label.
      nll: (), summed negative log-likelihood of the labels, in nats.
      brier: (), summed squared distance of the probabilities from the one-hot labels.
      bin_count: (15,), samples per bin of confidence.
      bin_correct: (15,), correct samples per bin.
      bin_confidence: (15,), summed confidence per bin.
      class_count: (K,), samples per label.
      class_correct: (K,), correct samples per label.
    """

    num_examples: jax.Array
    correct: jax.Array
    nll: jax.Array
    brier: jax.Array
    bin_count: jax.Array
    bin_correct: jax.Array
    bin_confidence: jax.Array
    class_count: jax.Array
    class_correct: jax.Array


class ClassificationMetrics(NamedTuple):
    """Finalised metrics.

    Attributes:
      accuracy: share of samples classified correctly.
      ci_low: lower end of the accuracy's 95% Wilson score interval.
      ci_high: upper end.
      nll: mean negative log-likelihood, in nats.
      brier: Brier score, from 0 (certain and correct) to 2 (certain and wrong).
      ece: expected calibration error over 15 bins of equal width.
      macro_accuracy: mean over the classes that occur of the share of their samples classified
        correctly, whatever the sizes of the classes; also called balanced accuracy.
      num_examples: number of samples.
    """

    accuracy: float
    ci_low: float
    ci_high: float
    nll: float
    brier: float
    ece: float
    macro_accuracy: float
    num_examples: int


def classification_sums(
    log_probs: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> ClassificationSums:
    """Sums accuracy, also by class, negative log-likelihood, Brier score and calibration bins.

    The Brier score of a sample with label y is sum_k (p_k - 1[k = y])^2.

    A sample whose log-probabilities are not all numbers counts as wrong, with confidence 1, NaN
    likelihood and NaN Brier score: trouble shows instead of improving a figure.

    Args:
      log_probs: (B, K), float32 or float64, normalised.
      labels: (B,), integer, in 0 ... K - 1. One that is traced and is not makes the sums NaN.
      mask: (B,), 1 for samples that count, 0 for padding, whose labels may be anything; None counts
        all.

    Returns:
      The sums, in the dtype of the log-probabilities, float32 for half precision.

    Raises:
      TypeError: log_probs are not floating, or labels not integer.
      ValueError: shapes disagree, or a label lies outside 0 ... K - 1.

    References:
      Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950.
      Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017 (bins).
    """
    log_probs = in_full_precision("log_probs", jnp.asarray(log_probs))
    if log_probs.ndim != 2:
        raise ValueError(f"log_probs must have shape (B, K), got {log_probs.shape}")
    num_samples, num_classes = log_probs.shape
    mask = known_array(np.ones(num_samples) if mask is None else mask, log_probs.dtype)
    if mask.shape != (num_samples,):
        raise ValueError(f"mask must have shape ({num_samples},), got {mask.shape}")
    labels = check_labels("labels", labels, num_samples, num_classes, mask=mask)
    weights = jnp.asarray(mask)
    valid = ~jnp.isnan(log_probs).any(axis=-1)
    confidence = jnp.where(valid, jnp.exp(log_probs.max(axis=-1)), 1)
    is_correct = valid & (log_probs.argmax(axis=-1).astype(labels.dtype) == labels)
    correct = weights * jnp.where(labels < num_classes, is_correct.astype(weights.dtype), jnp.nan)
    nll = -pick(log_probs, labels)
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=log_probs.dtype)
    brier = jnp.square(jnp.exp(log_probs) - one_hot).sum(axis=-1)
    brier = jnp.where(jnp.isnan(nll), jnp.nan, brier)
    # Bins are (low, high], as in Guo et al.; confidence zero cannot occur.
    bins = jnp.clip(jnp.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)

    def per_bin(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, bins, NUM_BINS)

    def per_class(values: jax.Array) -> jax.Array:
        # A label that is no class counts as the last one, which its NaN reaches.
        return jax.ops.segment_sum(values, jnp.minimum(labels, num_classes - 1), num_classes)

    return ClassificationSums(
        num_examples=weights.sum(),
        correct=correct.sum(),
        nll=jnp.where(weights > 0, weights * nll, 0).sum(),
        brier=jnp.where(weights > 0, weights * brier, 0).sum(),
        bin_count=per_bin(weights),
        bin_correct=per_bin(correct),
        bin_confidence=per_bin(weights * confidence),
        class_count=per_class(weights),
        class_correct=per_class(correct),
    )


def finalise(sums: ClassificationSums) -> ClassificationMetrics:
    """Turns sums over all batches into metrics.

    Accuracy correct / count; its 95% Wilson interval; nll / count; brier / count; ECE = sum over
    bins of |bin_correct - bin_confidence| / count; macro accuracy = mean over classes k of positive
    count of class_correct_k / class_count_k.

    Args:
      sums: of one or more batches, added up.

    Returns:
      The metrics as Python numbers.

    Raises:
      ValueError: no sample was counted.

    References:
      Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
      Brodersen, Ong, Stephan, Buhmann, "The Balanced Accuracy and Its Posterior Distribution",
      2010.
    """
    count = float(sums.num_examples)
    if count == 0:
        raise ValueError("no samples were counted: every mask is zero")
    accuracy = float(sums.correct) / count
    ci_low, ci_high = wilson_interval(float(sums.correct), count)
    class_count = np.asarray(sums.class_count, np.float64)
    occurs = class_count > 0
    recalls = np.asarray(sums.class_correct, np.float64)[occurs] / class_count[occurs]
    gaps = np.abs(np.asarray(sums.bin_correct) - np.asarray(sums.bin_confidence))
    return ClassificationMetrics(
        accuracy=accuracy,
        ci_low=ci_low,
        ci_high=ci_high,
        nll=float(sums.nll) / count,
        brier=float(sums.brier) / count,
        ece=float(gaps.sum()) / count,
        macro_accuracy=float(recalls.mean()),
        num_examples=round(count),
    )


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, weights: ArrayLike | None = None
) -> float:
    """ECE of predictions of which no more is known than how sure and how right they are.

    The mean over 15 bins of confidence, (low, high], of |accuracy - mean confidence|, weighted by
    how many predictions a bin has. `finalise` has it of log-probabilities.

    Args:
      confidence: (N,), in [0, 1], probabilities of the predicted classes.
      correct: (N,), in [0, 1], whether, or how often, these are right.
      weights: (N,), not negative, of the predictions; None: all the same.

    Returns:
      The error, NaN where an entry is.

    Raises:
      ValueError: shapes disagree, or there is no prediction.

    References:
      Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017.
    """
    sure, right = (np.asarray(x, np.float64) for x in (confidence, correct))
    if sure.shape != right.shape or sure.ndim != 1 or not sure.size:
        raise ValueError(f"arrays must be (N,), N >= 1, got {sure.shape} and {right.shape}")
    if np.isnan(sure).any():
        return float("nan")
    bins = np.clip(np.ceil(sure * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    counts = np.ones(sure.size) if weights is None else np.asarray(weights, np.float64)
    gaps = np.bincount(bins, counts * (right - sure), NUM_BINS)
    return float(np.abs(gaps).sum() / counts.sum())


def wilson_interval(successes: float, count: float) -> tuple[float, float]:
    """95% Wilson score interval of a proportion.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = successes / count, z = 1.96.
    It assumes independent samples: too narrow where test pairs share recordings; there take
    `bootstrap_interval` with groups.

    Args:
      successes: number of successes.
      count: number of trials, positive.

    Returns:
      Lower and upper end, within [0, 1].

    Raises:
      ValueError: count is not positive, or successes lie outside [0, count].
    """
    if not 0 < count < float("inf") or successes < 0 or successes > count:  # NaN stays NaN
        raise ValueError(
            f"successes must lie in [0, count], count be positive, got {successes} of {count}"
        )
    p, z2 = successes / count, _Z_95**2
    centre = p + z2 / (2 * count)
    half_width = _Z_95 * np.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    low, high = (centre - half_width) / scale, (centre + half_width) / scale
    return float(max(low, 0.0)), float(min(high, 1.0))
