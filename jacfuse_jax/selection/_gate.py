"""The gate of the best cascade, fitted to validation rows; see `fusion.learned_cascade_fusion`."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jacfuse_jax._checks import check_labelled, check_modalities
from jacfuse_jax._presence import Present, any_of, check_present
from jacfuse_jax.fusion import Gate, contaminated_fusion, statistical_fusion
from jacfuse_jax.fusion._gate import gate_features
from jacfuse_jax.selection._folds import assign_folds
from jacfuse_jax.selection._logistic import fit_probability


def fit_gate(
    logits: Mapping[str, ArrayLike],
    labels: ArrayLike,
    class_prior: ArrayLike,
    *,
    perturbed: str | tuple[str, ...],
    attacked: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    present: Present | None = None,
    seed: int = 0,
) -> Gate:
    """Fits when trusted modalities decide alone: who is right, as functions of what they say.

    Three logistic regressions on the trusted modalities' fused posterior, for all shares of attacks
    at once: that they are right, that all modalities are right, and that all are right where the
    perturbed ones are attacked. L2 penalties are chosen by cross-validation over groups. Not for
    `jax.jit`: it computes in NumPy, float64.

    Args:
      logits: {modality: (N, K)}, of clean validation rows; floating.
      labels: (N,), integer.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities that may be attacked; some other must be left.
      attacked: (N,), in [0, 1], whether, or how often, statistical fusion is right in rows whose
        perturbed modalities are attacked; NaN of rows of which it is not known. None: never, as
        against an attacker who may say anything.
      groups: (N,), equal for rows that depend on each other; None: each by itself.
      weights: (N,), not negative, how many rows each stands for; None: one.
      present: see `fusion.statistical_fusion`; rows without a trusted modality are not used.
      seed: of the folds.

    Returns:
      The gate: `LearnedCascade(share, *gate)` for any share.

    Raises:
      TypeError: logits are not floating, or labels not integer.
      ValueError: shapes disagree, no modality is trusted, there are fewer than two groups (of
        attacked rows, too), or a trusted modality of a row is not a number.

    References:
      Derived here.
    """
    arrays, classes, dtype = check_labelled(logits, labels)
    names = check_modalities("perturbed", perturbed, arrays)
    trusted = {name: z for name, z in arrays.items() if name not in names}
    if not trusted:
        raise ValueError(f"perturbed={names} leaves no modality that could decide alone")
    checked = check_present(present, arrays)
    masks = None if present is None else {m: x for m, x in present.items() if m in trusted}
    log_trusted = statistical_fusion(trusted, class_prior, present=masks)
    fused = contaminated_fusion(
        arrays, class_prior, contamination=0.0, perturbed=names, present=present
    )
    used = np.broadcast_to(np.asarray(any_of(trusted, checked)).reshape(-1), len(classes))
    features = np.asarray(gate_features(log_trusted), np.float64)[used]
    if not np.isfinite(features).all():
        raise ValueError("a trusted modality says nothing in some rows; leave them out")
    num_rows = len(features)
    of_groups = None if groups is None else np.asarray(groups)[used]
    row_weights = np.ones(num_rows) if weights is None else np.asarray(weights, np.float64)[used]

    def fit(targets: ArrayLike) -> tuple[float, ...]:
        values = np.asarray(targets, np.float64)[used]
        known = ~np.isnan(values)
        folds = assign_folds(
            known.sum(), groups=None if of_groups is None else of_groups[known], seed=seed
        )
        w = fit_probability(features[known], values[known], folds, row_weights[known])
        return tuple(float(x) for x in w.astype(dtype))

    def is_right(log_probs: jax.Array) -> NDArray[np.bool_]:
        return np.asarray(log_probs).argmax(axis=-1) == np.asarray(classes)

    return Gate(
        fit(is_right(log_trusted)),
        fit(is_right(fused)),
        () if attacked is None else fit(attacked),
    )
