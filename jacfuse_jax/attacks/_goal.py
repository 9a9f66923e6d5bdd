"""What an attack is after, the loss that it raises for it, and which of two points is better."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jacfuse_jax._checks import check_choice
from jacfuse_jax.attacks._samples import select
from jacfuse_jax.attacks.losses import cross_entropy, dlr, margin, targeted_dlr

LogProbFn = Callable[[dict[str, Any]], jax.Array]
LossFn = Callable[..., jax.Array]
LossName = Literal["cross_entropy", "margin", "dlr"]


class Goal(NamedTuple):
    """Labels (B,) that the prediction shall leave, and targets (B,) that it shall reach, if any."""

    labels: jax.Array
    targets: jax.Array | None = None

    def is_reached(self, log_probs: jax.Array) -> jax.Array:
        """Whether the most likely class is the target or, without targets, not the label; (B,)."""
        predicted = log_probs.argmax(axis=-1).astype(self.labels.dtype)
        return predicted != self.labels if self.targets is None else predicted == self.targets

    def loss(self, loss_fn: LossFn, log_probs: jax.Array) -> jax.Array:
        """`loss_fn` of the log-probabilities and all classes that there are; (B,)."""
        if self.targets is None:
            return loss_fn(log_probs, self.labels)
        return loss_fn(log_probs, self.labels, self.targets)

    def margin(self, log_probs: jax.Array) -> jax.Array:
        """Positive where the goal is reached and negative where it is not; (B,)."""
        return self.loss(margin if self.targets is None else _target_margin, log_probs)


class Candidate(NamedTuple):
    """Perturbed modalities, (B,) losses, and (B,) whether the goal is reached."""

    x: dict[str, jax.Array]
    loss: jax.Array
    success: jax.Array


def choose_loss(loss: LossName | LossFn, goal: Goal) -> LossFn:
    """The loss of that name for the goal; a callable is returned as it is."""
    if callable(loss):
        return loss
    known: dict[str, tuple[LossFn, LossFn]] = {
        "cross_entropy": (cross_entropy, _target_log_prob),
        "margin": (margin, _target_margin),
        "dlr": (dlr, _target_dlr),
    }
    check_choice("loss", loss, tuple(known))
    return known[loss][goal.targets is not None]


def _target_log_prob(log_probs: jax.Array, _: jax.Array, targets: jax.Array) -> jax.Array:
    return -cross_entropy(log_probs, targets)


def _target_margin(log_probs: jax.Array, _: jax.Array, targets: jax.Array) -> jax.Array:
    return -margin(log_probs, targets)


def _target_dlr(log_probs: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Where the target is the label, its ratio is zero everywhere: that of the label serves."""
    towards_target = targeted_dlr(log_probs, labels, targets)
    return jnp.where(targets == labels, -dlr(log_probs, labels), towards_target)


def make_loss_fn(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    goal: Goal,
    loss: LossFn,
) -> Callable[[dict[str, jax.Array]], tuple[jax.Array, Candidate]]:
    """The loss as a function of the perturbed modalities: its sum to differentiate, and the rest.

    The sum gives every sample the cotangent 1, so that NaN in one reaches no other.
    """

    def loss_fn(perturbed: dict[str, jax.Array]) -> tuple[jax.Array, Candidate]:
        log_probs = log_prob_fn({**inputs, **perturbed})
        losses = goal.loss(loss, log_probs)
        if losses.shape != goal.labels.shape:
            raise ValueError(
                f"loss must return shape {goal.labels.shape}, one number a sample, got "
                f"{losses.shape}"
            )
        success = goal.is_reached(log_probs) & ~jnp.isnan(losses)
        return losses.sum(), Candidate(perturbed, losses, success)

    return loss_fn


def keep_stronger(
    best: Candidate,
    new: Candidate,
    *,
    success_first: bool,
    freeze_success: bool = False,
) -> Candidate:
    """The candidate of higher loss, sample by sample; one whose loss is NaN is never taken.

    Optionally one that has reached the goal beats one that has not, and is itself never replaced.
    """
    stronger = new.loss > best.loss
    if success_first:
        equals = new.success == best.success
        stronger = jnp.where(equals, stronger, new.success)
    if freeze_success:
        stronger &= ~best.success
    return select(stronger, new, best)
