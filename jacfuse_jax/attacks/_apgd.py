"""Auto-PGD: projected gradient ascent with momentum that sets its own step sizes."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import check_choice, check_scalar
from jacfuse_jax.attacks._ascent import ascend
from jacfuse_jax.attacks._budget import (
    Budget,
    Norm,
    check_counts,
    make_budget,
    spoil_where_nan,
)
from jacfuse_jax.attacks._compiled import run_compiled
from jacfuse_jax.attacks._goal import (
    Candidate,
    LogProbFn,
    LossFn,
    LossName,
    choose_loss,
    make_loss_fn,
)
from jacfuse_jax.attacks._starts import check_initial, over_restarts
from jacfuse_jax.attacks.losses import mask_label, targeted_dlr


def apgd(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    key: jax.Array,
    *,
    epsilon: Mapping[str, ArrayLike],
    norm: Norm = "linf",
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: Literal["cross_entropy", "margin", "dlr", "targeted_dlr"] = "cross_entropy",
    num_targets: int = 3,
    relative_step_size: ArrayLike = 2.0,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    targets: ArrayLike | None = None,
    initial: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Any]:
    """Auto-PGD: gradient ascent on the loss with momentum and a step size per sample.

    z <- project(x + step_size direction(grad)),
    x <- project(x + 3/4 (z - x) + 1/4 (x - x_before)), direction and projection as in `pgd`.

    step_size starts at relative_step_size times epsilon. At the steps 0, 22, 41, 57, 70, 80, 87, 93
    and 99 per cent of num_steps it is halved, and the sample goes back to its point of highest
    loss, where since the last of these checkpoints (1) less than 3/4 of the steps raised the loss,
    or (2) neither the step size nor the highest loss changed. A sample whose gradient is not finite
    stays where it is until then.

    Returned is, for every sample, whichever of the clean input and all iterates is misclassified
    (argmax is not the label) and has the highest loss; the highest loss alone if none is.

    With targets those classified as the target come first instead, and the losses are log p(target)
    for "cross_entropy", log p(target) - max_{k != target} log p_k for "margin" and
    `losses.targeted_dlr` for "dlr", that is minus `losses.dlr` where the target is the label.

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities; sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a budget may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      key: PRNG key of the random starts.
      epsilon: {modality: radius} in units of the input, traced or not, each a scalar or (B,), a
        radius a sample; modalities not named are left untouched.
      norm: "linf" or "l2", per modality over all entries of a sample.
      num_steps: gradient evaluations a restart, at least 1; static.
      num_restarts: random starts, one after another in the memory of one; the first is that of a
        single start, so more are never weaker; static.
      loss: "cross_entropy", "margin", "dlr" or "targeted_dlr", see `losses`; the last runs once for
        each target and keeps the best, and takes no `targets`.
      num_targets: wrong classes that "targeted_dlr" aims at, those most likely for the clean input,
        at most K - 1; static, unused by other losses.
      relative_step_size: first step length as a share of epsilon, a scalar, traced or not; less
        than the 2 of the paper where epsilon is so large that such steps overshoot.
      valid_range: {modality: (low, high)} of valid entries, scalars or arrays; None: unbounded.
      targets: (B,), integer; classes that the samples are driven to, one that is the label
        included; None: any but the label.
      initial: {modality: (B, ...)} where the first run starts instead of at random, for all
        modalities in epsilon; projected first, unless in the budget and range already. A candidate
        itself, so that what an attack has found with a smaller epsilon is not lost.

    Returns:
      The inputs with the named modalities perturbed.

    Raises:
      TypeError: a perturbed modality is not float32 or float64, or labels or targets are not
        integer.
      ValueError: unknown norm, modality or loss, too few classes for the loss or num_targets,
        targets for "targeted_dlr", an epsilon that is not finite and >= 0 or of another shape, a
        step size that is not a finite scalar >= 0, an initial without or with another modality or
        of another shape, a label or target that is no class, or a count < 1.

    References:
      Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks", 2020.
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets)
    check_choice("loss", loss, ("cross_entropy", "margin", "dlr", "targeted_dlr"))
    if loss == "targeted_dlr" and targets is not None:
        raise ValueError(
            'loss "targeted_dlr" chooses targets itself; for given ones use loss="dlr", which then '
            "is the targeted ratio"
        )
    budget = make_budget(log_prob_fn, inputs, labels, epsilon, norm, valid_range, targets)
    share = check_scalar("relative_step_size", relative_step_size, jnp.float32)
    budget = spoil_where_nan(budget, share)
    perturbed = run_compiled(
        _apgd,
        log_prob_fn,
        inputs,
        budget,
        key,
        share,
        check_initial(initial, budget),
        norm=norm,
        num_steps=num_steps,
        num_restarts=num_restarts,
        loss=loss,
        num_targets=num_targets,
    )
    return {**inputs, **perturbed}


def _apgd(
    log_prob_fn: LogProbFn,
    inputs: dict[str, Any],
    budget: Budget,
    key: jax.Array,
    share: jax.Array,
    initial: dict[str, jax.Array] | None,
    *,
    norm: Norm,
    num_steps: int,
    num_restarts: int,
    loss: LossName | Literal["targeted_dlr"],
    num_targets: int,
) -> dict[str, jax.Array]:
    """The modalities that `apgd` perturbs."""

    def clean_candidate(loss: LossFn) -> Candidate:
        return make_loss_fn(log_prob_fn, inputs, budget.goal, loss)(budget.clean)[1]

    def strengthen(best: Candidate, loss: LossFn) -> Candidate:
        loss_fn = make_loss_fn(log_prob_fn, inputs, budget.goal, loss)

        def run(best: Candidate, start: dict[str, jax.Array]) -> Candidate:
            return ascend(loss_fn, start, best, budget, norm, num_steps, share)

        return over_restarts(
            run, best, key, num_restarts, budget=budget, norm=norm, initial=initial
        )

    if loss != "targeted_dlr":
        raised = choose_loss(loss, budget.goal)
        return strengthen(clean_candidate(raised), raised).x

    targets = _likely_targets(log_prob_fn({**inputs}), budget.goal.labels, num_targets)

    def aim_at(target: jax.Array) -> LossFn:
        return lambda log_probs, labels: targeted_dlr(log_probs, labels, target)

    # The first target is the likeliest: at the clean input its loss is the highest of all targets.
    best = clean_candidate(aim_at(targets[0]))
    best, _ = jax.lax.scan(
        lambda best, target: (strengthen(best, aim_at(target)), None), best, targets
    )
    return best.x


def _likely_targets(log_probs: jax.Array, labels: jax.Array, num_targets: int) -> jax.Array:
    """(num_targets, B): the most likely classes other than the label, likeliest first."""
    if num_targets >= log_probs.shape[-1]:
        raise ValueError(
            f"num_targets must be less than the number of classes {log_probs.shape[-1]}, got "
            f"{num_targets}"
        )
    return jax.lax.top_k(mask_label(log_probs, labels), num_targets)[1].T
