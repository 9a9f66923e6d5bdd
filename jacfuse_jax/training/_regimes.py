"""How a unimodal classifier is trained: as it is, or to withstand perturbations of its input.

Every regime is a loss of one model and one batch for `fit`. What a loss needs beside the
rows (a PRNG key, the valid range of the inputs) comes with the batch: so a regime is one function
object, compiled once for every architecture, and an epoch repeats when training is resumed.

Models with batch normalisation: cross-entropies are those of training mode and update the running
statistics, those on perturbed inputs too, as one model has to serve both. Derivatives in the input
are those of the model in evaluation mode, which is what will be attacked; there they cannot reach
other samples through the statistics of the batch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jacfuse_jax import attacks
from jacfuse_jax.training._loop import Batch, LossFn, cross_entropy

NOISE_STDDEV = 0.2  # a fifth of the range of the inputs, which is about one
PGD_EPSILON = 0.1  # linf radius; the middle one of the attacks that are evaluated
PGD_STEPS = 5  # of epsilon / 2 each; Madry et al. take 40 on MNIST, at 6 times the cost
JACOBIAN_WEIGHT = 0.01  # lambda, that of Hoffman et al. on MNIST

_STREAM = 1  # keeps what is drawn apart from the order of the rows, whose seed is the same


def choose_loss_fn(regime: str) -> LossFn:
    """The loss that a regime minimises; the same function object at every call.

    Args:
      regime: one of `REGIMES`.

    Returns:
      loss_fn(model, batch) -> (B,), on batches of `add_randomness`.

    Raises:
      ValueError: unknown regime.
    """
    if regime not in _LOSS_FNS:
        raise ValueError(f"regime must be one of {', '.join(REGIMES)}, got {regime!r}")
    return _LOSS_FNS[regime]


def add_randomness(
    batches: Iterable[Mapping[str, Any]],
    seed: Sequence[int],
    valid_range: tuple[float, float],
    *,
    radius_share: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """Adds to every batch what the losses of the regimes read.

    Args:
      batches: of one epoch.
      seed: for `np.random.default_rng`, for example (seed, modality index, epoch).
      valid_range: (low, high) of the training inputs.
      radius_share: what adversarial perturbations have of `PGD_EPSILON`, see `pgd_loss`.

    Yields:
      The batches with "key", a PRNG key that depends on the seed and the batch's place alone,
      "valid_range" and "radius_share".
    """
    rng = np.random.default_rng((*seed, _STREAM))
    for batch in batches:
        key = jax.random.key(int(rng.integers(2**32)))
        yield {
            **batch,
            "key": key,
            "valid_range": valid_range,
            "radius_share": radius_share,
        }


def noise_loss(model: Any, batch: Batch) -> jax.Array:
    """Cross-entropy on noisy inputs, clip(x + `NOISE_STDDEV` n), n standard normal.

    Args:
      model: maps inputs (B, ...) to a `UnimodalOutput`.
      batch: {"inputs": (B, ...), floating, "label": (B,), "key", "valid_range": (low, high)}.

    Returns:
      (B,) losses.
    """
    x = jnp.asarray(batch["inputs"])
    noise = NOISE_STDDEV * jax.random.normal(batch["key"], x.shape, x.dtype)
    noisy = jnp.clip(x + noise, *batch["valid_range"])
    return cross_entropy(model, {**batch, "inputs": noisy})


def pgd_loss(model: Any, batch: Batch) -> jax.Array:
    """Cross-entropy on adversarial inputs, max of -log p(label | x') over ||x' - x||_inf <= eps.

    The maximum is what `attacks.pgd` finds against the model in `PGD_STEPS` steps from one random
    start, eps = `radius_share` `PGD_EPSILON`, and in evaluation mode never below the loss of the
    clean input. Its derivative in the parameters is that at a fixed x' (Danskin's theorem). Where
    no model can withstand the radius, training ends at one that answers the same class always.

    Args:
      model: maps inputs (B, ...) to a `UnimodalOutput`; in evaluation mode sample b may depend on
        sample b only.
      batch: {"inputs": (B, ...), floating, "label": (B,), "key", "valid_range": (low, high),
        "radius_share"}.

    Returns:
      (B,) losses.

    References:
      Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to
      Adversarial Attacks", 2018.
    """
    # Constant parameters, so that the derivative of the loss does not go through the attack.
    graph, state = nnx.split(model)
    constant = nnx.merge(graph, jax.lax.stop_gradient(state))
    constant.eval()
    adversarial = attacks.pgd(
        lambda inputs: jax.nn.log_softmax(constant(inputs["inputs"]).logits),
        {"inputs": batch["inputs"]},
        batch["label"],
        batch["key"],
        epsilon={"inputs": batch["radius_share"] * PGD_EPSILON},
        num_steps=PGD_STEPS,
        valid_range={"inputs": batch["valid_range"]},
    )
    return cross_entropy(model, {**batch, **jax.lax.stop_gradient(adversarial)})


def jacobian_loss(model: Any, batch: Batch) -> jax.Array:
    """Cross-entropy + lambda / 2 ||J||_F^2, J = d logits / d input, lambda = `JACOBIAN_WEIGHT`.

    ||J||_F^2, of the model in evaluation mode, is estimated without bias from one random projection
    a sample, see `squared_jacobian_norm`; its derivative in the parameters takes running statistics
    for constants.

    Args:
      model: maps inputs (B, ...) to a `UnimodalOutput`; in evaluation mode sample b may depend on
        sample b only.
      batch: {"inputs": (B, ...), floating, "label": (B,), "key"}.

    Returns:
      (B,) losses.

    References:
      Hoffman, Roberts, Yaida, "Robust Learning with Jacobian Regularization", 2019.
    """
    evaluated = nnx.clone(model)
    evaluated.eval()
    penalty = squared_jacobian_norm(evaluated, jnp.asarray(batch["inputs"]), batch["key"])
    return cross_entropy(model, batch) + JACOBIAN_WEIGHT / 2 * penalty


def squared_jacobian_norm(model: Any, inputs: jax.Array, key: jax.Array) -> jax.Array:
    """Unbiased estimate K ||v^T J||^2 of ||J||_F^2, v uniform on the unit sphere of R^K.

    E[v v^T] = I / K, so that E[K v^T J J^T v] = trace(J J^T). Costs one vector-Jacobian product.

    Args:
      model: maps inputs (B, ...) to a `UnimodalOutput`; sample b may depend on sample b only.
      inputs: (B, ...), floating.
      key: PRNG key of the projections, one a sample.

    Returns:
      (B,).
    """
    logits, pullback = jax.vjp(lambda x: model(x).logits, inputs)
    v = jax.random.normal(key, logits.shape, logits.dtype)
    v /= jnp.linalg.norm(v, axis=-1, keepdims=True)
    (projected,) = pullback(v)
    return logits.shape[-1] * (projected**2).sum(tuple(range(1, inputs.ndim)))


def _half_clean(loss_fn: LossFn) -> LossFn:
    """The mean of a loss on perturbed inputs and the cross-entropy on clean ones."""

    # On perturbed inputs alone, four epochs of AV-MNIST ended at chance (PGD) or lost ten points of
    # clean accuracy (noise); half clean is what Goodfellow, Shlens, Szegedy (2015) trained with.
    def mean_loss(model: Any, batch: Batch) -> jax.Array:
        return (cross_entropy(model, batch) + loss_fn(model, batch)) / 2

    return mean_loss


_LOSS_FNS: dict[str, LossFn] = {
    "standard": cross_entropy,
    "noise": _half_clean(noise_loss),
    "pgd": _half_clean(pgd_loss),
    "jacobian": jacobian_loss,
}
REGIMES = tuple(_LOSS_FNS)
"""Names of the ways to train a unimodal classifier."""
