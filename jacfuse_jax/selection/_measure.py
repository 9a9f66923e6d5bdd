"""How right rules are where nothing fails, and where a modality does."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jacfuse_jax import metrics
from jacfuse_jax._arrays import as_array
from jacfuse_jax._batching import pad_rows
from jacfuse_jax._checks import check_class_prior, check_labelled, check_modalities, pick
from jacfuse_jax._presence import Present, check_present
from jacfuse_jax.certificates import CERTIFIED, certify_modality
from jacfuse_jax.fusion import Rule, fuse, statistical_fusion
from jacfuse_jax.fusion._supported import check_parameters
from jacfuse_jax.linalg import GramSpectrum
from jacfuse_jax.selection._candidates import Candidate
from jacfuse_jax.selection._faults import FAULTS, RAISED_BY, draw_variants
from jacfuse_jax.selection._folds import assign_folds
from jacfuse_jax.selection._suspects import Suspects

Against = Literal["faults", "anything"]
"""What the suspects may do: fail in one of `FAULTS`, or say anything at all."""
AGAINST: tuple[Against, ...] = get_args(Against)
_Rows = NDArray[np.float64]
_Arrays = tuple[NDArray[Any], ...]


class Figures(NamedTuple):
    """Means over rows.

    Attributes:
      accuracy: share of rows that are right.
      nll: negative log-likelihood of the labels, in nats.
      ece: expected calibration error, over 15 bins.
    """

    accuracy: float
    nll: float
    ece: float


class Measured(NamedTuple):
    """What `measure` finds of a rule. Rows have a fitted rule that was fitted to others.

    Attributes:
      rule: fitted to all rows, if it is fitted.
      clean: (N,), one where it is right and nothing fails.
      faults: {fault: (N,)}, the share of draws in which it is right, in the worst case of those
        that `Suspects.cases` has.
      confidence: (N,), the probability of the predicted class, nothing failing; zero where there is
        no prediction.
      certified: (N,), whether no case changes the prediction, whatever its modalities say, exactly;
        None for rules of which that is not known.
      figures: {"clean" or fault: means over rows}; likelihood and calibration where a modality is
        saturated are those of the class that hurts the likelihood most.
    """

    rule: Rule
    clean: _Rows
    faults: dict[str, _Rows]
    confidence: _Rows
    certified: NDArray[np.bool_] | None
    figures: dict[str, Figures]

    @property
    def any_input(self) -> _Rows | None:
        """Where it is right whatever the modalities of any case say, (N,); or None."""
        return None if self.certified is None else self.clean * self.certified

    def worst(self, against: Against, weights: _Rows | None = None) -> tuple[str, _Rows] | None:
        """The worst case: its name, and how right the rule is then, (N,); None if not known.

        Args:
          against: "faults", the one of the least accuracy, or "anything".
          weights: (N,), of rows; None: all the same.
        """
        if against == "faults":
            return min(self.faults.items(), key=lambda x: np.average(x[1], weights=weights))
        return None if self.any_input is None else ("anything", self.any_input)


def measure(
    candidates: Sequence[Candidate],
    logits: Mapping[str, ArrayLike],
    labels: ArrayLike,
    class_prior: ArrayLike,
    suspects: Suspects,
    *,
    grams: Mapping[str, GramSpectrum] | None = None,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    present: Present | None = None,
    seed: int = 0,
) -> list[Measured]:
    """Measures rules on labelled rows that nothing was done to.

    Each kind of rule is compiled once. Not for `jax.jit`.

    Args:
      candidates: rules; see `candidates`.
      logits: {modality: (N, K)}, of clean validation rows; floating.
      labels: (N,), integer.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      suspects: which modalities may fail.
      grams: as in `fusion.fuse`, for the rules that need them.
      groups: (N,), equal for rows that depend on each other; swapped rows are of one fold of them.
      weights: (N,), not negative, of rows; None: all the same. They tell which case is the worst
        one, and enter figures.
      present: see `fusion.statistical_fusion`.
      seed: of the faults.

    Returns:
      What is found of each, in their order.

    Raises:
      TypeError: logits are not floating, or labels not integer.
      ValueError: shapes disagree, a modality is unknown, a prior is not positive or does not sum to
        one, a parameter is out of range, or there are fewer than two groups.
    """
    arrays, classes, dtype = check_labelled(logits, labels)
    num_classes = next(iter(arrays.values())).shape[1]
    prior = check_class_prior(class_prior, num_classes, dtype)
    check_present(present, arrays)
    for candidate in candidates:
        check_parameters(candidate.rule, num_classes, tuple(arrays))
    names = check_modalities("perturbed", suspects.perturbed, arrays)
    for case in suspects.cases:
        check_modalities("cases", case, arrays)
    num_rows = len(classes)
    everywhere = np.ones(num_rows, bool)
    masks = {name: as_array((present or {}).get(name, everywhere)) for name in arrays}
    shared: dict[str, Any] = {
        "logits": {name: pad_rows(z) for name, z in arrays.items()},
        "present": {name: pad_rows(mask) for name, mask in masks.items()},
        "class_prior": prior,
    }
    row_weights = np.ones(num_rows) if weights is None else np.asarray(weights, np.float64)
    log_probs = np.asarray(_fuse_statistically(**shared))[:num_rows]
    names_of_variants, *variants = draw_variants(
        np.asarray(classes),
        np.argsort(-log_probs, axis=1, kind="stable"),
        assign_folds(num_rows, groups=groups, seed=seed),
        seed,
    )
    source, is_there, raised = variants
    shared["perturbed"] = names
    options: dict[str, Any] = {
        "labels": pad_rows(classes),
        "grams": grams or {},
        "variants": (pad_rows(source.T).T, is_there, pad_rows(raised.T).T),
    }

    def apply(rule: Rule, failing: tuple[str, ...]) -> _Arrays:
        is_failing = {name: name in failing for name in arrays}
        found = _try_all(rule, failing=is_failing, **shared, **options)
        return tuple(np.asarray(x)[:, :num_rows] for x in found)

    def certify(rule: Rule) -> _Arrays:
        found = _is_certified(rule, cases=suspects.cases, **shared)
        return (np.asarray(found)[None, :num_rows],)

    def measure_one(candidate: Candidate) -> Measured:
        found = [
            _by_fault(
                names_of_variants, _of_folds(candidate, functools.partial(apply, failing=case))
            )
            for case in suspects.cases
        ]
        worst = {
            fault: min(
                (each[fault] for each in found),
                key=lambda rows: np.average(rows.right, weights=row_weights),
            )
            for fault in ("clean", *FAULTS)
        }
        certified = None
        if type(candidate.rule) in CERTIFIED:
            certified = _of_folds(candidate, certify)[0][0]
        return Measured(
            candidate.rule,
            worst["clean"].right,
            {fault: worst[fault].right for fault in FAULTS},
            np.where(np.isnan(worst["clean"].nll[0]), 0, worst["clean"].confidence[0]),
            certified,
            {fault: rows.figures(row_weights) for fault, rows in worst.items()},
        )

    return [measure_one(candidate) for candidate in candidates]


class _Outcome(NamedTuple):
    """What becomes of N rows under a fault: right, and, of D draws, likelihood and confidence."""

    right: _Rows
    nll: _Rows
    confidence: _Rows
    correct: _Rows

    def figures(self, weights: _Rows) -> Figures:
        """Means over rows and draws."""
        return Figures(
            float(np.average(self.right, weights=weights)),
            float(np.average(self.nll.mean(axis=0), weights=weights)),
            metrics.expected_calibration_error(
                self.confidence.ravel(),
                self.correct.ravel(),
                weights=np.broadcast_to(weights, self.nll.shape).ravel(),
            ),
        )


def _by_fault(names: NDArray[np.str_], found: _Arrays) -> dict[str, _Outcome]:
    """Outcomes of variants (D, N), by fault."""
    outcomes: dict[str, _Outcome] = {}
    for fault in ("clean", *FAULTS):
        right, nll, confidence = (x[names == fault].astype(np.float64) for x in found)
        of_rows = right.mean(axis=0)
        if fault == "saturated":
            of_rows = right.min(axis=0)
            worst = np.where(np.isnan(nll), np.inf, nll).argmax(axis=0)[None]
            right, nll, confidence = (
                np.take_along_axis(x, worst, axis=0) for x in (right, nll, confidence)
            )
        outcomes[fault] = _Outcome(of_rows, nll, confidence, right)
    return outcomes


def _of_folds(candidate: Candidate, apply_fn: Callable[[Rule], _Arrays]) -> _Arrays:
    """Arrays (D, N), of each row those of the rule that was fitted without it."""
    if candidate.folds is None:
        return apply_fn(candidate.rule)
    of_rules = [apply_fn(rule) for rule in candidate.held_out]
    places = candidate.folds[None, None]
    return tuple(
        np.take_along_axis(np.stack(of_rule), places, axis=0)[0]
        for of_rule in zip(*of_rules, strict=True)
    )


@jax.jit
def _fuse_statistically(
    logits: Mapping[str, jax.Array], present: Mapping[str, jax.Array], class_prior: jax.Array
) -> jax.Array:
    return statistical_fusion(logits, class_prior, present=present)


@functools.partial(jax.jit, static_argnames="perturbed")
def _try_all(
    rule: Rule,
    *,
    logits: Mapping[str, jax.Array],
    present: Mapping[str, jax.Array],
    labels: jax.Array,
    class_prior: jax.Array,
    grams: Mapping[str, GramSpectrum],
    variants: tuple[jax.Array, ...],
    failing: Mapping[str, jax.Array],
    perturbed: tuple[str, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which rows are right (D, N), their negative log-likelihoods and confidences."""
    rows = jnp.arange(len(labels), dtype=jnp.int32)

    def try_one(variant: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        source, is_there, raised = variant
        said: dict[str, jax.Array] = {}
        masks: dict[str, jax.Array] = {}
        for name, z in logits.items():
            taken = jnp.where(failing[name], source, rows)
            # Of no class the row is zeros.
            one_hot = jax.nn.one_hot(raised, z.shape[-1], dtype=z.dtype)
            said[name] = z[taken] + jnp.where(failing[name], RAISED_BY, 0) * one_hot
            masks[name] = present[name][taken] & (is_there | ~failing[name])
        log_probs = fuse(rule, said, class_prior, perturbed=perturbed, grams=grams, present=masks)
        is_right = log_probs.argmax(axis=-1).astype(labels.dtype) == labels
        is_number = ~jnp.isnan(log_probs).any(axis=-1)
        return (
            is_right & is_number,
            -pick(log_probs, labels),
            jnp.where(is_number, jnp.exp(log_probs.max(axis=-1)), 1),
        )

    return jax.lax.map(try_one, variants)


@functools.partial(jax.jit, static_argnames=("perturbed", "cases"))
def _is_certified(
    rule: Any,
    *,
    logits: Mapping[str, jax.Array],
    present: Mapping[str, jax.Array],
    class_prior: jax.Array,
    perturbed: tuple[str, ...],
    cases: tuple[tuple[str, ...], ...],
) -> jax.Array:
    """Which rows no modalities of any case can change, whatever they say, (N,)."""
    certificates = [
        certify_modality(
            rule, logits, class_prior, corrupted=case, perturbed=perturbed, present=present
        )
        for case in cases
    ]
    return jnp.stack([each.certified for each in certificates]).all(axis=0)
