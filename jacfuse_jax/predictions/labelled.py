"""Labelled rows that rules are chosen on."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax._simplex import says_nothing
from jacfuse_jax.predictions.opening import Opened
from jacfuse_jax.programs import InputError

_NUM_ENTRIES = 1_000_000
MOST_ROWS = 10_000
"""Accuracies are then known to a point."""


class LabelledRows(NamedTuple):
    """Rows of which the class is known.

    Attributes:
      logits: {modality: (n, K)}.
      labels: (n,).
      groups: (n,), equal for rows that depend on each other; None: each by itself.
      present: {modality: (n,)}, which rows have it.
    """

    logits: dict[str, NDArray[Any]]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    present: dict[str, NDArray[np.bool_]]


def count_rows(num_rows: int, num_classes: int) -> int:
    """How many rows are drawn: as many as there are, 10,000, or of a million logits a modality.

    Args:
      num_rows: that there are.
      num_classes: K.
    """
    return min(num_rows, MOST_ROWS, max(1000, _NUM_ENTRIES // num_classes))


def draw_labelled(opened: Opened, flag: str) -> LabelledRows:
    """Draws labelled rows at random, and says what was left out.

    Args:
      opened: the inputs.
      flag: that needs them, for messages.

    Raises:
      InputError: there are none, or all are of one group.
    """
    reference = opened.reference
    if reference.labels is None:
        raise InputError(f"{flag} needs `labels`, and no --{opened.source} has any")
    num_rows = len(reference.labels)
    sample = np.random.default_rng(0).permutation(num_rows)
    sample = sample[: count_rows(num_rows, reference.num_classes)]
    logits = reference.read(sample, opened.dtype)
    present = {name: has[sample] for name, has in reference.present.items()}
    is_labelled = reference.labels[sample] >= 0
    is_silent = np.any(
        [silent & present[name] for name, silent in find_silent(logits).items()], axis=0
    )
    is_used = is_labelled & ~is_silent
    if not is_used.any():
        raise InputError(
            f"{flag}: in each labelled row a modality says nothing, of +inf or nothing finite"
        )
    for name, has in present.items():
        if not has[is_used].any():
            raise InputError(f"{flag}: {name} is missing in each labelled row")
    left_out = {
        f"not among {len(sample)} drawn at random": num_rows - len(sample),
        "without a label": int((~is_labelled).sum()),
        "in which a modality says nothing": int((is_labelled & is_silent).sum()),
    }
    reasons = [f"{count} {reason}" for reason, count in left_out.items() if count]
    if reasons:
        print(
            f"{flag} leaves out, of {num_rows} rows of --{opened.source}: {', '.join(reasons)}",
            file=sys.stderr,
        )
    rows = sample[is_used]
    groups = None if reference.groups is None else reference.groups[rows]
    if len(np.unique(rows if groups is None else groups)) < 2:
        raise InputError(f"{flag} needs labelled rows of two groups at least")
    return LabelledRows(
        {name: z[is_used] for name, z in logits.items()},
        reference.labels[rows],
        groups,
        {name: has[is_used] for name, has in present.items()},
    )


def find_silent(logits: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.bool_]]:
    """Which rows (N,) of each modality say nothing, as fusion rules have it.

    Args:
      logits: {modality: (N, K)}.
    """
    return {name: np.asarray(_says_nothing(z))[:, 0] for name, z in logits.items()}


_says_nothing = jax.jit(says_nothing)
