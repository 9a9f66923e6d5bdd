"""What is learned from held-out logits: class prior, temperatures, the rule."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jacfuse_jax import selection
from jacfuse_jax._batching import pad_rows
from jacfuse_jax.calibration import fit_temperature
from jacfuse_jax.fusion import Rule
from jacfuse_jax.linalg import GramSpectrum

Logits = dict[str, NDArray[np.float64]]


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
    return float(_fit_temperature(pad_rows(logits), pad_rows(labels), weights=pad_rows(weights)))


def choose_rule(
    rule: Rule | None,
    parameters: Sequence[str],
    logits: Logits,
    labels: NDArray[Any],
    class_prior: NDArray[np.float64],
    *,
    share: float,
    against: selection.Against,
    perturbed: tuple[str, ...],
    grams: dict[str, GramSpectrum],
    weights: NDArray[np.float64],
    groups: NDArray[Any] | None,
    seed: int,
) -> tuple[Rule, dict[str, Any]]:
    """A rule, or parameters of one, chosen on held-out logits; and what is expected of it."""
    suspects = selection.Suspects.among(perturbed, logits)
    arguments = (logits, labels, class_prior, suspects)
    if rule is None:
        candidates = selection.candidates(
            *arguments, shares=[share], groups=groups, weights=weights, seed=seed
        )
        baselines: list[selection.Candidate] = []
    else:
        candidates = [selection.Candidate(one) for one in selection.grid(rule, parameters)]
        simple = selection.baselines(suspects, logits)
        baselines = [selection.Candidate(one) for one in simple]
    options: Any = {"groups": groups, "seed": seed}
    options["weights"] = weights
    found = selection.measure([*baselines, *candidates], *arguments, grams=grams, **options)
    choice = selection.choose(
        found[len(baselines) :],
        share,
        against=against,
        baselines=found[: len(baselines)],
        **options,
    )
    return choice.rule, selection.choice_to_dict(choice)


def on_host(rule: Rule) -> Rule:
    """The rule with numbers of Python's."""
    return jax.tree.map(_on_host, rule)


_fit_temperature = jax.jit(fit_temperature)


def _on_host(leaf: Any) -> Any:
    """A number as Python's, an array as NumPy's."""
    array = np.asarray(leaf)
    return array if array.ndim else array.item()
