"""What is learned from held-out logits: class prior, temperatures, numbers of the rule."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from jacfuse_jax.calibration import (
    WITH_CONTAMINATION,
    WITH_GAMMA,
    choose_contamination,
    choose_gamma,
    fit_temperature,
)
from jacfuse_jax.fusion import Rule
from jacfuse_jax.linalg import GramSpectrum

Logits = dict[str, NDArray[np.float64]]
CHOOSABLE = {"contamination": WITH_CONTAMINATION, "gamma": WITH_GAMMA}
"""{parameter: rules for which it can be chosen}, in the order of choices."""
_SMALLEST_BATCH = 256


def class_prior_of(
    class_prior: ArrayLike | None,
    labels: NDArray[Any],
    weights: NDArray[np.float64],
    classes: NDArray[Any],
) -> NDArray[np.float64]:
    """The class prior given, or the frequencies of the labels; raises unless it is one."""
    if class_prior is None:
        counts = np.bincount(labels, weights, minlength=len(classes))
        if not counts.all():
            raise ValueError(
                f"y lacks the classes {classes[counts == 0].tolist()} of the classifiers, or gives "
                "them no weight: give class_prior, the class frequencies of their training labels"
            )
        return counts / counts.sum()
    prior = np.asarray(class_prior, np.float64)
    if prior.shape != classes.shape:
        raise ValueError(
            f"class_prior must have shape {classes.shape}, one entry a class, got {prior.shape}"
        )
    if not (prior > 0).all() or not np.isclose(prior.sum(), 1):
        raise ValueError(f"class_prior must be positive and sum to one, got {prior}")
    return prior


def temperature_of(
    logits: NDArray[np.float64], labels: NDArray[Any], weights: NDArray[np.float64]
) -> float:
    """Temperature of the held-out logits; 1 where no finite one is the best."""
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    return float(_fit_temperature(pad(logits), pad(labels), weights=pad(weights)))


def choose_numbers(
    rule: Rule,
    choose: Sequence[str],
    logits: Logits,
    labels: NDArray[Any],
    class_prior: NDArray[np.float64],
    *,
    weights: NDArray[np.float64],
    perturbed: tuple[str, ...],
    grams: dict[str, GramSpectrum],
    random_state: Any,
) -> Rule:
    """The rule with numbers of Python, some of them chosen on held-out logits."""
    arguments = (logits, labels, class_prior)
    options: Any = {"perturbed": perturbed, "weights": weights}
    if "contamination" in choose:
        choice: Any = _choose_contamination(rule, *arguments, **options)
        rule = dataclasses.replace(rule, contamination=choice.contamination)
    if "gamma" in choose:
        seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
        choice = _choose_gamma(rule, *arguments, seed, grams=grams, **options)
        rule = dataclasses.replace(rule, gamma=choice.gamma)
    return jax.tree.map(_on_host, rule)


def pad(rows: NDArray[Any]) -> NDArray[Any]:
    """Adds rows of zeros up to a power of two, so that few shapes are compiled."""
    size = max(_SMALLEST_BATCH, 1 << (len(rows) - 1).bit_length())
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


_fit_temperature = jax.jit(fit_temperature)
_choose_contamination = jax.jit(choose_contamination, static_argnames="perturbed")


@partial(jax.jit, static_argnames="perturbed")
def _choose_gamma(
    rule: Any,
    logits: Logits,
    labels: jax.Array,
    class_prior: jax.Array,
    seed: jax.Array,
    *,
    grams: dict[str, GramSpectrum],
    perturbed: tuple[str, ...],
    weights: jax.Array,
) -> Any:
    """`calibration.choose_gamma`, of a seed."""
    options: Any = {"perturbed": perturbed, "grams": grams, "weights": weights}
    return choose_gamma(rule, logits, labels, class_prior, jax.random.key(seed), **options)


def _on_host(leaf: Any) -> Any:
    """A number as Python's, an array as NumPy's."""
    array = np.asarray(leaf)
    return array if array.ndim else array.item()
