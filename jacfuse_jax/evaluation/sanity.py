"""Checks that tell a robust prediction from an attack that fails: of attacks against each other.

Each holds one figure against a limit. What they look for is described in Carlini et al., "On
Evaluating Adversarial Robustness", 2019, and Athalye, Carlini, Wagner, "Obfuscated Gradients Give a
False Sense of Security", 2018.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import attacks
from jacfuse_jax._batching import iterate_batches

Arrays = dict[str, Any]
LogProbFn = Callable[[Arrays], jax.Array]

_POINTS = 0.005  # half a point of accuracy


class Check(NamedTuple):
    """The outcome of one check.

    Attributes:
      name: what is asked.
      value: the figure.
      limit: its largest admissible value.
      passed: whether value <= limit, to rounding; False for NaN.
      detail: what the figure is.
    """

    name: str
    value: float
    limit: float
    passed: bool
    detail: str


class Subject(NamedTuple):
    """A prediction under attack.

    Attributes:
      log_prob_fn: maps {modality: (B, ...)} to log-probabilities (B, K).
      inputs: {modality: (N, ...)}.
      labels: (N,).
      perturbed: the modality to attack.
      valid_range: of its entries.
      others_accuracy: accuracy without the perturbed modality; None if there is no other.
    """

    log_prob_fn: LogProbFn
    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any]
    perturbed: str
    valid_range: tuple[float, float]
    others_accuracy: float | None


def check_attacks(
    subject: Subject,
    *,
    epsilons: Sequence[float],
    num_steps: int,
    num_queries: int,
    batch_size: int,
    key: jax.Array,
) -> list[Check]:
    """Attacks a prediction in several ways that bound each other.

    Args:
      subject: the prediction.
      epsilons: increasing linf radii; the whole valid range is added.
      num_steps: of PGD.
      num_queries: of the attacks without gradients.
      batch_size: samples at a time.
      key: of the attacks.

    Returns:
      The checks, in a fixed order.
    """
    low, high = subject.valid_range
    radii = [*epsilons, high - low]
    pgd, steps = attacks.pgd, (max(1, num_steps // 4), num_steps, 2 * num_steps)
    attack_fns = {
        "fgm": lambda *args, **kwargs: attacks.fgm(*args[:-1], **kwargs),
        **{f"pgd {n}": partial(pgd, num_steps=n) for n in steps},
        "apgd": partial(attacks.apgd, num_steps=num_steps, loss="margin"),
        "square": partial(attacks.square, num_queries=num_queries),
        "random search": partial(attacks.random_search, num_queries=num_queries),
    }
    outcomes = {
        name: [_attack(subject, attack_fn, radius, batch_size, key) for radius in radii]
        for name, attack_fn in attack_fns.items()
    }
    # By radius: (N,) samples that stay correct under every attack of a kind.
    with_gradients = _worst_case(outcomes, [*(f"pgd {n}" for n in steps), "apgd"])
    without = _worst_case(outcomes, ["square", "random search"])
    accuracy = {
        name: np.array([outcome.correct.mean() for outcome in of_radii])
        for name, of_radii in outcomes.items()
    }
    of_steps, doubled = accuracy[f"pgd {num_steps}"], accuracy[f"pgd {2 * num_steps}"]
    by_steps = np.stack([accuracy[f"pgd {n}"] for n in steps])
    excess = max(outcome.excess for of_radii in outcomes.values() for outcome in of_radii)
    return [
        make_check(
            "PGD is at least as strong as FGM",
            (of_steps - accuracy["fgm"]).max(),
            _POINTS,
            f"accuracy under PGD-{num_steps} minus FGM, largest over epsilon",
        ),
        make_check(
            "more steps are never weaker",
            np.diff(by_steps, axis=0).max(),
            _POINTS,
            f"rise of accuracy from one to the next of {_join(steps)} steps",
        ),
        make_check(
            "PGD has converged",
            np.abs(doubled - of_steps).max(),
            _POINTS,
            f"change of accuracy from {num_steps} to {2 * num_steps} steps, largest over epsilon",
        ),
        make_check(
            "accuracy falls with epsilon",
            np.diff(with_gradients).max(),
            _POINTS,
            f"rise of the worst case from one to the next of {_join(radii)}",
        ),
        make_check(
            "no attack is weaker with a larger epsilon",
            max(np.diff(accuracy[name]).max() for name in ("apgd", f"pgd {num_steps}")),
            _POINTS,
            f"rise of accuracy under APGD or PGD-{num_steps} to the next of {_join(radii)}",
        ),
        _check_end(subject, min(with_gradients[-1], without[-1]), batch_size),
        make_check(
            "gradients beat attacks without them",
            (with_gradients - without).max(),
            _POINTS,
            f"worst case of PGD and APGD minus that of Square and random search ({num_queries} "
            "queries)",
        ),
        make_check(
            "budgets are kept",
            excess,
            8 * float(np.finfo(np.float32).eps),
            "largest excess over epsilon or the valid range, relative to the range",
        ),
    ]


def make_check(name: str, value: Any, limit: float, detail: str) -> Check:
    """Holds a figure against its limit.

    Args:
      name: what is asked.
      value: the figure.
      limit: its largest admissible value.
      detail: what the figure is.

    Returns:
      The check.
    """
    # One of 200 samples is half a point, and passes.
    return Check(name, float(value), limit, bool(value <= limit + 1e-9), detail)


def iterate_subject(subject: Subject, batch_size: int) -> Any:
    """Batches of a subject's inputs and of `label`, with the `mask` of what counts.

    Args:
      subject: the prediction.
      batch_size: samples at a time.
    """
    return iterate_batches({**subject.inputs, "label": subject.labels}, batch_size)


def _worst_case(
    outcomes: Mapping[str, Sequence["_Outcome"]], names: Sequence[str]
) -> NDArray[np.float64]:
    """Accuracy where a sample counts only if it withstands all of the attacks; one a radius."""
    by_radius = zip(*(outcomes[name] for name in names), strict=True)
    return np.array(
        [np.all([outcome.correct for outcome in of], axis=0).mean() for of in by_radius]
    )


def _join(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)


def _check_end(subject: Subject, accuracy: float, batch_size: int) -> Check:
    """Whether an attacker who may choose any input leaves nothing of the attacked modality."""
    num_classes = _predict(subject, batch_size).shape[1]
    chance = 1 / num_classes
    others = subject.others_accuracy
    limit = chance if others is None else max(chance, others)
    if accuracy <= chance + _POINTS:
        reached = "chance"
    elif accuracy <= limit + _POINTS:
        reached = "the accuracy of the other modalities"
    else:
        reached = "neither chance nor the accuracy of the other modalities"
    return make_check(
        "nothing is left at the largest epsilon",
        accuracy,
        limit + _POINTS,
        f"accuracy where any valid input is allowed: reaches {reached}",
    )


class _Outcome(NamedTuple):
    """Of one attack: (N,) correct predictions, and by how much it left its budget."""

    correct: NDArray[np.bool_]
    excess: float


def _attack(
    subject: Subject, attack_fn: Callable[..., Arrays], radius: float, batch_size: int, key: Any
) -> _Outcome:
    """Runs an attack on all samples."""
    perturbed, (low, high) = subject.perturbed, subject.valid_range
    correct: list[NDArray[np.bool_]] = []
    excess = 0.0
    for index, batch in enumerate(iterate_subject(subject, batch_size)):
        count = int(batch.pop("mask").sum())
        labels = batch.pop("label")
        moved, predicted = _attack_batch(
            attack_fn,
            subject.log_prob_fn,
            perturbed,
            subject.valid_range,
            batch,
            labels,
            radius,
            jax.random.fold_in(key, index),
        )
        clean, moved = (np.asarray(x[:count], np.float64) for x in (batch[perturbed], moved))
        correct.append(np.asarray(predicted == labels)[:count])
        # Inputs that leave the valid range themselves may stay where they are.
        outside = np.maximum(moved - np.maximum(high, clean), np.minimum(low, clean) - moved)
        beyond = max(float((np.abs(moved - clean) - radius).max()), float(outside.max()))
        excess = max(excess, beyond / (high - low))
    return _Outcome(np.concatenate(correct), excess)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _attack_batch(
    attack_fn: Callable[..., Arrays],
    log_prob_fn: LogProbFn,
    perturbed: str,
    valid_range: tuple[float, float],
    inputs: Arrays,
    labels: jax.Array,
    radius: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The perturbed inputs and the classes predicted for them; compiled once for all radii."""
    moved = attack_fn(
        log_prob_fn,
        inputs,
        labels,
        key,
        epsilon={perturbed: radius},
        valid_range={perturbed: valid_range},
    )
    return moved[perturbed], log_prob_fn(moved).argmax(axis=-1)


def _predict(subject: Subject, batch_size: int) -> NDArray[Any]:
    """Log-probabilities of the first batch."""
    batch = next(iterate_subject(subject, batch_size))
    return np.asarray(subject.log_prob_fn({name: batch[name] for name in subject.inputs}))
