"""Which modality is perturbed: judged sample by sample, when nobody says."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike

from jacfuse_jax._arrays import AnyArray, in_dtype_of
from jacfuse_jax._checks import (
    check_inputs,
    check_labelled,
    check_logits,
    check_mapping,
    check_modalities,
    check_scalar,
)
from jacfuse_jax._likelihoods import like_rows
from jacfuse_jax._precision import product
from jacfuse_jax._presence import Present, any_of, check_available, silence
from jacfuse_jax.calibration import fit_temperature
from jacfuse_jax.fusion import Rule, fuse, statistical_fusion
from jacfuse_jax.fusion._rule import Grams


class Reference(NamedTuple):
    """What clean logits of one modality look like: Gaussians about class means, one covariance.

    Attributes:
      center: (K,), mean of all logits.
      whitening: S, (K, K), with S S^T the inverse of the covariance within classes.
      class_means: (K, K), row k the mean logits of class k, centered and times S.
      temperature: a scalar, see `calibration.fit_temperature`.
    """

    center: jax.Array
    whitening: jax.Array
    class_means: jax.Array
    temperature: jax.Array


class Detection(NamedTuple):
    """What `detect` returns, in nats.

    Attributes:
      log_unperturbed: (B,), log-posterior probability that no modality is perturbed.
      log_perturbed: {modality: (B,)}, that it is this one; all of these exponentials sum to one.
      disagreement: {modality: (B,)}, the evidence against the modality from what others say.
      deviation: {modality: (B,)}, the evidence from its own logits, at least -log 2.
    """

    log_unperturbed: jax.Array
    log_perturbed: dict[str, jax.Array]
    disagreement: dict[str, jax.Array]
    deviation: dict[str, jax.Array]


def fit_detector(
    logits: Mapping[str, AnyArray], labels: AnyArray, class_prior: AnyArray
) -> dict[str, Reference]:
    """Learns from clean validation data what `detect` compares with; knows of no perturbation.

    The covariance within classes is shrunk towards a multiple of the identity, by as much as suits
    so many Gaussian samples. Classes without a sample take the mean of all; with fewer than about
    ten samples a class clean logits look unusual, too.

    Args:
      logits: z, {modality: (N, K)}, of data that the classifiers were not trained on; float32 or
        float64.
      labels: (N,), integer.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.

    Returns:
      {modality: `Reference`}, in the dtype of the logits; NaN where logits are not finite, or all
      those of a class equal for every class.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree, there is no sample, or a prior is not positive or does not sum to
        one.

    References:
      Lee, Lee, Lee, Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
      Adversarial Attacks", 2018 (Gaussians of one covariance). Chen, Wiesel, Eldar, Hero,
      "Shrinkage Algorithms for MMSE Covariance Estimation", 2010 (OAS, here without the terms 2/K).
    """
    arrays, labels, _ = check_labelled(logits, labels)
    check_inputs(arrays, class_prior)
    return {name: _fit_reference(z, labels) for name, z in arrays.items()}


def detect(
    logits: Mapping[str, AnyArray],
    detector: Mapping[str, Reference],
    class_prior: AnyArray,
    *,
    prevalence: ArrayLike = 0.5,
    present: Present | None = None,
) -> Detection:
    """Posterior probabilities of which modality is perturbed, if any.

    One modality at most is perturbed, each as often as any other, in a share pi = prevalence of the
    samples; what it says then does not depend on the class. With M modalities, independent given
    the class, p_m = softmax(z_m / T_m), and A(S) = sum_k prior_k prod_{m in S} p_m(k) / prior_k,

        P(none | z) ~ (1 - pi) A(all),        P(m | z) ~ (pi / M) A(all but m) q_m(z_m) / g_m(z_m):

      - disagreement, log A(all but m) - log A(all): the others agree better without it. With two
        modalities it accuses both alike;
      - deviation, log q_m / g_m = log(1/2 + t_m(z_m) / (2 g_m(z_m))): g_m is the density of clean
        logits, a mixture of Gaussians, `Reference`; a perturbed modality says things as usual (of
        another class), or anything: t_m is the same mixture of Cauchy distributions.

    Its model of perturbations is coarse, and an attacker who knows it can evade it: with two
    modalities, an attack that moves logits to where another class has them is told from a failure
    of the other modality by the prior alone.

    Args:
      logits: z, {modality: (B, K)}, floating, at least one modality.
      detector: {modality: reference}, from `fit_detector`, of all modalities.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      prevalence: pi in [0, 1], a scalar, traced or not.
      present: see `fusion.statistical_fusion`. M is the number of modalities that a row has; what
        it lacks is not perturbed.

    Returns:
      `Detection`, NaN for samples whose logits are not finite.

    Raises:
      TypeError: logits are not floating.
      ValueError: shapes disagree, a modality has no reference, a prior is not positive or does not
        sum to one, or prevalence lies outside [0, 1].

    References:
      Derived here; of the deviation see `fit_detector`.
    """
    arrays, log_prior, checked = check_available(logits, class_prior, present)
    check_mapping("detector", detector, "reference")
    check_modalities("logits", tuple(arrays), detector)
    prevalence = check_scalar("prevalence", prevalence, log_prior.dtype, high=1)
    calibrated = silence(
        {
            name: jax.nn.log_softmax(z / detector[name].temperature.astype(z.dtype))
            for name, z in arrays.items()
        },
        log_prior,
        checked,
    )
    log_agreement = _log_agreement(calibrated, log_prior)
    disagreement = {
        name: _log_agreement({n: z for n, z in calibrated.items() if n != name}, log_prior)
        - log_agreement
        for name in arrays
    }
    has = {name: any_of([name], checked).reshape(-1) for name in arrays}
    deviation = {
        name: jnp.where(has[name], _deviation(z, detector[name], log_prior), 0)
        for name, z in arrays.items()
    }
    count = sum(mask.astype(log_prior.dtype) for mask in has.values())
    log_share = jnp.log(prevalence / jnp.maximum(count, 1))
    of_perturbed = (
        jnp.where(has[name], log_share + disagreement[name] + deviation[name], -jnp.inf)
        for name in arrays
    )
    of_none = jnp.where(count > 0, jnp.log1p(-prevalence), 0)
    scores = jnp.stack([jnp.broadcast_to(of_none, log_agreement.shape), *of_perturbed])
    log_posterior = jax.nn.log_softmax(scores, axis=0)
    return Detection(
        log_posterior[0],
        dict(zip(arrays, log_posterior[1:], strict=True)),
        disagreement,
        deviation,
    )


def detected_fusion(
    rule: Rule,
    logits: Mapping[str, AnyArray],
    detector: Mapping[str, Reference],
    class_prior: AnyArray,
    *,
    prevalence: ArrayLike = 0.5,
    grams: Grams | None = None,
    present: Present | None = None,
) -> jax.Array:
    """Fuses without knowing which modality is perturbed: averages over the answers.

        p = P(none | z) p_statistical + sum_m P(m | z) p_m,

    p_m the fused prediction of a rule that believes modality m perturbed, P from `detect`. Smooth
    in the logits where the rule is.

    Args:
      rule: with its parameters; applied once a modality.
      logits: z, {modality: (B, K)}, floating, at least one modality.
      detector: {modality: reference}, from `fit_detector`, of all modalities.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      prevalence: see `detect`.
      grams: as in `fusion.fuse`, of every modality, for the rules that need them.
      present: see `detect`.

    Returns:
      (B, K) log-probabilities, in the dtype of the logits.

    Raises:
      TypeError, ValueError: as `detect` and `fusion.fuse`.

    References:
      Derived here.
    """
    detection = detect(logits, detector, class_prior, prevalence=prevalence, present=present)
    arrays = check_logits(logits)
    terms = [
        detection.log_unperturbed[:, None]
        + statistical_fusion(arrays, class_prior, present=present),
        *(
            log_posterior[:, None]
            + fuse(rule, arrays, class_prior, perturbed=name, grams=grams, present=present)
            for name, log_posterior in detection.log_perturbed.items()
        ),
    ]
    return in_dtype_of(logits, jax.nn.logsumexp(jnp.stack(terms), axis=0))


def _fit_reference(z: jax.Array, labels: jax.Array) -> Reference:
    num_samples, num_classes = z.shape
    z = jnp.where(labels[:, None] < num_classes, z, jnp.nan)
    center = z.mean(axis=0)
    centered = z - center[None]
    indicator = jax.nn.one_hot(labels, num_classes, dtype=z.dtype)
    counts = indicator.sum(axis=0)[:, None]
    means = product(indicator.T, centered) / jnp.maximum(counts, 1)
    residual = centered - product(indicator, means)
    freedom = jnp.maximum(num_samples - (counts > 0).sum(), 1).astype(
        z.dtype
    )  # means take the rest
    covariance = product(residual.T, residual) / freedom
    variance = jnp.trace(covariance) / num_classes
    square = (covariance**2).mean()
    excess = (freedom + 1) * (square - variance**2 / num_classes)
    shrinkage = jnp.where(excess > 0, jnp.minimum((square + variance**2) / excess, 1), 1)
    identity = jnp.eye(num_classes, dtype=z.dtype)
    shrunk = (1 - shrinkage) * covariance + shrinkage * variance * identity
    whitening = solve_triangular(jnp.linalg.cholesky(shrunk), identity, lower=True).T
    return Reference(
        center,
        whitening,
        product(means, whitening),
        fit_temperature(z, labels),
    )


def _log_agreement(log_probs: Mapping[str, jax.Array], log_prior: jax.Array) -> jax.Array:
    """Log A, log sum_k prior_k prod_m p_m(k) / prior_k; (B,), or a scalar zero of no modality."""
    ratios = sum(
        (log_p - like_rows(log_prior, log_p) for log_p in log_probs.values()),
        start=log_prior[None] if log_probs else log_prior,
    )
    return jax.nn.logsumexp(ratios, axis=-1)


def _deviation(z: jax.Array, reference: Reference, log_prior: jax.Array) -> jax.Array:
    """log(1/2 + t(z) / (2 g(z))), (B,)."""
    center, whitening, means, _ = (x.astype(z.dtype) for x in reference)
    num_classes = z.shape[-1]
    w = product(z - center[None], whitening)
    products = product(w, means.T)
    squares = (w**2).sum(axis=-1, keepdims=True) - 2 * products + (means**2).sum(axis=-1)[None]
    squares = jnp.maximum(squares, 0)
    half = (1 + num_classes) / 2
    # Normalisation of the Cauchy distribution over that of the Gaussian: the covariances cancel.
    log_ratio = math.lgamma(half) - math.log(math.pi) / 2 + num_classes / 2 * math.log(2)
    log_cauchy = jax.nn.logsumexp(log_prior[None] - half * jnp.log1p(squares), axis=-1) + log_ratio
    log_gaussian = jax.nn.logsumexp(log_prior[None] - squares / 2, axis=-1)
    return jnp.logaddexp(log_cauchy - log_gaussian, 0) - math.log(2)
